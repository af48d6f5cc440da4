"""Reading a journal from where it was last read: what is new, and whether what came before is still the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.canonical import parse_object
from adapterhub.errors import FormatError

TAIL_BYTES = 512
"""Bytes before the mark that must be unchanged. Every line has an id or a digest of its own, so they are unique."""


@dataclass(frozen=True)
class Mark:
    """How far a journal was read, and the bytes just before."""

    offset: int
    tail: bytes


@dataclass(frozen=True)
class News:
    """The whole lines behind a mark. With `replaced`, they are all the lines: what was before the mark isn't any more."""

    lines: list[dict[str, Any]]
    mark: Mark
    replaced: bool


def read_news(path: Path, mark: Mark | None) -> News | None:
    """What is new in the journal at `path`; None where nothing is. A torn last line is read when it is whole."""
    data, start = b"", 0
    try:
        with path.open("rb") as file:
            start = mark.offset - len(mark.tail) if mark is not None else 0
            file.seek(start)
            data = file.read()
            # A journal that begins where there was none may be anybody's.
            replaced = mark is None or not mark.offset or not data.startswith(mark.tail)
            if replaced and start:
                start = 0
                file.seek(0)
                data = file.read()
    except FileNotFoundError:
        replaced = mark is None or mark.offset > 0
        start = 0
    kept = 0 if mark is None or replaced else len(mark.tail)
    end = max(kept, data.rfind(b"\n") + 1)
    if end == kept and (not replaced or mark == Mark(0, b"")):
        return None
    lines = [line for text in data[kept:end].split(b"\n") if (line := _parsed(text)) is not None]
    return News(lines, Mark(start + end, data[max(0, end - TAIL_BYTES) : end]), replaced)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(text, "A line of the journal")
    except FormatError:  # the remains of a torn line
        return None
