"""A bar that also tells the run: what is drawn on a terminal, `logs` and the screens read as events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from adapterhub.process import HERE

_EVERY = ((60.0, 0.25), (600.0, 1.0), (float("inf"), 5.0))
"""(work that has taken so many seconds, seconds between two events): what takes long is looked at less closely."""


class _Allowance:
    """So many events at once and so many a second, whatever number of bars a command has."""

    _MOST, _A_SECOND = 8.0, 4.0

    def __init__(self) -> None:
        self._left, self._at = self._MOST, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._MOST, self._left + (now - self._at) * self._A_SECOND)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


_allowance = _Allowance()


class Told:
    """Advances `bar` and writes `progress` events to the run that this process works on."""

    def __init__(
        self, bar: Any, what: str, total: float | None, unit: Literal["", "bytes"] = ""
    ) -> None:
        self._bar = bar
        self._what, self._total, self._unit = what, total, unit
        self._done = 0.0
        self._untold = True
        self._began = self._last = time.monotonic()
        self._tell()

    def advance(self, amount: float = 1, **status: object) -> None:
        """`amount` more units are done."""
        self._bar.advance(amount, **status)
        self._done += amount
        self._untold = True
        passed = time.monotonic() - self._began
        pause = next(pause for most, pause in _EVERY if passed < most)
        if time.monotonic() - self._last >= pause:
            self._tell()

    def update(self, text: str) -> None:
        """Says what is being done now."""
        self._bar.update(text)
        if text != self._what:
            self._what, self._untold = text, True
            self._tell()

    def end(self) -> None:
        """The last event, where something was done since."""
        if self._untold:
            self._tell()

    def _tell(self) -> None:
        run = HERE.current
        if run is None or not _allowance.take():
            return
        self._last, self._untold = time.monotonic(), False
        done = int(self._done) if self._done == int(self._done) else self._done
        with suppress(OSError):  # work doesn't fail because nobody hears of it
            run.event("progress", what=self._what, done=done, total=self._total, unit=self._unit)


@contextmanager
def told(
    bar: Any, what: str, total: float | None, unit: Literal["", "bytes"] = ""
) -> Iterator[Told]:
    """`bar`, telling the run while the block runs."""
    found = Told(bar, what, total, unit)
    try:
        yield found
    finally:
        found.end()
