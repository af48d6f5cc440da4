"""A budget of memory that the threads of one computation share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

DEFAULT = 512 * 2**20
"""Bytes of dense deltas held at a time, all workers together."""


class Memory:
    """At most `limit` bytes are reserved at any time; who wants more than is free waits."""

    def __init__(self, limit: int = DEFAULT) -> None:
        self.limit = limit
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def reserved(self, size: int) -> Iterator[bool]:
        """Reserves `size` bytes while the block runs; gives False, at once, where they can never be had."""
        if size > self.limit:
            yield False
            return
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self.limit)
            self._used += size
        try:
            yield True
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
