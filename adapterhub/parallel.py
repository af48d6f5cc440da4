"""Work over items on several threads, which Ctrl-C and errors end cleanly."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from adapterhub.interrupts import deferred_signals

T = TypeVar("T")
R = TypeVar("R")

_HEED = 0.05
"""Seconds after which a Ctrl-C is noticed at the latest."""


def for_each(
    items: Sequence[T],
    work: Callable[[T], R],
    *,
    workers: int | None,
    done: Callable[[], object],
    starting: Callable[[], object] = lambda: None,
) -> list[R]:
    """[work(item) for item in items], `workers` at a time (default: one a core); `done` is called after each.

    `starting` is called once in every thread. Ctrl-C and errors stop what hasn't begun, wait for what has, and go on up.
    """
    with deferred_signals() as deliver:
        return _pooled(items, work, workers or os.cpu_count() or 1, done, starting, deliver)


def _pooled(
    items: Sequence[T],
    work: Callable[[T], R],
    workers: int,
    done: Callable[[], object],
    starting: Callable[[], object],
    deliver: Callable[[], None],
) -> list[R]:
    """A function of its own, so that the pool is gone, weak references and all, before signals arrive again."""
    finished: SimpleQueue[Future[R]] = SimpleQueue()
    pool = ThreadPoolExecutor(workers, initializer=starting)
    try:
        futures = [pool.submit(work, item) for item in items]
        for future in futures:
            future.add_done_callback(finished.put)
        for _ in futures:
            _next(finished, deliver).result()
            done()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _next(finished: SimpleQueue[Any], deliver: Callable[[], None]) -> Future[Any]:
    """The next one that is finished; signals are heard while it waits."""
    while True:
        deliver()
        try:
            found: Future[Any] = finished.get(timeout=_HEED)
            return found
        except Empty:
            continue
