"""Files to rows: everything is read, and what is faulty is known by its file and number.

A file with faults is refused whole, because a silently dropped row is a silently different data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from adapterhub.data.files import DataFile, Note, Paths, find_files
from adapterhub.data.formats import FORMATS, convert_row, detect_format
from adapterhub.data.preferences import KEYS, convert_preference
from adapterhub.data.records import read_records
from adapterhub.data.rows import Example, Preference, Row
from adapterhub.data.turns import RowError
from adapterhub.errors import FormatError, UsageError
from adapterhub.words import briefly

R = TypeVar("R", bound=Example)

PREFERENCE = "preference"
_SHOWN_FAULTS = 5
_Read = tuple[DataFile, list[tuple[int, object]], str]


@dataclass(frozen=True)
class Fault:
    """Why a row can't be used."""

    file: str
    number: int
    words: str

    @property
    def where(self) -> str:
        """`file:number`, for people."""
        return f"{self.file}:{self.number}"


@dataclass(frozen=True)
class ReadFile:
    """A file that was read: its name and source (with the commit, of one on the Hub), its format, and what was not used of it."""

    name: str
    source: str
    format: str
    rows: int
    unused: tuple[str, ...]
    """Columns that the format knows nothing of."""


@dataclass(frozen=True)
class Scan(Generic[R]):
    """What is in the files: the sound rows in their order, and the faulty ones."""

    rows: tuple[R, ...]
    faults: tuple[Fault, ...]
    files: tuple[ReadFile, ...]

    def sound(self) -> tuple[R, ...]:
        """The rows; FormatError, which lists the first faulty ones, where not all are sound."""
        if not self.faults:
            return self.rows
        first = self.faults[0].file
        hurt = [file for file in self.files if any(f.file == file.name for f in self.faults)]
        alone = len(hurt) == 1
        name = first if alone else f"{len(hurt)} files"
        total = sum(file.rows for file in hurt)
        shown = "; ".join(
            ("" if alone else f"{fault.file}, ") + f"row {fault.number}: {fault.words}"
            for fault in self.faults[:_SHOWN_FAULTS]
        )
        more = len(self.faults) - _SHOWN_FAULTS
        raise FormatError(
            f"{name} {'has' if alone else 'have'} {len(self.faults)} faulty row(s) of {total}"
            f" (read as {', '.join(sorted({file.format for file in hurt}))}).",
            why=shown + (f"; and {more} more" if more > 0 else "") + ".",
            hint="Correct or delete these rows; nothing is dropped silently."
            + (
                f" All of them: adapterhub data report {hurt[0].source} --format {hurt[0].format}"
                if more > 0
                else ""
            ),
        )


def read_data(paths: Paths, fmt: str | None = None, note: Note = lambda _: None) -> tuple[Row, ...]:
    """All rows of files, folders and `hf://datasets/...`, in order; `fmt` None: told from each file's first row.

    Raises NotFoundError (nothing there), UsageError (unknown format or ending), FormatError (faulty rows, by number) and
    what `find_files` raises for the Hub.
    """
    return scan_rows(paths, fmt, note).sound()


def read_rows(path: Path | str, fmt: str | None = None) -> tuple[Row, ...]:
    """As `read_data`, of one path."""
    return read_data(path, fmt)


def read_preferences(paths: Paths, note: Note = lambda _: None) -> tuple[Preference, ...]:
    """All preferences of the files, in order. Raises what `read_data` raises."""
    return scan_preferences(paths, note).sound()


def scan_rows(paths: Paths, fmt: str | None = None, note: Note = lambda _: None) -> Scan[Row]:
    """As `read_data`, but faulty rows are listed and not raised."""
    return _rows(_read(paths, fmt, note))


def scan_preferences(paths: Paths, note: Note = lambda _: None) -> Scan[Preference]:
    """As `read_preferences`, but faulty rows are listed and not raised."""
    return _preferences(_read(paths, PREFERENCE, note))


def scan_any(
    paths: Paths, fmt: str | None = None, note: Note = lambda _: None
) -> Scan[Row] | Scan[Preference]:
    """Rows or preferences, whichever the files hold."""
    read = _read(paths, fmt, note)
    if all(chosen == PREFERENCE for _, _, chosen in read):
        return _preferences(read)
    return _rows(read)


def _read(paths: Paths, fmt: str | None, note: Note) -> list[_Read]:
    known = [*FORMATS, PREFERENCE]
    if fmt is not None and fmt not in known:
        raise UsageError(f"'{fmt}' is not a data format.", hint=f"Use one of: {', '.join(known)}.")
    found: list[_Read] = []
    for file in find_files(paths, note):
        records = list(read_records(file.path, file.name))
        if not records:
            raise FormatError(f"{file.name} has no rows.")
        found.append((file, records, fmt or detect_format(records[0][1], file.name)))
    return found


def _rows(read: Sequence[_Read]) -> Scan[Row]:
    for file, _, fmt in read:
        if fmt == PREFERENCE:
            raise UsageError(
                f"{file.name} holds preferences: a chosen and a rejected answer to each question.",
                why="Here one answer is learned, and which of the two is not for us to guess.",
                hint="Train on preferences with `objective: dpo`, or make rows of the chosen answers.",
            )
    return _scan(read, convert_row, lambda fmt: FORMATS[fmt].keys)


def _preferences(read: Sequence[_Read]) -> Scan[Preference]:
    return _scan(read, lambda _, *record: convert_preference(*record), lambda _: KEYS)


def _scan(
    read: Sequence[_Read], convert: Callable[..., R], keys: Callable[[str], frozenset[str]]
) -> Scan[R]:
    rows: list[R] = []
    faults: list[Fault] = []
    files: list[ReadFile] = []
    for file, records, fmt in read:
        columns: dict[Any, None] = {}
        for number, record in records:
            if isinstance(record, dict):
                columns.update(dict.fromkeys(record))
            try:
                rows.append(convert(fmt, record, file.name, number))
            except RowError as fault:
                faults.append(Fault(file.name, number, str(fault)))
        unused = tuple(briefly(column) for column in columns if column not in keys(fmt))
        files.append(ReadFile(file.name, file.source, fmt, len(records), unused))
    return Scan(tuple(rows), tuple(faults), tuple(files))
