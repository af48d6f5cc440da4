"""Long work as a run: a folder with the recipe, what happened (`events.jsonl`), and the outcome.

The progress bar, the logs and the live screens all read the same events, so closing one of them never changes the work.
The second half of this room reads them: what became of a run is its last outcome, else whether somebody holds its lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shlex
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from adapterhub.alive import is_gone, pid_here, worker
from adapterhub.errors import AdapterHubError, NotFoundError, StoreLockedError, UsageError
from adapterhub.eventlog import (
    LONGEST,
    bounded,
    cut,
    drop_broken_lines,
    ends,
    is_run_id,
    number,
    parse_event,
    parse_events,
)
from adapterhub.fsio import make_directory
from adapterhub.process import HERE
from adapterhub.words import did_you_mean, some

EVENTS = "events.jsonl"
"""The file of a run's events, one JSON object a line."""
RECIPE = "recipe.json"
OUTPUT = "output"
"""The file of what a job says: notes, warnings, errors."""
Outcome = Literal["done", "failed", "interrupted"]
State = Literal["running", "done", "failed", "interrupted", "died"]
"""What became of a run. `died`: no outcome is recorded, and nobody works on it."""
_PATIENCE = 0.2
"""Seconds in which whoever only looks whether a run is locked lets go of it."""


@dataclass(frozen=True)
class Run:
    """One run; `path` holds recipe.json, events.jsonl and whatever the work leaves."""

    id: str
    path: Path

    @classmethod
    def folder(cls, runs: Path, kind: str) -> Run:
        """A new run below `runs`, of which nothing is told yet."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = f"{kind}-{stamp}-{secrets.token_hex(3)}"
        make_directory(runs / name)
        return cls(name, runs / name)

    @classmethod
    def create(cls, runs: Path, kind: str, recipe: Mapping[str, Any]) -> Run:
        """Makes the folder of a new run below `runs` and records its recipe and that this process works on it."""
        run = cls.folder(runs, kind)
        run.keep(recipe)
        run.event("started", kind=kind, **worker(os.getpid()), command=list(HERE.words))
        return run

    def keep(self, recipe: Mapping[str, Any]) -> None:
        """Records the recipe."""
        (self.path / RECIPE).write_text(json.dumps(recipe, indent=2, default=str))

    def event(self, what: str, /, **fields: object) -> None:
        """Appends one line: {"time", "event", ...}."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": what,
            **fields,
        }
        data = (json.dumps(line, default=str) + "\n").encode()
        with (self.path / EVENTS).open("ab", buffering=0) as file:  # several may append: in one go
            file.write(data)

    def finish(self, outcome: Outcome, **fields: object) -> None:
        """The last event."""
        self.event(outcome, **fields)


@contextmanager
def running(
    runs: Path, kind: str, recipe: Mapping[str, Any], *, again: Run | None = None
) -> Iterator[Run]:
    """A run whose outcome is recorded however the block ends: a new one, or an old one that is gone on with (`again`).

    In a process that was given a run it is that one, and the outcome is recorded when the command ends.
    Raises StoreLockedError where another process works on the old one.
    """
    if again is None and HERE.given is not None:
        _join(HERE.given, kind, recipe)
        with HERE.working_on(HERE.given) as run:
            yield run
        return
    run = again or Run.create(runs, kind, recipe)
    with _locked(run):
        if again is not None:
            drop_broken_lines(run.path / EVENTS)
            job = {"job": HERE.given.id} if HERE.given else {}
            run.event("continued", **worker(os.getpid()), command=list(HERE.words), **job)
            if HERE.given is not None:
                HERE.given.event("continued", run=run.id)
        with HERE.working_on(run):
            yield from _recorded(run)


def failure(error: BaseException) -> dict[str, object]:
    """The fields of a `failed` event."""
    if not isinstance(error, AdapterHubError):
        return {"error": str(error) or type(error).__name__}
    return {"error": str(error), "what": error.what, "why": error.why, "hint": error.hint}


def _join(run: Run, kind: str, recipe: Mapping[str, Any]) -> None:
    """Records the recipe of the work; one command may do several pieces of it in a row."""
    if (run.path / RECIPE).exists():
        run.event("part", kind=kind, recipe=recipe)
    else:
        run.keep(recipe)


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    # The folder itself is locked, so that the lock leaves no file behind.
    lock = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + _PATIENCE
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                raise StoreLockedError(
                    f"The run {run.id} is being worked on by another process.",
                    hint=f"Wait until it ends, or stop it:  adapterhub stop {run.id}",
                ) from None
        yield
    finally:
        os.close(lock)


def _recorded(run: Run) -> Iterator[Run]:
    try:
        yield run
    except KeyboardInterrupt:
        run.finish("interrupted")
        raise
    except BaseException as error:
        run.finish("failed", **failure(error))
        raise
    run.finish("done")


# Reading


