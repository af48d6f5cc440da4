"""How much anonymous memory a program or a call has at most: what it allocates, without the files it maps."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.timing import Timed, inside

STEP = 0.004
"""Seconds between two looks; a peak that is shorter may be missed."""


@dataclass(frozen=True)
class Weighed(Timed):
    """Seconds of one thing, and the bytes of anonymous memory it had at its peak."""

    peak: float


def anonymous(pid: int | None = None) -> int:
    """Bytes of anonymous memory the process has now, this one by default; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = next((line for line in status.splitlines() if line.startswith("RssAnon:")), None)
    return int(found.split()[1]) * 1024 if found else 0


def weighed_process(
    what: str,
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> Weighed:
    """One run of a program, `env` added to its environment.

    Raises subprocess.TimeoutExpired when it runs for more than `limit` seconds, and is killed; RuntimeError, with what
    it said, when it fails.
    """
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=said, env={**os.environ, **(env or {})}
        )
        try:
            while process.poll() is None:
                peak = max(peak, anonymous(process.pid))
                if limit is not None and time.perf_counter() - began > limit:
                    raise subprocess.TimeoutExpired(command, limit)
                time.sleep(STEP)
        finally:
            process.kill()  # nothing, when it has ended
            process.wait()
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{what} ended with {process.returncode}:\n{said.read()}")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Weighed(what, wall, cpu, peak)


def weighed_inside(what: str, work: Callable[[], object]) -> Weighed:
    """One call in this process; the peak is what it has beyond what was there before it."""
    start = peak = anonymous()
    ended = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(STEP):
            peak = max(peak, anonymous())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        timed = inside(what, work)
    finally:
        ended.set()
        looking.join()
    return Weighed(what, timed.wall, timed.cpu, peak - start)
