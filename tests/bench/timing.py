"""Taking times for benchmarks: medians of several runs, taken in turns, beside what they are compared with.

The machine has other things to do too, so a number alone says little: ratios within one run do. CPU seconds don't count
what other processes did meanwhile.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Timed:
    """Seconds of one thing: by the clock, and of the processor."""

    what: str
    wall: float
    cpu: float


def process(what: str, command: Sequence[str | Path]) -> Timed:
    """One run of a program, its output thrown away."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(what, wall, cpu)


def inside(what: str, work: Callable[[], object]) -> Timed:
    """One call in this process."""
    cpu, began = time.process_time(), time.perf_counter()
    work()
    return Timed(what, time.perf_counter() - began, time.process_time() - cpu)


def medians(runs: int, *things: Callable[[], Timed]) -> list[Timed]:
    """Each thing `runs` times, in turns, so that a busy moment meets all of them."""
    taken = [[thing() for thing in things] for _ in range(runs)]
    return [
        Timed(
            column[0].what,
            statistics.median(one.wall for one in column),
            statistics.median(one.cpu for one in column),
        )
        for column in zip(*taken, strict=True)
    ]


def compare(rows: Sequence[Timed]) -> None:
    """A table in which the first row is what the others are compared with."""
    first = rows[0]
    print(f"{'':44}{'wall':>10}{'cpu':>10}{'x wall':>8}{'x cpu':>8}")
    for row in rows:
        print(
            f"{row.what:44}{row.wall * 1e3:>7.1f} ms{row.cpu * 1e3:>7.1f} ms"
            f"{row.wall / first.wall:>8.2f}{row.cpu / first.cpu:>8.2f}"
        )
    print()
