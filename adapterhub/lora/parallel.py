"""Work over modules on several cores with bits that don't depend on how many.

QR, SVD and sums change their last bits with the number of BLAS threads, so each module is computed by one thread with
one BLAS thread, and modules run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from adapterhub import parallel

T = TypeVar("T")
R = TypeVar("R")


def for_each(
    items: Sequence[T], work: Callable[[T], R], *, workers: int | None, done: Callable[[], None]
) -> list[R]:
    """parallel.for_each where torch computes with one thread in each worker."""
    with one_thread():
        return parallel.for_each(
            items, work, workers=workers, done=done, starting=partial(torch.set_num_threads, 1)
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread while the block runs: on small pieces more of them mostly wait, and burn time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
