"""What the Serve place asks the hub, each a function for a thread; nothing heavy is imported before."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import clean
from adapterhub.errors import AdapterHubError
from adapterhub.store import Store
from adapterhub.tui.problem import Problem
from adapterhub.tui.serving.state import Planned, Serving

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord
    from adapterhub.serve.watching import Look, Watch
    from adapterhub.tail import Tail

RESULT = "result.json"
"""In a job's folder: what its command would have printed."""


def look_at(store: Store, plan: Planned) -> Planned:
    """The plan, with everything that `serve` would look at before it starts."""
    from adapterhub.serve.prospect import prospect
    from adapterhub.serve.wish import wish_of

    try:
        wish = wish_of(plan.names, plan.values)
        line = shlex.join(["adapterhub", *wish.words()])
        found = prospect(store, wish)
    except Exception as error:  # noqa: BLE001 - what is wrong with an adapter's files is told like the rest
        return replace(plan, found=None, problem=Problem.of(error), stale=False)
    return replace(plan, found=found, problem=None, stale=False, line=line)


def words(plan: Planned) -> list[str]:
    """The words after `adapterhub` that start it."""
    from adapterhub.serve.wish import wish_of

    return wish_of(plan.names, plan.values).words()


def watch(store: Store) -> Watch:
    """What looks at the servers. MissingDependencyError where none could be asked."""
    from adapterhub.cli.command import require_extra

    require_extra("httpx", "door")
    from adapterhub.serve.watching import Watch

    return Watch(store)


def tail(log: Path) -> Tail:
    """A log, to be read as it grows."""
    from adapterhub.tail import Tail

    return Tail(log)


def report_of(record: RunRecord) -> Mapping[str, Any] | None:
    """What a verification found, where it came to that."""
    try:
        found = json.loads((record.path / RESULT).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "faults" in found else None


def all_names(store: Store) -> list[str]:
    """Every name in the store."""
    return sorted(str(name) for name in store.refs.names())


# What needs no thread


def served(look: Look | None) -> Sequence[Mapping[str, Any]]:
    """A row for each version that a name of the server means."""
    if look is None or look.status is None:
        return ()
    from adapterhub.serve.status import rows

    found = []
    for row in rows(look.status):
        rate = look.rates.get((row["name"], row["version"]))
        found.append({**row, "rate": None if rate is None else rate.answered})
    return found


def ls_line(look: Look | None) -> str:
    """The command line that shows a server, or its run."""
    if look is None:
        return "adapterhub server ls"
    if look.server is None:
        return f"adapterhub logs {clean(look.run)}"
    return f"adapterhub server ls --server {look.server.port}"


def as_it_is(serving: Serving, look: Look) -> Look:
    """The look, or that it has ended."""
    running = look.run in {one.run for one in serving.looks}
    return look if running else replace(look, state="ended", status=None)


def ended(serving: Serving, record: RunRecord) -> Serving:
    """After a server that was started here has ended, seen before or not."""
    from adapterhub.serve.watching import Look

    known = next((look for look in serving.all if look.run == record.id), None)
    if known is None and serving.shown != record.id:
        return serving
    look = known or Look(record.id, record.path, "ended")
    running = tuple(one for one in serving.looks if one.run != record.id)
    return replace(serving, looks=running, ended={**serving.ended, record.id: (look, record)})


def server_of(serving: Serving, record: RunRecord) -> str:
    """The run of the server that a verification asked; empty where it is gone."""
    words = list(record.command)
    port = words[words.index("--server") + 1] if "--server" in words else ""
    found = (look for look in serving.looks if look.server and look.server.port == port)
    return next((look.run for look in found), "")


def with_report(serving: Serving, record: RunRecord, report: Mapping[str, Any]) -> Serving:
    """The servers, with what a verification found of the one it asked."""
    run = server_of(serving, record)
    looks = tuple(
        replace(look, story=replace(look.story, verified=report)) if look.run == run else look
        for look in serving.looks
    )
    return replace(serving, looks=looks)


def share_problem(text: str) -> str:
    """What is wrong with `tone:v2=9 tone:v3=1`, as words; empty where nothing is."""
    from adapterhub.serve.changes import share_of

    try:
        for word in shlex.split(text):
            share_of(word)
    except (AdapterHubError, ValueError) as error:
        return Problem.of(error).what if isinstance(error, AdapterHubError) else f"{error}"
    return ""
