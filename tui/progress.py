"""How far work in a thread has come, told to the screen; and its end when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_SECONDS = 0.1
"""Between two tellings."""


@dataclass(frozen=True)
class Far:
    """What is being done, and how far it is; `total` is None where nobody knows."""

    what: str
    done: float = 0
    total: float | None = None

    def __str__(self) -> str:
        return f"{self.what} {self.done / self.total:.0%}" if self.total else f"{self.what} …"


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Nobody waits for the work any more."""


class Watched:
    """What the hub's functions take as `progress`. Made on the event loop; `tell` is called there."""

    def __init__(self, tell: Callable[[Far], None]) -> None:
        self._loop, self._tell = asyncio.get_running_loop(), tell
        self._stopped = False

    def stop(self) -> None:
        """Ends the work at its next step."""
        self._stopped = True

    @contextmanager
    def __call__(self, what: str, total: float | None) -> Iterator[Bar]:
        yield Bar(self, what, total)

    def told(self, far: Far) -> None:
        """Called in the thread that works."""
        if self._stopped:
            raise Stopped
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._hear, far)

    def _hear(self, far: Far) -> None:
        if not self._stopped:
            self._tell(far)


class Bar:
    """One piece of the work."""

    def __init__(self, watched: Watched, what: str, total: float | None) -> None:
        self._watched, self._what, self._total = watched, what, total
        self._done, self._last = 0.0, time.monotonic()
        watched.told(Far(what, 0, total))

    def advance(self, amount: float = 1, **_: object) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last >= _SECONDS:
            self._last = now
            self._watched.told(Far(self._what, self._done, self._total))

    def update(self, description: str) -> None:
        """Something else is being done now."""
        self._what = description
