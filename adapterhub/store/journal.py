"""The journal: every change of a ref since the store was made, and which of them a crash left unfinished.

Lines are appended and flushed before the refs they tell of change, all lines of one operation together; a `done` line
follows when the refs have changed. An operation without one was cut short: the next writer sees what became of it.
Where a ref and the journal disagree, the ref is right, and the journal still knows both digests.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from adapterhub.canonical import is_digest
from adapterhub.errors import UsageError
from adapterhub.fsio import disk_errors, fsync_directory, open_shared
from adapterhub.names import parse_name
from adapterhub.store.layout import Layout

DONE, CANCEL = "done", "cancel"
SWEEP, RESTORE = "sweep", "restore"
"""What a line without a ref says in `about`, before the id of a trash folder."""
_TAIL = 65536


@dataclass(frozen=True)
class Change:
    """One line of the journal. `before` and `after` are digests; None where the ref did not or does not exist.

    All lines of one operation have its `id`. A line without a `ref` tells `about` something else: a trash folder that was
    filled ("sweep ID") or emptied ("restore ID"), or the operation that is done or cancelled.
    """

    time: str
    who: str
    op: str
    ref: str
    before: str | None
    after: str | None
    why: str
    id: str = ""
    about: str = ""


@dataclass(frozen=True)
class Operation:
    """Changes that belong together: what one command did."""

    id: str
    op: str
    time: str
    who: str
    why: str
    changes: tuple[Change, ...]

    @property
    def refs(self) -> tuple[Change, ...]:
        """The changes of refs."""
        return tuple(change for change in self.changes if change.ref)

    @property
    def trash(self) -> tuple[Change, ...]:
        """What happened to trash folders."""
        return tuple(change for change in self.changes if not change.ref and change.about)


class Journal:
    """The journal of one store. Whoever appends holds its lock."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def lines(self) -> list[Change]:
        """Every line that can be read, oldest first. A torn last line (a crash while appending) is none."""
        try:
            data = self._layout.journal.read_bytes()
        except FileNotFoundError:
            return []
        return _parse(data)

    def damaged(self) -> list[int]:
        """The numbers (from 1) of lines that can't be read, though one that can follows: a crash doesn't do that."""
        try:
            lines = self._layout.journal.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        unread = [number for number, line in enumerate(lines, 1) if _change(line) is None]
        while unread and unread[-1] == len(lines):
            unread.pop()
            lines.pop()
        return unread

    def operations(self) -> list[Operation]:
        """What was done, oldest first, without what a crash cut short and the next writer took back."""
        lines = self.lines()
        cancelled = {line.about for line in lines if line.op == CANCEL}
        return [
            operation
            for operation in _grouped(line for line in lines if line.op not in (DONE, CANCEL))
            if operation.id not in cancelled or not operation.id
        ]

    def releases(self) -> dict[str, list[str]]:
        """For every ref, the digests it had, the present one last.

        Going back (`rollback`, `undo`) shortens the row instead of lengthening it, so that going back again goes further.
        """
        rows: dict[str, list[str]] = {}
        for operation in self.operations():
            for change in operation.refs:
                row = rows.setdefault(change.ref, [])
                if change.after is None or row[-1:] == [change.after]:
                    continue
                if operation.op in ("rollback", "undo") and change.after in row:
                    last = len(row) - row[::-1].index(change.after)
                    del row[last:]
                else:
                    row.append(change.after)
        return rows

    def unfinished(self) -> Operation | None:
        """The last operation, when no line says that it is done."""
        lines = self._tail()
        if not lines or lines[-1].op in (DONE, CANCEL) or not lines[-1].id:
            return None
        return _grouped(lines)[-1]

    def append(self, changes: Sequence[Change], *, durable: bool = True) -> int:
        """Adds the lines and returns the length the journal had; on failure it has that length again."""
        # Folder names on Linux may be any bytes; the journal is UTF-8.
        data = b"".join(
            json.dumps(asdict(change), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
            for change in changes
        )
        return append_lines(self._layout.journal, data, durable=durable)

    def truncate(self, end: int) -> None:
        """Takes the last lines back."""
        with open_shared(self._layout.journal) as file:
            file.truncate(end)
            os.fsync(file.fileno())

    def _tail(self) -> list[Change]:
        """At least all lines of the last operation."""
        size = _TAIL
        while True:
            try:
                with self._layout.journal.open("rb") as file:
                    length = file.seek(0, os.SEEK_END)
                    file.seek(max(0, length - size))
                    data = file.read()
            except FileNotFoundError:
                return []
            whole = len(data) == length
            lines = _parse(data if whole else data.partition(b"\n")[2])
            if whole or (lines and lines[0].id != lines[-1].id):
                return lines
            size *= 4


def append_lines(path: Path, data: bytes, *, durable: bool = True) -> int:
    """Appends whole lines to a journal and returns the length it had; on failure it has that length again."""
    with disk_errors(path), open_shared(path) as file:
        length = file.seek(0, os.SEEK_END)
        end = _end_of_lines(file, length)
        if (
            end < length
        ):  # a crash left half a line, or a whole one without its end: nobody was told of it
            file.truncate(end)
        file.seek(end)
        try:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
                fsync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                os.truncate(path, end)
            raise
    return end


def _end_of_lines(file: BinaryIO, length: int) -> int:
    """Where the last line ends that was written whole. What follows a crash left, and nobody was told of it."""
    size = _TAIL
    while True:
        begin = max(0, length - size)
        file.seek(begin)
        data = file.read(length - begin)
        while (end := data.rfind(b"\n") + 1) and not _is_object(data[:end].rsplit(b"\n", 2)[-2]):
            data = data[: end - 1]
        if end or not begin:
            return begin + end
        size *= 4  # a line may be longer than that


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def new_id() -> str:
    """The id of an operation."""
    return secrets.token_hex(6)


def now(timespec: str = "seconds") -> str:
    """The time in UTC as ISO 8601: whole seconds in the journal, finer where an order depends on it."""
    return datetime.now(UTC).isoformat(timespec=timespec)


def _grouped(lines: Iterable[Change]) -> list[Operation]:
    groups: list[list[Change]] = []
    for line in lines:
        if groups and line.id and groups[-1][0].id == line.id:
            groups[-1].append(line)
        else:
            groups.append([line])
    return [
        Operation(group[0].id, group[0].op, group[0].time, group[0].who, group[0].why, tuple(group))
        for group in groups
    ]


def _parse(data: bytes) -> list[Change]:
    found = (_change(line) for line in data.split(b"\n")[:-1])
    return [change for change in found if change is not None]


def _change(line: bytes) -> Change | None:
    try:
        change = msgspec.json.decode(line, type=Change)
        if change.ref:
            parse_name(change.ref)
        sound = datetime.fromisoformat(change.time).tzinfo is not None
    except (msgspec.MsgspecError, ValueError, RecursionError, UsageError):
        return None
    digests = (change.before, change.after)
    sound = sound and all(digest is None or is_digest(digest) for digest in digests)
    return change if sound else None
