"""A run's events as a file of lines, of which a killed process or a full disk may have left one torn."""

from __future__ import annotations

import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapterhub.fsio import write_file

Event = dict[str, Any]
LONGEST = 500
"""Characters of a string that is shown; the file has the whole."""
_HEAD, _TAIL = 16 * 2**10, 64 * 2**10
_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")


def is_run_id(found: object) -> bool:
    """Whether it may be the id of a run: the name of a folder, which leads nowhere else."""
    return isinstance(found, str) and _RUN_ID.match(found) is not None


def parse_event(line: bytes) -> Event | None:
    """The event of a whole line; None where it is none. Integers that no counter reaches are None."""
    with suppress(ValueError, RecursionError):
        if line.endswith(b"\n"):
            event = json.loads(line, parse_int=_whole)
            return event if isinstance(event, dict) else None
    return None


def cut(found: object, most: int = LONGEST) -> str:
    """A string, no longer than what is shown; empty where it is none."""
    if not isinstance(found, str):
        return ""
    return found if len(found) <= most else found[: most - 1] + "…"


def bounded(value: object) -> Any:
    """A field as it is shown: numbers are finite, strings are cut, and what is larger than that is None."""
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict | list):
        with suppress(ValueError, RecursionError):
            return value if len(json.dumps(value, allow_nan=False)) <= 4 * LONGEST else None
        return None
    return value


def number(value: object) -> float | None:
    """A finite number; None where it is none."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) <= 20 and abs(int(digits)) < 2**63 else None


def parse_events(data: bytes) -> list[Event]:
    """The events of the whole lines; a line that is being written, or was torn, is none."""
    found = map(parse_event, data.splitlines(keepends=True))
    return [event for event in found if event is not None]


def ends(file: int, size: int) -> tuple[list[Event], list[Event]]:
    """The first events of an open file and the last ones, so that a long one isn't read for them; a short one is read once."""
    tail = _TAIL
    if size <= _HEAD + tail:
        events = parse_events(os.pread(file, size, 0))
        return events, events
    head = os.pread(file, _HEAD, 0)
    while True:  # one event may be longer than that
        data = os.pread(file, tail, size - tail)
        if tail < size:
            data = data.partition(b"\n")[2]
        if (events := parse_events(data)) or tail == size:
            return parse_events(head[: head.rfind(b"\n") + 1]), events
        tail = min(4 * tail, size)


def drop_broken_lines(path: Path) -> None:
    """Takes away what is torn, so that what comes after it can be read."""
    if not path.is_file():
        return
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    whole = b"".join(line for line in lines if parse_event(line) is not None)
    if whole != data:
        write_file(path, whole, path.parent)
