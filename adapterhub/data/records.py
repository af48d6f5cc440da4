"""Records out of files of every kind: .json, .jsonl, .csv, .parquet and .txt.

A record has the number by which people find it: the place in a .json list and in a .parquet table, from 1; the line of a
.jsonl or .txt file; in a .csv file the row as a spreadsheet counts it, the header being 1.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapterhub.errors import FormatError, MissingDependencyError, UsageError

Records = Iterator[tuple[int, object]]


def read_records(path: Path, name: str) -> Records:
    """The records of the file with their numbers; `name` is what errors call it.

    Raises FormatError (not what its ending says), UsageError (an unknown ending) and MissingDependencyError (.parquet).
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"{name} can't be read: its name must end in {', '.join(ENDINGS)}.",
            hint="Other kinds of file must be converted first.",
        )
    return reader(path, name)


def _text(path: Path, name: str) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # CSV tells its own line ends
            return file.read()
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} is not UTF-8 text.", why=str(error)) from error


def _json(text: str, what: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON.", why=str(error)) from error
    return value


def _json_file(path: Path, name: str) -> Records:
    text = _text(path, name)
    if _is_json_lines(text):
        yield from _json_lines(text, name)
        return
    value = _json(text, name)
    if not isinstance(value, list):
        raise FormatError(
            f"{name} must hold a list of rows.", why=f"It holds a {type(value).__name__}."
        )
    yield from enumerate(value, start=1)


def _is_json_lines(text: str) -> bool:
    """Whether a .json file has one object a line, as many on the Hub do, and not one list."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(text: str, name: str) -> Records:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _json(line, f"{name}, line {number}")


def _jsonl_file(path: Path, name: str) -> Records:
    return _json_lines(_text(path, name), name)


def _text_file(path: Path, name: str) -> Records:
    for number, line in enumerate(_text(path, name).split("\n"), start=1):
        if line.strip():
            yield number, {"text": line.strip()}


def _csv_file(path: Path, name: str) -> Records:
    rows = _csv_rows(_text(path, name), name)
    header = next(rows, [])
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise FormatError(
            f"The columns of {name} are not separated by commas.",
            why=f"Its first line is {header[0][:80]!r}.",
            hint="Save it with commas, and texts that hold commas in double quotes.",
        )
    if len(set(header)) != len(header):
        raise FormatError(f"Two columns of {name} have the same name.", why=", ".join(header))
    for number, cells in enumerate(rows, start=2):
        if len(cells) > len(header) or (cells and len(cells) < len(header)):
            raise FormatError(
                f"Row {number} of {name} has {len(cells)} cells, and the header has {len(header)}.",
                hint="A text that holds a comma or a line break must stand in double quotes.",
            )
        if cells:
            yield number, dict(zip(header, cells, strict=True))


def _csv_rows(text: str, name: str) -> Iterator[list[str]]:
    limit = csv.field_size_limit(sys.maxsize)  # the usual one is 128 kB, and answers may be longer
    try:
        yield from csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise FormatError(f"{name} is not a sound CSV file.", why=str(error)) from error
    finally:
        csv.field_size_limit(limit)


def _parquet_file(path: Path, name: str) -> Records:
    if find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{name} needs pyarrow, which isn't installed.", hint="pip install 'adapterhub[train]'"
        )
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, _without_nulls(record)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        said = str(error).split("\n")[0]
        raise FormatError(f"{name} can't be read as Parquet.", why=said) from error


def _without_nulls(value: Any) -> Any:
    """The record without the keys that other records have: Arrow fills those with nulls, also inside a tool call."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


_READERS: dict[str, Callable[[Path, str], Records]] = {
    ".json": _json_file,
    ".jsonl": _jsonl_file,
    ".csv": _csv_file,
    ".parquet": _parquet_file,
    ".txt": _text_file,
}
ENDINGS = tuple(_READERS)
