"""Work in a process of its own: `adapterhub ...` started as a run that outlives whoever started it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.alive import worker
from adapterhub.errors import ConflictError, ExternalToolError
from adapterhub.fsio import in_words, remove
from adapterhub.handover import VARIABLE
from adapterhub.runs import OUTPUT, Run, RunRecord, read_run, worker_of

_started: list[subprocess.Popen[bytes]] = []
"""Processes that may run still: Python warns of one that is forgotten, and here that is what is wanted."""


@dataclass(frozen=True)
class Job:
    """A run and the process that works on it."""

    run: Run
    process: subprocess.Popen[bytes]


def start(
    runs: Path, words: Sequence[str], *, kind: str, title: str, home: Path | None = None
) -> Job:
    """Starts `adapterhub WORDS` as a run of this kind below `runs`. Raises AdapterHubError where that can't be done.

    Args:
        home: the store's, where it isn't that of this process.

    The run's folder is there and locked before the process is; what the command would print as JSON is its result.json.
    """
    try:
        run = Run.folder(runs, kind)
    except OSError as error:
        raise in_words(error) from error
    lock = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A disk that takes no event is found out before anything runs.
        run.event("started", kind=kind, title=title, command=list(words))
        process = _process(run, _as_json(words), lock, home)
        try:
            run.event("working", **worker(process.pid))
        except OSError:
            os.killpg(process.pid, signal.SIGKILL)  # it has hardly begun to load
            process.wait()
            raise
    except OSError as error:
        remove(run.path)
        raise ExternalToolError(
            f"adapterhub {kind} could not be started.", why=f"{error.strerror or error}."
        ) from error
    finally:
        os.close(lock)  # the process has its own
    _started[:] = [*(one for one in _started if one.poll() is None), process]
    return Job(run, process)


def stop(record: RunRecord) -> None:
    """Tells the process that works on the run to stop, as Ctrl-C does; it leaves the store whole and then ends.

    ConflictError where nobody works on it, or not on this machine.
    """
    now = read_run(record.path)
    if now.state != "running":
        raise ConflictError(
            f"The run {now.id} is not running.",
            why=f"Its state is: {now.state}.",
            hint="adapterhub ps",
        )
    pid = worker_of(now.path)
    if pid is None:
        raise ConflictError(
            f"The run {now.id} can't be stopped from here.",
            why="Its process is gone, on another machine, or of an older adapterhub.",
            hint="Press Ctrl-C where it runs.",
        )
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        raise ConflictError(
            f"The run {now.id} has just ended.", hint="adapterhub ps --all"
        ) from None
    except PermissionError:
        raise ConflictError(
            f"The run {now.id} can't be stopped.", why=f"Process {pid} is somebody else's."
        ) from None


def _process(
    run: Run, words: Sequence[str], lock: int, home: Path | None
) -> subprocess.Popen[bytes]:
    # A request to stop waits until the new process can take it: it inherits what this thread holds back.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with (run.path / OUTPUT).open("wb") as output:
            return subprocess.Popen(
                # -P: no module of the folder where somebody stands takes the place of one of ours.
                [sys.executable, "-P", "-m", "adapterhub.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    **os.environ,
                    **({"ADAPTERHUB_HOME": str(home.absolute())} if home else {}),
                    VARIABLE: f"{run.path.absolute()}:{lock}",
                },
                pass_fds=(lock,),
                start_new_session=True,
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_json(words: Sequence[str]) -> list[str]:
    """With --json, before the words that belong to somebody else."""
    if "--json" in words:
        return list(words)
    end = list(words).index("--") if "--" in words else len(words)
    return [*words[:end], "--json", *words[end:]]
