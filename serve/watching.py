"""All servers of a store, looked at again and again: what each says, how fast it is asked, and how one ended.

What a server doesn't say, or doesn't say any more, is None; nothing is guessed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.runs import Follower, RunRecord, all_runs, read_run
from adapterhub.serve.client import Running, servers
from adapterhub.serve.logs import last_line
from adapterhub.serve.status import Status, rows, totals
from adapterhub.store import Store

KIND = "serve"
CHECKING, DIRECT, SILENT = "checking", "direct", "silent"
"""States that a server doesn't say itself: before it has a door; without one; running, but not answering."""
STARTING, STOPPING = "starting", "stopping"


@dataclass(frozen=True)
class Story:
    """What a server's run has told so far. `verified` is the report of its start."""

    launched: int = 0
    ready: float | None = None
    verified: Mapping[str, Any] | None = None
    open: bool = False

    def told(self, event: Mapping[str, Any]) -> Story:
        """After one more event."""
        match event.get("event"):
            case "launched":
                return replace(self, launched=self.launched + 1)
            case "ready":
                return replace(self, ready=event.get("seconds"))
            case "verified":
                return replace(self, verified=event.get("report"))
            case "open":
                return replace(self, open=True)
        return self


@dataclass(frozen=True)
class Rate:
    """How much a second, between the last two looks."""

    answered: float
    tokens: float


@dataclass(frozen=True)
class Look:
    """One server at one moment."""

    run: str
    folder: Path
    state: str
    url: str = ""
    pid: int | None = None
    began: str = ""
    command: tuple[str, ...] = ()
    server: Running | None = None
    """How to ask it; None before it has a door, or where it has none."""
    status: Status | None = None
    problem: AdapterHubError | None = None
    log: str = ""
    """The engine's last word."""
    rate: Rate | None = None
    rates: Mapping[tuple[str, str], Rate] = field(default_factory=dict)
    """By name and version."""
    story: Story = Story()
    record: RunRecord | None = None
    """How it ended, where it has."""

    @property
    def log_file(self) -> Path:
        """Where the engine writes."""
        return self.folder / "vllm.log"


class Watch:
    """Looks at the servers of `store`. One is remembered between two looks, so that its rates can be told."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stories: dict[str, tuple[Follower, Story]] = {}
        self._before: dict[str, tuple[float, Status]] = {}

    def look(self) -> tuple[Look, ...]:
        """Every server that runs, oldest first; those that are only being started too. Blocks for what they take to answer."""
        running = {one.run: one for one in servers(self._store)}
        records = {
            record.id: record
            for record in all_runs(self._store.runs_dir)
            if record.kind == KIND and record.state == "running"
        }
        return tuple(
            self._one(run, running.get(run), records.get(run))
            for run in sorted({*running, *records})
        )

    def remember(self, run: str, report: Mapping[str, Any]) -> None:
        """A later verification stands where the one of the start stood."""
        if run in self._stories:
            follower, story = self._stories[run]
            self._stories[run] = (follower, replace(story, verified=report))

    def ended(self, run: str) -> RunRecord | None:
        """How a server ended; None where nobody knows any more."""
        self._before.pop(run, None)
        self._stories.pop(run, None)
        try:
            return read_run(self._store.runs_dir / run)
        except AdapterHubError:
            return None

    def _one(self, run: str, server: Running | None, record: RunRecord | None) -> Look:
        folder = self._store.runs_dir / run
        story = self._story(run, folder)
        log = folder / "vllm.log"
        found = Look(
            run, folder,
            state=_state(story, record),
            pid=server.pid if server else record.pid if record else None,
            url=server.url if server else str((record.result if record else {}).get("url") or ""),
            began=record.began if record else "",
            command=record.command if record else (),
            server=server, story=story, log=last_line(log) if log.is_file() else "",
        )  # fmt: skip
        if server is None:
            return found
        try:
            status = server.status()
        except AdapterHubError as error:
            return replace(found, state=SILENT, problem=error)
        now = time.monotonic()
        before = self._before.get(run)
        self._before[run] = (now, status)
        found = replace(found, state=str(status["state"]), status=status)
        if before is None:
            return found
        return replace(found, **_rates(before[1], status, now - before[0]))

    def _story(self, run: str, folder: Path) -> Story:
        follower, story = self._stories.get(run) or (Follower(folder), Story())
        for event in follower.new():
            story = story.told(event)
        self._stories[run] = (follower, story)
        return story


def _state(story: Story, record: RunRecord | None) -> str:
    """Of a server that has no door to ask at: not yet, not any more, or never."""
    if story.open:
        return STOPPING
    direct = record is not None and "--direct" in record.command
    return (
        DIRECT
        if direct and story.ready is not None
        else CHECKING
        if not story.launched
        else STARTING
    )


def _rates(before: Status, now: Status, seconds: float) -> dict[str, Any]:
    """What was asked between two looks, by the second: in all, and of each version of each name."""
    earlier = {(row["name"], row["version"]): row for row in rows(before)}
    return {
        "rate": _rate(totals(before), totals(now), seconds),
        "rates": {
            key: _rate(earlier[key], row, seconds)
            for row in rows(now)
            if (key := (row["name"], row["version"])) in earlier
        },
    }


def _rate(before: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> Rate:
    def grown(key: str) -> float:
        return max(0.0, float(now[key] - before[key])) / max(seconds, 1e-3)

    return Rate(grown("answered"), grown("tokens_in") + grown("tokens_out"))
