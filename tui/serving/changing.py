"""What a person does to a running server: asked where it has a consequence, done by the hub in a thread, told in its words."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import clean
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.serving import asking
from adapterhub.words import counted

if TYPE_CHECKING:
    from adapterhub.serve.client import Running
    from adapterhub.serve.watching import Look

Change = Callable[[HubScreen, "Look", Mapping[str, Any]], Awaitable[None]]
"""Of the name in a row of a server."""

VERIFYING = "server"
"""The kind of run that a verification is."""


async def pick(screen: HubScreen, taken: Collection[str], more: Sequence[str] = ()) -> str | None:
    """A name of the store, or one of `more`, that isn't taken. Only within a worker."""
    from adapterhub.tui.screens.pick import PickScreen

    try:
        names = await screen.ask(asking.all_names, screen.hub.store)
    except Exception as error:  # noqa: BLE001 - told, and the screen goes on
        screen.refuse(error)
        return None
    left = [name for name in (*more, *names) if name not in taken]
    empty = "The store is empty: adapterhub add FOLDER" if not names else "All are chosen already."
    return await screen.app.push_screen_wait(PickScreen("Which adapter?", left, empty))


async def add(screen: HubScreen, look: Look, name: str) -> None:
    """Serves one more."""
    from adapterhub.serve import changes

    server = _server(look)
    line = _line("add", name, server)
    remarks: list[str] = []
    await _done(
        screen, line, remarks, changes.add, screen.hub.store, server, [name],
        allow_mismatch=False, remark=remarks.append,
    )  # fmt: skip


async def update(screen: HubScreen, look: Look, row: Mapping[str, Any]) -> None:
    """Lets a name mean another version, or several by shares."""
    from adapterhub.serve import changes

    name = str(row["name"])
    text = await screen.ask_text(
        f"What does {name} mean from now on?",
        value=name,
        hint="NAME, or NAME=9 OTHER=1 to split",
        check=asking.share_problem,
    )
    if text is None:
        return
    server = _server(look)
    to = shlex.split(text)
    said = () if to == [name] else tuple(word for one in to for word in ("--to", one))
    remarks: list[str] = []
    await _done(
        screen, _line("update", name, server, *said), remarks,
        changes.update, screen.hub.store, server, name, to,
        allow_mismatch=False, remark=remarks.append,
    )  # fmt: skip


async def rollback(screen: HubScreen, look: Look, row: Mapping[str, Any]) -> None:
    """Lets a name mean what it meant before."""
    from adapterhub.serve import changes

    server, name = _server(look), str(row["name"])
    line = _line("rollback", name, server)
    consequence = (
        "New requests go to what it meant before; those under way keep the version they began with."
    )
    if await screen.confirm(f"Take {name} back?", [consequence], line, yes="Take back"):
        await _done(screen, line, [], changes.rollback, server, name)


async def remove(screen: HubScreen, look: Look, row: Mapping[str, Any]) -> None:
    """Stops serving a name."""
    from adapterhub.serve import changes

    server, name = _server(look), str(row["name"])
    line = _line("rm", name, server)
    busy = int(row["requests"])
    consequences = [
        f"Whoever asks {look.url} for it is told that there is no such model.",
        f"{counted(busy, 'request')} under way, finished before it leaves." if busy else "Nothing asks for it now.",
        "The adapter stays in the store.",
    ]  # fmt: skip
    if await screen.confirm(f"Stop serving {name}?", consequences, line, yes="Stop serving it"):
        await _done(screen, line, [], changes.remove, server, name)


async def verify(screen: HubScreen, look: Look) -> None:
    """Asks everything again, in a run of its own."""
    words = ["server", "verify", "--server", _server(look).port]
    try:
        await screen.the_app.start(words, title=f"verify {look.url}")
    except Exception as error:  # noqa: BLE001 - told, and the screen goes on
        screen.refuse(error, "Not started")
        return
    screen.notify("Asking each name, alone and all at once.", title="Verifying", markup=False)


async def stop(screen: HubScreen, look: Look) -> None:
    """Ends a server, or its start."""
    where = look.url or look.run
    now = 0 if look.status is None else int(look.status["running"])
    consequences = [
        "Its clients are refused from now on, and vLLM is ended with it.",
        f"{counted(now, 'answer')} being written: they have 30 seconds to finish." if now else "No answer is being written.",
    ]  # fmt: skip
    line = f"adapterhub stop {look.run}"
    if look.server is not None:
        line = f"adapterhub server stop --server {look.server.port}"
    if not await screen.confirm(f"Stop {where}?", consequences, line, yes="Stop it"):
        return
    try:
        await screen.ask(_end, look)
    except Exception as error:  # noqa: BLE001 - told, and the screen goes on
        screen.refuse(error)
    else:
        screen.notify(line, title=f"Stopping {clean(where)}", markup=False)


def _end(look: Look) -> None:
    if look.server is not None:
        look.server.stop()
        return
    from adapterhub.jobs import stop as stop_run
    from adapterhub.runs import read_run

    stop_run(read_run(look.folder))


async def _done(
    screen: HubScreen,
    line: str,
    remarks: Sequence[str],
    change: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> None:
    """Does it in a thread, and says what came of it, with the command line that does the same."""
    try:
        found = await screen.ask(change, *args, **kwargs)
    except Exception as error:  # noqa: BLE001 - told in its own words, and the screen goes on
        problem = Problem.of(error)
        screen.notify(f"{problem}\n{line}", title="Refused", severity="error", markup=False, timeout=10)  # fmt: skip
        return
    rows = found if isinstance(found, list) else [found]
    said = "; ".join(f"{row['name']} means {', '.join(row['versions'])}" for row in rows)
    for remark in remarks:
        screen.notify(clean(remark), title="To know", severity="warning", markup=False)
    screen.notify(f"{clean(said)}\n{line}", title="Done", markup=False)


def _line(what: str, name: str, server: Running, *more: str) -> str:
    return shlex.join(["adapterhub", "server", what, name, *more, "--server", server.port])


def _server(look: Look) -> Running:
    assert look.server is not None, "the key is only offered where the server can be asked"
    return look.server
