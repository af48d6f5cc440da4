"""How runs are said: a line of the table, and everything about one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime

from adapterhub.cli.output import clean
from adapterhub.runs import Progress, RunRecord
from adapterhub.telling import STATES, how_far, took
from adapterhub.tui.facts import Fact, Section, Tone, moment, said
from adapterhub.tui.running.state import Jobs
from adapterhub.tui.widgets.line_table import Column, Line
from adapterhub.words import human_seconds, human_size

MARKS = {"running": "▶", "done": "✓", "failed": "✗", "interrupted": "■", "died": "✗"}
COLUMNS = (
    Column(""),
    Column("state"),
    Column("what", takes_rest=True),
    Column("progress", goes=1),
    Column("took", goes=2, right=True),
    Column("began", goes=3),
)
_BAR = 12

NOTHING = (
    "Nothing has been run here yet.\n\n"
    "Trainings, merges, exports and servers are listed here while they run and after they have\n"
    "ended, wherever they were started: here, or on a command line.\n\n"
    "2  train an adapter          1, then m  merge the adapters that are marked\n"
    "3  serve some                1, then e  export one into its base"
)
NOTHING_RUNS = "Nothing is running.\n\nv shows what has been."


def line_of(run: RunRecord, state: Jobs, now: datetime) -> Line:
    """A run in a line."""
    seconds = took(run, now) if run.state != "died" else None
    cells = (
        "•" if run.id in state.marked else " ",
        f"{MARKS[run.state]} {STATES[run.state].partition(':')[0]}",
        clean(run.title or run.id),
        clean(bar(run.progress)) if run.state == "running" else "",
        human_seconds(seconds) if seconds is not None else "",
        clean(f"{run.began[5:10]} {run.began[11:16]}"),
    )
    return Line(run.id, cells, "bold" if run.state == "running" else "")


def bar(progress: Progress | None) -> str:
    """How far a run has come, as a bar where that is known."""
    if progress is None:
        return ""
    if not progress.total:
        return how_far(progress)
    share = min(1.0, max(0.0, progress.done / progress.total))
    full = int(share * _BAR)
    return f"{'█' * full}{'░' * (_BAR - full)} {share:4.0%}"


def count(state: Jobs) -> str:
    """What the table's frame says of it."""
    if not state.loaded:
        return "reading …"
    marked = f", {len(state.marked)} marked" if state.marked else ""
    return f"{state.running} running of {len(state.runs)}{marked}"


def about(run: RunRecord, now: datetime) -> tuple[Section, ...]:
    """Everything known about a run, what matters most first."""
    sections = [Section("", tuple(_how_it_is(run, now)))]
    if run.error:
        parts = [run.error[part] for part in ("what", "why", "hint") if run.error.get(part)]
        tone: Tone = "error" if run.state == "failed" else ""
        told = [line for part in parts for line in part.split("\n")]
        facts = (Fact("", clean(line), tone if n == 0 else "") for n, line in enumerate(told))
        sections.append(Section("Why it failed" if run.state == "failed" else "", tuple(facts)))
    if run.result and run.state != "failed":
        facts = (
            Fact(clean(key.replace("_", " ")), _value(key, value))
            for key, value in run.result.items()
            if value not in (None, "")
        )
        sections.append(Section("Result", tuple(facts)))
    return (*sections, Section("Run", tuple(_what_it_is(run))))


def line_to_type(run: RunRecord) -> str:
    """The command line that did the same."""
    return shlex.join(("adapterhub", *run.command)) if run.command else ""


def _value(key: str, value: object) -> str:
    return human_size(value) if key.endswith("bytes") and isinstance(value, int) else said(value)


def _how_it_is(run: RunRecord, now: datetime) -> Iterator[Fact]:
    tone: Tone = "strong" if run.state == "running" else ""
    if run.state in ("failed", "died"):
        tone = "error"
    yield Fact("state", f"{MARKS[run.state]} {STATES[run.state]}", tone)
    if run.progress is not None and run.state != "done":
        share = f"{bar(run.progress)}  " if run.progress.total else ""
        yield Fact("progress", clean(share + how_far(run.progress)))
    seconds = took(run, now)
    if seconds is not None and run.state != "died":
        yield Fact("took" if run.state != "running" else "for", human_seconds(seconds))


def _what_it_is(run: RunRecord) -> Iterator[Fact]:
    yield Fact("began", moment(run.began))
    if run.state == "died" and run.ended:
        yield Fact("last heard", moment(run.ended))
    yield Fact("id", clean(run.id))
    if run.pid is not None:
        yield Fact("process", str(run.pid))
    if run.command:
        yield Fact("command", clean(line_to_type(run)))
