"""What a collection would take and what a check found, as the screens show it; everything here is asked in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.cli.output import clean
from adapterhub.store.checking import Report, check
from adapterhub.store.garbage import Item, Plan
from adapterhub.store.reading import Reading
from adapterhub.store.tidying import last_names, plan_now, reach, spared, taken, thing
from adapterhub.tui.facts import Fact, Section
from adapterhub.tui.problem import Problem
from adapterhub.tui.widgets.line_table import Column, Line
from adapterhub.words import counted, human_size

if TYPE_CHECKING:
    from adapterhub.store import Store

MOST = 1000
GARBAGE = (Column("goes"), Column("what", takes_rest=True), Column("size", right=True), Column("why", goes=1))  # fmt: skip
FINDINGS = (Column(""), Column("what", takes_rest=True), Column("size", goes=1, right=True))


@dataclass(frozen=True)
class Tidy:
    """What a collection would do now."""

    loaded: bool = False
    nothing: bool = True
    lines: tuple[Line, ...] = ()
    words: tuple[str, ...] = ()
    problem: Problem | None = None


@dataclass(frozen=True)
class Checked:
    """A check: under way, or what it found."""

    running: bool = True
    deep: bool = False
    read: int = 0
    """Bytes of files that were read so far."""
    damages: int = 0
    lines: tuple[Line, ...] = ()
    about: tuple[tuple[Section, ...], ...] = ()
    """Of each line, everything about it."""
    verdict: str = ""
    problem: Problem | None = None


class Left(Exception):  # noqa: N818 - no error: nobody waits for the rest
    """Ends a check that nobody waits for."""


def tidy(store: Store) -> Tidy:
    """What a collection would take, by the names that people knew it by."""
    try:
        plan = plan_now(store)
        names = last_names(store)
    except Exception as error:  # noqa: BLE001 - said on the screen
        return Tidy(loaded=True, problem=Problem.of(error))
    lines = [_line(goes, item, names) for goes, item in _going(plan)]
    more = [f"{len(lines) - MOST} more are not listed."] if len(lines) > MOST else []
    nothing = not (plan.garbage or plan.deleted)
    words = (*taken(plan, done=False), *more, *spared(plan))
    return Tidy(True, nothing, tuple(lines[:MOST]), words)


def checked(store: Store, deep: bool, tell: Callable[[int], None]) -> Checked:
    """What a check finds; `tell` hears of the bytes that were read, and may raise Left."""
    try:
        choose = Reading().of(store) if deep else None
        report = check(store, choose, tell)
    except Left:
        raise
    except Exception as error:  # noqa: BLE001 - said on the screen
        return Checked(running=False, deep=deep, problem=Problem.of(error))
    found = list(_findings(report))
    verdict = f"{counted(report.adapters, 'adapter')}, {counted(report.blobs, 'file')}"
    if deep:
        verdict += f", {report.read} of them read ({human_size(report.bytes_read)})"
    damages = len(report.damages)
    verdict += f": damaged in {counted(damages, 'place')}" if damages else ": no damage"
    return Checked(
        False,
        deep,
        report.bytes_read,
        damages,
        tuple(line for line, _ in found[:MOST]),
        tuple(about for _, about in found[:MOST]),
        verdict,
    )


def _going(plan: Plan) -> Iterator[tuple[str, Item]]:
    for item in sorted(plan.garbage, key=lambda item: (item.kind != "manifest", -item.size)):
        yield "to the trash", item
    for item in plan.deleted:
        yield "for good", item


def _line(goes: str, item: Item, names: dict[str, str]) -> Line:
    cells = (goes, clean(thing(item, names)), human_size(item.size), clean(item.why))
    return Line(str(item.path), cells)


def _findings(report: Report) -> Iterator[tuple[Line, tuple[Section, ...]]]:
    """Damages first, then what is only remarked upon."""
    for number, damage in enumerate(report.damages):
        line = Line(f"damage {number}", ("✗ damage", clean(damage.what), ""), "bold")
        where = clean(reach(damage.path, report.touched(damage)))
        yield line, (Section("", (Fact("", clean(damage.what), "error"), Fact("", where))),)
    for number, remark in enumerate(report.remarks):
        size = human_size(remark.size) if remark.size else ""
        line = Line(f"note {number}", ("· note", clean(remark.what), size))
        yield line, (Section("", (Fact("", clean(remark.what)), Fact("", "It harms nothing."))),)
