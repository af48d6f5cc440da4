"""A log that somebody else writes, as its lines come."""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 64 * 1024
_MOST_CHARACTERS = 400


class Tail:
    """A log as it grows. It may be gone, not be there yet, or be cut short: then it is read from its beginning."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._at: int | None = None

    def new(self, most: int) -> list[str]:
        """The whole lines since the last call, at the first call those at its end; never more than the last `most`."""
        window = max(_TAIL_BYTES, most * _MOST_CHARACTERS)
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, 2)
                begin = 0 if self._at is None or self._at > size else self._at
                file.seek(max(begin, size - window))
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at = max(begin, size - window) + len(whole)
        lines = [shown_line(line) for line in whole.decode("utf-8", "replace").split("\n")[:-1]]
        return lines[-most:] if most > 0 else []


def shown_line(line: str) -> str:
    """What a terminal would show of it: a progress bar draws over itself."""
    return line.removesuffix("\r").rpartition("\r")[2]
