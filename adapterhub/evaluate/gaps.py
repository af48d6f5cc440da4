"""The command line that would fill what is missing in a table of evaluations: the same rows, settings and measures again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from adapterhub.evaluate.side_by_side import JUDGE, Table
from adapterhub.evaluate.subjects import BASE
from adapterhub.evaluate.suite import PASSED

FILE = "FILE"
"""Stands for data whose file nothing tells."""
SERVER = "URL"
"""Stands for a server, whose address nothing tells."""

_OPTIONS = {
    "split": ("--split", "held_out"),
    "held_out": ("--held-out", 0.1),
    "split_seed": ("--split-seed", 0),
    "limit": ("--limit", None),
    "max_rows": ("--max-rows", None),
    "max_length": ("--max-length", 1024),
    "dtype": ("--dtype", "float32"),
}
"""Of each setting its option, and the value that needs no saying."""
_OF_THE_SPLIT: tuple[str, ...] = ("split", "held_out", "split_seed", "limit")
"""A suite isn't split, nor is a task of the harness."""
_USUAL_ANSWER = 256


def missing(table: Table) -> tuple[str, ...]:
    """Who has no numbers in the table, or none beside the base's."""
    alone = [
        line.name
        for line in table.lines
        if any(column not in line.cells for column in table.columns)
        or any(cell.against is None for column, cell in line.cells.items() if column.part is None)
    ]
    return (*alone, *(one.name for one in table.absent))


def command(table: Table) -> str:
    """What evaluates those beside the base; all of them where nothing is missing.

    A judge is not among it: its address isn't attested. Empty where what would have to be typed isn't text: an
    attestation may hold anything.
    """
    names = missing(table) or tuple(line.name for line in table.lines)
    words = ["adapterhub", "eval", BASE, *names, *_rows(table), *_answers(table)]
    return shlex.join(words) if all(word.isprintable() for word in words) else ""


def _rows(table: Table) -> Iterator[str]:
    condition, unsaid = table.condition, _OF_THE_SPLIT
    if condition.suite is not None:
        yield from ("--suite", condition.suite)
    elif condition.harness is not None:
        yield from ("--harness", condition.harness)
        unsaid = (*unsaid, "max_length")
    else:
        unsaid = ()
        yield from ("--data", table.path or FILE)
    for key, (option, usual) in _OPTIONS.items():
        value = condition.settings.get(key, usual)
        if value != usual and key not in unsaid and isinstance(value, int | float | str):
            yield from (option, f"{value:g}" if isinstance(value, float) else str(value))
    if condition.settings.get("server") is not None:
        yield from ("--server", SERVER)


def _answers(table: Table) -> Iterator[str]:
    if table.condition.harness is not None:
        return  # its tasks say how long an answer is
    asked = [one for one in table.columns if one.answers is not None]
    measures = [
        name
        for name in dict.fromkeys(one.measure for one in asked)
        if name != PASSED.name and name.partition("=")[0] != JUDGE
    ]
    for name in measures:
        yield from ("--measure", name)
    lengths = [one.answers for one in asked]
    answered = measures or table.condition.suite is not None
    if answered and lengths and lengths[0] != _USUAL_ANSWER:
        yield from ("--max-new-tokens", str(lengths[0]))
