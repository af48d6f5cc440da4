"""A column of the data that training doesn't look at: the kind of task, the language, where a row came from."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub.data.files import Paths, find_files
from adapterhub.data.records import read_records
from adapterhub.data.rows import Example
from adapterhub.errors import UsageError
from adapterhub.words import did_you_mean


def column_of(paths: Paths, rows: Sequence[Example], column: str) -> tuple[str, ...]:
    """What `column` says of each of `rows`, which were read from `paths`; empty where a record hasn't got it.

    UsageError where no record has it.
    """
    found: dict[tuple[str, int], str] = {}
    known: dict[str, None] = {}
    for file in find_files(paths, lambda _: None):
        for number, record in read_records(file.path, file.name):
            if isinstance(record, dict):
                known.update(dict.fromkeys(map(str, record)))
                if record.get(column) is not None:
                    found[file.name, number] = str(record[column])
    if not found:
        raise UsageError(
            f"The data have no column '{column}'.",
            why=did_you_mean(column, known) or f"They have: {', '.join(known)}.",
        )
    return tuple(found.get((row.file, row.number), "") for row in rows)
