"""A table of evaluations in words: titles, cells with their sign, and everything about the cell under the cursor.

A verdict has a sign beside its colour. Numbers and verdicts are those that were attested.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from adapterhub.cli.output import clean
from adapterhub.perplexity import growth, loss_in_words
from adapterhub.tui.evaluations.reading import Seen
from adapterhub.tui.facts import MOST_LINES, Fact, Section, moment, said
from adapterhub.words import counted, short

if TYPE_CHECKING:  # numpy comes with it
    from adapterhub.evaluate.side_by_side import Cell, Column, Line, Table
    from adapterhub.evaluated import Difference

SIGNS = {"better": "▲", "same": "=", "worse": "▼"}
LEGEND = "▲ better than the base   = no difference shown   ▼ worse"
NOTHING = "–"
_LONGEST = 24
"""Cells of a column's title."""
_MEANS = {
    "better": "better than the base",
    "same": "no difference from the base was shown",
    "worse": "worse than the base",
}


def what(table: Table) -> str:
    """What a table is about: `forgetting, 42 rows`."""
    condition = table.condition
    if (named := condition.suite or condition.harness) is not None:
        name = named
    elif table.path:
        name = table.path.rpartition("/")[2]
    else:
        name = f"data @{short(condition.data)}"
    return clean(name) + (f", {counted(table.count, 'row')}" if table.count is not None else "")


def title(seen: Seen, place: int) -> str:
    """What stands above the table: what it is about, and that there are more."""
    table = seen.tables[place]
    more = f" · {place + 1} of {len(seen.tables)}, ] next" if len(seen.tables) > 1 else ""
    return f"{what(table)}{', ' + table.remark if table.remark else ''}{more}"


def heading(column: Column) -> tuple[str, str]:
    """Two lines above a column: the part of the data, and what was measured."""
    part = "all rows" if column.part is None else column.part or "the rest"
    return _cut(clean(part)), _cut(clean(column.measure))


def number(cell: Cell | None, column: Column) -> tuple[str, str]:
    """The number, to four digits of a perplexity and three of a measure, and the sign of the verdict."""
    if cell is None:
        return NOTHING, " "
    verdict = cell.against.verdict if cell.against else None
    told = f"{cell.value:#.4g}" if _relative(column) else f"{cell.value:#.3g}"
    return told.rstrip("."), SIGNS.get(verdict or "", " ")


def interval(cell: Cell | None, column: Column) -> str:
    """Between which values the difference from the base lies: `-15 to -12.1%`, `+0.02 to +0.18`."""
    if cell is None or cell.against is None:
        return ""
    if _relative(column):
        return "{:+.3g} to {:+.3g}%".format(*_percents(cell.against)[1:])
    return f"{cell.against.low:+.3g} to {cell.against.high:+.3g}"


def in_words(
    seen: Seen, table: Table, line: Line | None, column: Column | None, command: str
) -> tuple[Section, ...]:
    """Everything below the table, the cell under the cursor first."""
    sections = [_conditions(table), *_absent(seen, table), *_others(seen, table)]
    if command:
        asks = "The rest, beside the base" if table.absent else "Again, beside the base"
        file = "" if table.path or "FILE" not in command else "; name the file"
        fact = Fact("", clean(command), "strong")
        sections.insert(1, Section(f"{asks}: y copies{file}", (fact,)))
    if line is not None and column is not None:
        sections.insert(0, Section(*_here(table, line, column)))
    return tuple(section for section in sections if section.facts)


def _here(table: Table, line: Line, column: Column) -> tuple[str, tuple[Fact, ...]]:
    part = "" if column.part is None else f"{clean(column.part) or 'the rest'}: "
    name = f"{clean(line.name)}, {part}{clean(column.measure)}"
    cell = line.cells.get(column)
    if cell is None:
        return name, (Fact("", "Nothing was measured here."),)
    facts = [Fact(_cut(clean(column.measure)), said(cell.value), "strong")]
    if line.digest is not None:
        theirs = table.base[0].cells.get(column) if table.base else None
        facts.append(Fact("base", said(theirs.value) if theirs else "not evaluated beside it"))
    if cell.against is not None:
        facts.append(Fact("against base", _against(cell.against, column), "strong"))
        verdict = cell.against.verdict
        told = _MEANS[verdict] if verdict else "neither better nor worse: more is neither"
        facts.append(Fact("verdict", f"{SIGNS.get(verdict or '', '')} {told}".strip()))
    if column.answers is not None:
        facts.append(Fact("answers", f"of at most {counted(column.answers, 'token')}"))
    if column.identity not in ("", column.measure):
        facts.append(Fact("which is", clean(column.identity)))
    if line.digest is None:
        facts.append(Fact("", f"as it was beside the adapters, last {moment(cell.created)}"))
    else:
        facts.append(Fact("evaluated", moment(cell.created)))
    if line.remark:
        facts.append(Fact("", line.remark, "warning"))
    return name, tuple(facts)


def _against(against: Difference, column: Column) -> str:
    """`-13.5% (-15 to -12.1)`; of measures as they are."""
    if _relative(column):
        told = loss_in_words("", against.estimate, against.low, against.high)
        return told.removeprefix(", ")
    return f"{against.estimate:+.3g} ({against.low:+.3g} to {against.high:+.3g})"


def _conditions(table: Table) -> Section:
    condition = table.condition
    facts = []
    if table.remark:
        facts.append(Fact("", table.remark, "warning"))
    digest = condition.rows or condition.data
    facts.append(Fact("on", f"{what(table)}, {said(digest)}"))
    base = clean(table.repo) or "not recorded"
    facts.append(Fact("base", base + (f", {said(condition.base)}" if condition.base else "")))
    told = {key: value for key, value in condition.settings.items() if value is not None}
    if told:
        facts.append(Fact("settings", said(told)))
    facts += [Fact(_cut(clean(key)), said(value)) for key, value in condition.others.items()]
    if table.left_out:
        facts.append(Fact("", f"and {table.left_out} more columns: adapterhub show", "warning"))
    return Section("All of this table", tuple(facts))


def _absent(seen: Seen, table: Table) -> Iterator[Section]:
    facts = [Fact(_cut(clean(one.name)), clean(one.why)) for one in table.absent]
    facts += [
        Fact(_cut(clean(name)), clean(problem.what), "warning") for name, problem in seen.problems
    ]
    yield Section("Not in this table", tuple(facts))


def _others(seen: Seen, table: Table) -> Iterator[Section]:
    others = [one for one in seen.tables if one is not table]
    facts = [Fact("", _offered(one)) for one in others[:MOST_LINES]]
    if len(others) > MOST_LINES:
        facts.append(Fact("", f"and {len(others) - MOST_LINES} more"))
    yield Section("Evaluated on, too", tuple(facts))


def _offered(table: Table) -> str:
    names = ", ".join(clean(line.name) for line in table.lines)
    return f"{what(table)}: {names}" + (f" ({table.remark})" if table.remark else "")


def about(table: Table) -> str:
    """What tells a table from others on the same, where one is chosen."""
    unusual = {
        key: value
        for key, value in table.condition.settings.items()
        if key in ("limit", "max_rows", "max_length", "split", "split_seed") and value
    }
    names = ", ".join(clean(line.name) for line in table.lines[:3])
    told = [names, said(unusual) if unusual else "", table.remark]
    return "; ".join(one for one in told if one)


def _relative(column: Column) -> bool:
    return column.measure == "perplexity"


def _percents(against: Difference) -> list[float]:
    return [
        100 * growth(one) if math.isfinite(one) else one
        for one in (against.estimate, against.low, against.high)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