@dataclass(frozen=True)
class Progress:
    """How far a piece of work has come; `total` is None where nobody knows."""

    what: str
    done: float
    total: float | None = None
    unit: Literal["", "bytes"] = ""


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run."""

    id: str
    kind: str
    path: Path
    state: State
    began: str
    """ISO 8601, UTC; empty where nothing says."""
    ended: str | None
    """When the outcome was recorded; of a run that died, its last event."""
    pid: int | None
    """The process of this machine that works on it."""
    command: tuple[str, ...]
    """The words after `adapterhub`; none where it wasn't the command line, or an old one."""
    title: str
    progress: Progress | None
    error: Mapping[str, str] | None
    """What, why and hint of a run that didn't end well."""
    result: Mapping[str, Any]
    """What came of it: name, digest, folder, url ..."""
    output: Path
    """What its process says, where it was started as a job."""


def all_runs(runs: Path) -> list[RunRecord]:
    """Every run below `runs`, newest first. What can't be read is left out; one that goes on with another is that one."""
    found = []
    for path, known in _known_runs(runs):
        if known.continues is None or not (runs / known.continues / EVENTS).is_file():
            with suppress(ValueError, RecursionError):
                found.append(_record(path, known))
    return sorted(found, key=lambda run: (run.began, run.id), reverse=True)


def read_run(path: Path) -> RunRecord:
    """The run in the folder `path`; where it goes on with an older one, that one. NotFoundError where there is none."""
    known = _known(path)
    if known is None:
        raise NotFoundError(
            f"There is no run {path.name}.",
            why=f"{path} has no events.",
            hint="adapterhub ps --all",
        )
    if known.continues is not None:
        older = path.with_name(known.continues)
        if (known_too := _known(older)) is not None and known_too.continues is None:
            return _record(older, known_too)
    return _record(path, known)


def find_run(runs: Path, text: str) -> RunRecord:
    """The run with this id, or the only one whose id begins so, or ends with these six characters.

    Raises NotFoundError where there is none and UsageError where there are several.
    """
    known = all_runs(runs)
    meant = [run for run in known if run.id == text] or [
        run for run in known if text and (run.id.startswith(text) or run.id.endswith(f"-{text}"))
    ]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UsageError(
            f"{len(meant)} runs begin with {text}.",
            why=some([run.id for run in meant]),
            hint="Type more of the id, or the six characters at its end.",
        )
    if is_run_id(text) and _known(runs / text) is not None:  # it goes on with another one
        return read_run(runs / text)
    raise NotFoundError(
        f"There is no run {text}.",
        why=did_you_mean(text, [run.id for run in known])
        or did_you_mean(text, {run.id[: len(text)] for run in known}),
        hint="adapterhub ps --all",
    )


def runs_stamp(runs: Path) -> object:
    """Changes when a run begins, ends or writes."""
    return tuple(
        (path.name, known.stamp, known.outcome is not None or _is_worked_on(path, known))
        for path, known in _known_runs(runs)
    )


def worker_of(path: Path) -> int | None:
    """The process that works on a run, as its whole file tells; None where it is gone, or on another machine."""
    found = _last_worker(path)
    return None if is_gone(found) else pid_here(found)


class Follower:
    """The events of one run, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path / EVENTS
        self._at = 0
        self._file: tuple[int, int] | None = None

    def new(self) -> list[dict[str, Any]]:
        """The events told since the last call, of whole lines only. A file that was written anew is read from its start."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if self._file != (found.st_dev, found.st_ino) or found.st_size < self._at:
                    self._file, self._at = (found.st_dev, found.st_ino), 0
                file.seek(self._at)
                data = file.read()
        except (OSError, ValueError):
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return parse_events(whole)


_BEGINNINGS = ("started", "continued")
_WORKERS = ("started", "working", "continued")
"""Events that say which process works on the run."""
_TELLING = ("stored", "added", "ready", "open")
"""Events whose fields say what came of a run."""
_ID = re.compile(r"(?P<kind>.+)-(?P<stamp>\d{8}-\d{6})-[0-9a-f]{6}\Z")
_MOST_FIELDS, _LONGEST_COMMAND = 40, 20_000
_SHOWN = ("name", "folder", "base")
"""What of a recipe names the work that a run without a title does."""


