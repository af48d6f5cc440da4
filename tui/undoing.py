"""Undo and redo, from any screen: what is taken back is said, then done, as one operation that can be taken back too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.store import history
from adapterhub.store.journal import Operation
from adapterhub.words import counted

if TYPE_CHECKING:
    from adapterhub.tui.screens.base import HubScreen

MOST = 6


async def undo(screen: HubScreen, count: int = 1) -> None:
    """Takes back the last `count` operations. Within a worker."""
    _looking(screen)
    try:
        plan = await screen.ask(history.plan_undo, screen.hub.store, count)
        question = "Take back: " + said(plan.operations[0]) + "?"
        if count > 1:
            question = f"Take back the last {counted(count, 'operation')}?"
        done = [said(operation) for operation in plan.operations] if count > 1 else []
        line = "adapterhub undo" + (f" {count}" if count > 1 else "")
        await _do(screen, plan, question, [*some(done), *some(plan.words)], line, "Taken back")
    except Exception as error:  # noqa: BLE001 - told, and the screen goes on
        screen.refuse(error, "Not taken back")


async def redo(screen: HubScreen) -> None:
    """Takes back the last undo, where nothing was done since. Within a worker."""
    _looking(screen)
    try:
        plan = await screen.ask(history.plan_undo, screen.hub.store, 1)
        if plan.operations[0].op != "undo":
            last = said(plan.operations[0])
            screen.notify(f"What was done last is no undo: {last}", title="Nothing to do again", markup=False)  # fmt: skip
            return
        question = f"Do it again: {said(plan.operations[0]).removeprefix('undo of ')}?"
        follows = [*some(plan.words), "The undo is taken back, so its line is adapterhub undo"]
        await _do(screen, plan, question, follows, "adapterhub undo", "Done again")
    except Exception as error:  # noqa: BLE001 - told, and the screen goes on
        screen.refuse(error, "Not done again")


def _looking(screen: HubScreen) -> None:
    screen.notify("Looking what was done last …", timeout=2)


async def _do(
    screen: HubScreen, plan: history.Undone, question: str, follows: list[str], line: str, told: str
) -> None:
    if not await screen.confirm(question, follows, line):
        return
    count = len(plan.operations)
    done = await screen.ask(history.undo, screen.hub.store, count, meant=plan)
    screen.notify("\n".join([line, *some(done.words)]), title=told, markup=False)
    for one in screen.the_app.open_screens:
        one.changed()


def said(operation: Operation) -> str:
    """What an operation was, in a line."""
    return operation.why or operation.op


def some(lines: list[str] | tuple[str, ...]) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [*lines[:MOST], *more]
