"""Taking times for benchmarks: medians of several runs, taken in turns, beside what they are compared with.

The machine has other things to do too, so a number alone says little: ratios within one run do. CPU seconds don't count
what other processes did meanwhile.
"""

from __future__ import annotations

import math
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", bound="Timed")


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


def median(taken: Sequence[T]) -> T:
    """One of them with every number replaced by the median of that number."""
    numbers = [part.name for part in fields(taken[0]) if part.name != "what"]
    return replace(
        taken[0],
        **{name: statistics.median(getattr(one, name) for one in taken) for name in numbers},
    )


def medians(runs: int, *things: Callable[[], T], patience: float = math.inf) -> list[T]:
    """Each thing `runs` times, in turns, so that a busy moment meets all of them.

    What takes more than `patience` seconds the first time is done once.
    """
    taken = [[thing()] for thing in things]
    for _ in range(runs - 1):
        for column, thing in zip(taken, things, strict=True):
            if column[0].wall <= patience:
                column.append(thing())
    return [median(column) for column in taken]


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