@dataclass(frozen=True)
class _Known:
    """What the head and the tail of a run's events tell: everything but whether somebody works on it now."""

    stamp: tuple[int, int, int]
    begun: Mapping[str, Any] = field(default_factory=dict)
    worker: Mapping[str, Any] = field(default_factory=dict)
    last: Mapping[str, Any] = field(default_factory=dict)
    outcome: Mapping[str, Any] | None = None
    progress: Progress | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    continues: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _known_runs(runs: Path) -> Iterator[tuple[Path, _Known]]:
    try:
        entries = sorted(os.scandir(runs), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if (known := _known(path)) is not None:
            yield path, known


def _known(path: Path) -> _Known | None:
    """None for a folder that is no run, or can't be read."""
    try:
        found = (path / EVENTS).stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        return _read(path, (found.st_ino, found.st_size, found.st_mtime_ns))
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _read(path: Path, stamp: tuple[int, int, int]) -> _Known:
    with (path / EVENTS).open("rb") as file:
        head, tail = ends(file.fileno(), os.fstat(file.fileno()).st_size)
    begun = next((event for event in head if event.get("event") == "started"), {})
    at_work = (event for event in head if event.get("event") in _WORKERS and "pid" in event)
    at_it, outcome, progress = next(at_work, begun), None, None
    result: dict[str, Any] = {}
    continues = None
    for event in tail:
        what = event.get("event")
        if what in _WORKERS and "pid" in event:
            at_it = event
        if what in get_args(Outcome):
            outcome = event
            if isinstance(event.get("result"), dict):
                result.update(event["result"])
        elif what == "progress":
            progress = _progress(event) or progress
        elif what in _TELLING:
            result.update({k: v for k, v in event.items() if k not in ("time", "event")})
        elif what == "continued" and "run" in event:
            continues = event["run"] if is_run_id(event["run"]) else continues
        elif what in _BEGINNINGS or what == "resumed":
            outcome = None
    result = {cut(key): bounded(result[key]) for key in list(result)[:_MOST_FIELDS]}
    last = tail[-1] if tail else {}
    recipe = {} if begun.get("command") or "result" in (outcome or {}) else _recipe(path)
    return _Known(stamp, begun, at_it, last, outcome, progress, result, continues, recipe)


def _record(path: Path, known: _Known) -> RunRecord:
    state: State = "died"
    if known.outcome is not None:
        state = cast(State, known.outcome["event"])
    elif _is_worked_on(path, known):
        state = "running"
    match = _ID.match(path.name)
    kind = cut(known.begun.get("kind")) or (match["kind"] if match else path.name)
    words = known.begun.get("command")
    command = tuple(map(_text, words)) if isinstance(words, list) else ()
    if sum(map(len, command)) > _LONGEST_COMMAND:  # nobody typed it
        command = ()
    over = known.outcome if known.outcome is not None else known.last
    folder = cut(known.recipe.get("folder"))
    job = known.worker.get("job")
    result = {**({"folder": folder} if folder else {}), **known.result}
    return RunRecord(
        path.name,
        kind,
        path,
        state,
        _text(known.begun.get("time")) or _time_of(match["stamp"] if match else ""),
        None if state == "running" else _text(over.get("time")) or None,
        pid_here(known.worker) if state == "running" else None,
        command,
        _title(kind, command, known),
        known.progress,
        _error(known.outcome) if known.outcome is not None else None,
        result,
        (path.with_name(str(job)) if is_run_id(job) else path) / OUTPUT,
    )


def _title(kind: str, command: tuple[str, ...], known: _Known) -> str:
    title = _text(known.begun.get("title"))
    if not title and command:
        title = shlex.join(word for word in command if word not in ("--json", "--yes", "-y"))
    if not title:
        named = next((known.recipe[key] for key in _SHOWN if _text(known.recipe.get(key))), "")
        title = f"{kind} {named}".strip()
    return cut(title[:1].upper() + title[1:])


def _error(outcome: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Those recorded before an error's parts were are taken apart at their lines, as they were put together."""
    if outcome["event"] == "done" or not ("what" in outcome or "error" in outcome):
        return None
    if "what" in outcome:
        return {key: cut(outcome.get(key), 4 * LONGEST) for key in ("what", "why", "hint")}
    what, _, why = cut(outcome.get("error"), 4 * LONGEST).partition("\n")
    return {"what": what, "why": why, "hint": ""}


def _progress(event: Mapping[str, Any]) -> Progress | None:
    done = number(event.get("done"))
    if done is None:
        return None
    return Progress(
        cut(event.get("what")),
        done,
        number(event.get("total")),
        "bytes" if event.get("unit") == "bytes" else "",
    )


def _last_worker(path: Path) -> Mapping[str, Any]:
    """What the whole file says of who works on the run: of a long one that goes on, it may stand in the middle."""
    found: Mapping[str, Any] = {}
    with (path / EVENTS).open("rb") as file:
        for line in file:
            if any(f'"{what}"'.encode() in line for what in _WORKERS):
                event = parse_event(line) or {}
                found = event if event.get("event") in _WORKERS and "pid" in event else found
    return found


def _is_worked_on(path: Path, known: _Known) -> bool:
    """Whether somebody holds the run, and it isn't only what a dead process had started that does."""
    try:
        return _is_held(path) and not (is_gone(known.worker) and is_gone(_last_worker(path)))
    except OSError:
        return False


def _recipe(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((path / RECIPE).read_bytes())
        if isinstance(found, dict):
            return {key: found[key] for key in _SHOWN if isinstance(found.get(key), str)}
    return {}


def _is_held(path: Path) -> bool:
    """Whether somebody works on the run. An own descriptor is asked, which nobody inherits, and only for a moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: nobody knows
        return False
    finally:
        os.close(descriptor)
    return False


def _time_of(stamp: str) -> str:
    """The time in a run's id as events tell it."""
    with suppress(ValueError):
        when = datetime.strptime(stamp, "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        return when.isoformat(timespec="milliseconds")
    return ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
