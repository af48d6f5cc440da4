"""Work over modules on several cores with bits that don't depend on how many.

QR, SVD and sums change their last bits with the number of BLAS threads, so each module is computed by one thread with
one BLAS thread, and modules run side by side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def for_each(
    items: Sequence[T], work: Callable[[T], R], *, workers: int | None, done: Callable[[], None]
) -> list[R]:
    """[work(item) for item in items], `workers` at a time (default: one a core); `done` is called after each.

    Ctrl-C and errors stop what hasn't begun, wait for what has, and go on up.
    """
    pool = ThreadPoolExecutor(
        workers or os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)
    )
    with one_thread():
        try:
            futures = [pool.submit(work, item) for item in items]
            for future in as_completed(futures):
                future.result()
                done()
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread while the block runs: on small pieces more of them mostly wait, and burn time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
