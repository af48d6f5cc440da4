"""Long work as a run: a folder with the recipe, what happened (`events.jsonl`), and the outcome.

The progress bar, the logs and the live screens all read the same events, so closing one of them never changes the work.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from adapterhub.errors import StoreLockedError
from adapterhub.fsio import make_directory, write_file

EVENTS = "events.jsonl"
"""The file of a run's events, one JSON object a line."""
Outcome = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class Run:
    """One run; `path` holds recipe.json, events.jsonl and whatever the work leaves."""

    id: str
    path: Path

    @classmethod
    def create(cls, runs: Path, kind: str, recipe: Mapping[str, Any]) -> Run:
        """Makes the folder of a new run below `runs` and records its recipe."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = f"{kind}-{stamp}-{secrets.token_hex(3)}"
        run = cls(name, runs / name)
        make_directory(run.path)
        (run.path / "recipe.json").write_text(json.dumps(recipe, indent=2, default=str))
        run.event("started", kind=kind)
        return run

    def event(self, what: str, **fields: object) -> None:
        """Appends one line: {"time", "event", ...}."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": what,
            **fields,
        }
        with (self.path / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def finish(self, outcome: Outcome, **fields: object) -> None:
        """The last event."""
        self.event(outcome, **fields)


@contextmanager
def running(
    runs: Path, kind: str, recipe: Mapping[str, Any], *, again: Run | None = None
) -> Iterator[Run]:
    """A run whose outcome is recorded however the block ends: a new one, or an old one that is gone on with (`again`).

    Raises StoreLockedError where another process works on that one.
    """
    run = again or Run.create(runs, kind, recipe)
    # The folder itself is locked, so that the lock leaves no file behind.
    lock = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLockedError(
                f"The run {run.id} is being worked on by another process.",
                hint="Wait until it ends, or stop it.",
            ) from None
        if again is not None:
            _drop_broken_lines(run.path / EVENTS)
        yield from _recorded(run)
    finally:
        os.close(lock)


def _drop_broken_lines(path: Path) -> None:
    """Takes away what a killed process, or a full disk, left of an event, so that the others can be read."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = b"".join(line for line in data.splitlines(keepends=True) if _is_event(line))
    if whole != data:
        write_file(path, whole, path.parent)


def _is_event(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _recorded(run: Run) -> Iterator[Run]:
    try:
        yield run
    except KeyboardInterrupt:
        run.finish("interrupted")
        raise
    except BaseException as error:
        run.finish("failed", error=str(error))
        raise
    run.finish("done")
