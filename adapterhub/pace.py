"""How fast work goes and how long it still takes, by what was last seen of it."""

from __future__ import annotations

from collections import deque

_SECONDS = 8.0
"""What lies further back says nothing about now."""


class Pace:
    """Told from time to time how much is done."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def see(self, done: float, now: float) -> None:
        """`done` units are done at `now` (seconds of any clock). Less than before begins anew."""
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _SECONDS:
            self._seen.popleft()

    @property
    def speed(self) -> float | None:
        """Units a second; None while nobody can tell."""
        if len(self._seen) < 2:
            return None
        (began, before), (ended, done) = self._seen[0], self._seen[-1]
        return (done - before) / (ended - began) if ended > began else None

    def left(self, total: float | None) -> float | None:
        """Seconds until `total` are done."""
        speed = self.speed
        if not speed or total is None:
            return None
        return max(0.0, total - self._seen[-1][1]) / speed
