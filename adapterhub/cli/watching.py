"""`ps`, `logs`, `stop`: the long work of this store, wherever it was started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.runs import Follower, RunRecord, all_runs, find_run, read_run
from adapterhub.tail import Tail
from adapterhub.telling import STATES, consequence, how_far, logs_of, sentence, took
from adapterhub.words import human_seconds

_PAUSE = 0.3
_MOST = 10_000
_PATIENCE = 20.0
"""Seconds that `stop` waits for the end."""

WhichRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, its beginning, or the six characters at its end."
    ),
]


@command
def ps(
    ctx: Context,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Those that have ended, too.")
    ] = False,
) -> None:
    """Show the work that is running: trainings, merges, exports, servers."""
    runs = [run for run in all_runs(ctx.store.runs_dir) if everything or run.state == "running"]
    now = datetime.now(UTC)
    rows = [{**_row(ctx, run), "took": _took(run, now)} for run in runs]
    if ctx.out.mode == "human":
        for row, run in zip(rows, runs, strict=True):
            row["progress"] = how_far(run.progress) if run.state == "running" else None
            row["took"] = human_seconds(row["took"]) if row["took"] is not None else None
    if not rows:
        hint = "" if everything else "  `adapterhub ps --all` shows what has been."
        ctx.out.note(("Nothing was ever run here." if everything else "Nothing is running.") + hint)
        if ctx.out.mode == "human":
            return
    ctx.out.table(rows, ("id", "state", "title", "progress", "took"), ids="id")


@command
def logs(
    ctx: Context,
    run: WhichRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    lines: Annotated[
        int,
        typer.Option(
            "--lines", "-n", min=0, help="How many of the last events, and lines of each log."
        ),
    ] = 40,
) -> None:
    """Tell what happened in a run, and what its work wrote."""
    found = find_run(ctx.store.runs_dir, run)
    if ctx.out.mode != "human":
        while follow and found.state == "running":
            time.sleep(_PAUSE)
            found = read_run(found.path)
        tails = {path.name: Tail(path).new(lines) for path in logs_of(found)}
        events = Follower(found.path).new()[-lines:] if lines else []
        ctx.out.record({**_row(ctx, found), "events": events, "logs": tails}, ids=("id",))
        return
    for text in _told(found, lines, follow=follow):
        ctx.out.piece(text + "\n")


def _told(run: RunRecord, lines: int, *, follow: bool) -> Iterator[str]:
    """What is there of events and logs, then what comes."""
    follower, tails = Follower(run.path), dict[Path, Tail]()
    told = [event for event in follower.new() if event.get("event") != "progress"]
    yield from map(_line, told[-lines:] if lines else [])
    for path in logs_of(run):
        tails[path] = Tail(path)
        if tail := tails[path].new(lines):
            yield f"-- {path}"
            yield from tail
    last = ""
    while follow and run.state == "running":
        time.sleep(_PAUSE)
        run = read_run(run.path)
        yield from (_line(event) for event in follower.new() if event.get("event") != "progress")
        for path in logs_of(run):
            yield from tails.setdefault(path, Tail(path)).new(_MOST)
        if (now := how_far(run.progress)) != last and run.state == "running":
            last = now
            yield f"          {now}"


def _line(event: dict[str, Any]) -> str:
    return f"{str(event.get('time') or '')[11:19]:8}  {sentence(event)}"


@command
def stop(ctx: Context, run: WhichRun) -> None:
    """Stop a run, as Ctrl-C does where it was started. What can go on later, can."""
    from adapterhub.jobs import stop as tell_to_stop

    found = find_run(ctx.store.runs_dir, run)
    tell_to_stop(found)
    deadline = time.monotonic() + _PATIENCE
    with ctx.out.progress(f"Stopping {found.id}"):
        while found.state == "running" and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            found = read_run(found.path)
    if found.state == "running":
        ctx.out.note(f"It is still coming to its end:  adapterhub logs {found.id} -f")
    else:
        ctx.out.note((found.error or {}).get("why") or consequence(found.kind))
    ctx.out.record({"run": found.id, "state": _state(ctx, found)}, ids=("run",))


def _row(ctx: Context, run: RunRecord) -> dict[str, Any]:
    progress = asdict(run.progress) if run.progress else None
    keys = ("id", "kind", "state", "title", "began", "ended", "pid", "command", "error", "result")
    found = {key: getattr(run, key) for key in keys}
    return {**found, "state": _state(ctx, run), "progress": progress, "path": str(run.path)}


def _state(ctx: Context, run: RunRecord) -> str:
    """People read the word that the screen has; programs the one that the events have."""
    return STATES[run.state].partition(":")[0] if ctx.out.mode == "human" else run.state


def _took(run: RunRecord, now: datetime) -> float | None:
    seconds = took(run, now)
    return None if seconds is None or run.state == "died" else round(max(0.0, seconds), 1)
