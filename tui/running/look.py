"""Looks at runs: everything here reads files, and is asked in a thread."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from adapterhub.cli.output import clean
from adapterhub.eventlog import LONGEST, cut
from adapterhub.runs import Follower, RunRecord, all_runs, find_run, read_run
from adapterhub.store import Store
from adapterhub.tail import Tail
from adapterhub.telling import logs_of, sentence
from adapterhub.tui.problem import Problem
from adapterhub.tui.running.state import Looked

MOST_LINES = 2000
_LONGEST = 4 * LONGEST
"""Characters of a line; a log has the whole."""


def now() -> datetime:
    """The time, as runs tell it."""
    return datetime.now(UTC)


def runs_of(store: Store) -> list[RunRecord]:
    """Every run, newest first."""
    return all_runs(store.runs_dir)


class Look:
    """Follows one run: what it says in events, and what its work writes."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._follower: Follower | None = None
        self._path: Path | None = None
        self._tails: dict[Path, Tail] = {}

    def new(self) -> Looked:
        """What came since the last look. A job that turns out to go on with an older run leads there."""
        try:
            if self._path is None:
                self._path = find_run(self._store.runs_dir, self._run).path
            record = read_run(self._path)
            if self._follower is None or record.path != self._path:
                self._follower, self._path = Follower(record.path), record.path
            events = [event for event in self._follower.new() if event.get("event") != "progress"]
            lines: list[str] = []
            logs = logs_of(record)
            for log in logs:
                new = self._tails.setdefault(log, Tail(log)).new(MOST_LINES)
                if new and len(logs) > 1:
                    lines.append(f"-- {log.name}")
                lines += new
            told = (
                f"{str(event.get('time') or '')[11:19]:8}  {sentence(event)}"
                for event in events[-MOST_LINES:]
            )
            return Looked(record, None, tuple(map(_line, told)), tuple(map(_line, lines)))
        except Exception as error:  # noqa: BLE001 - said on the screen
            return Looked(None, Problem.of(error))


def _line(text: str) -> str:
    return clean(cut(text, _LONGEST))
