"""Evaluations of several adapters as tables: a line an adapter and the base, a column a number, each beside the base's.

One table holds what may be compared: the same rows of the same data, on the same base, with the same settings. The newest
evaluation of each adapter counts. What doesn't belong there (another version of a suite, another base) is told by name,
not mixed in. Attestations may have been written by anybody: what isn't as expected is no number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from adapterhub.evaluate.baselines import PROMPTED
from adapterhub.evaluate.contexts import RETRIEVED
from adapterhub.evaluate.subjects import BASE
from adapterhub.evaluated import PERPLEXITY, Difference, difference
from adapterhub.manifest import Attestation
from adapterhub.tolerant import finite, inner, mapping, text

JUDGE = "judge"
"""What a judge's verdicts are called among the measures: that, or `judge=...`."""
MOST_COLUMNS = 120
"""Of a table; a column of the data may have any number of values."""

_APART = ("measures", "max_new_tokens", "judge", "system", "contexts")
"""Settings that the perplexity doesn't depend on: what a measure is, and what the base was told in another line."""
_NO_CONDITION = ("metric", "versions", "result", "said", "data", "settings", "base", "suite", "harness")  # fmt: skip
"""What a body holds that either isn't a condition of its numbers, or is looked at by itself."""
_BASELINES = {"prompted": PROMPTED, "retrieved": RETRIEVED}
"""The base asked otherwise, by the kind of subject that it was."""
_BASES = (BASE, *_BASELINES.values())


@dataclass(frozen=True)
class Known:
    """An adapter, and all that is known about it."""

    name: str
    digest: str
    fingerprint: str | None
    """Of the base that it belongs to; None where nothing is known."""
    attestations: Sequence[Attestation]
    """Oldest first."""


@dataclass(frozen=True)
class Column:
    """A number: the perplexity or a measure, of all rows or of one part of them."""

    measure: str
    part: str | None = None
    identity: str = ""
    """What a measure of this name was: a schema by its digest."""
    answers: int | None = None
    """Of a measure of answers: how many tokens one could have."""


@dataclass(frozen=True)
class Cell:
    """A number, beside the base's where that is known."""

    value: float
    against: Difference | None
    """Of the perplexity in nats a token, else as it is."""
    created: str
    """When it was attested."""


@dataclass(frozen=True)
class Line:
    """An adapter, or the base as it was in the others' evaluations."""

    name: str
    digest: str | None
    cells: Mapping[Column, Cell]
    remark: str = ""
    """What to know before it is believed."""


@dataclass(frozen=True)
class Absent:
    """An adapter that a table says nothing about, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Condition:
    """What all numbers of a table have in common."""

    suite: str | None
    harness: str | None
    """The task of lm-evaluation-harness, where it was one."""
    data: str
    """The digest of all rows of the data."""
    rows: str | None
    """The digest of those that were scored."""
    left_out: int
    """Of these, those that nothing was scored of."""
    base: str | None
    """The fingerprint."""
    settings: Mapping[str, Any]
    """Those that the perplexity depends on, too."""
    others: Mapping[str, Any]
    """Whatever else a body says: the chat template, what computed it."""

    @property
    def key(self) -> str:
        """The same for the same."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    def on_the_same(self, other: Condition) -> bool:
        """Whether both are about one suite, one task or one file, in whatever version and way."""
        if (self.suite, self.harness) != (other.suite, other.harness):
            return False
        return (self.suite or self.harness) is not None or self.data == other.data


@dataclass(frozen=True)
class Table:
    """Everything that may stand side by side, in the order in which the adapters were named."""

    condition: Condition
    repo: str
    """The base's, where one was said."""
    path: str
    """The file of the data, where one of the adapters says that it was trained on it."""
    count: int | None
    """How many rows were scored."""
    columns: tuple[Column, ...]
    base: tuple[Line, ...]
    """The base as it was beside the others, plainly and as it was asked otherwise."""
    lines: tuple[Line, ...]
    absent: tuple[Absent, ...]
    remark: str = ""
    """What is wrong with all of it: a suite that is another one today."""
    left_out: int = 0
    """Columns beyond MOST_COLUMNS."""

    def ordered(self, column: Column, *, reverse: bool = False) -> tuple[Line, ...]:
        """The lines by a column: the lowest perplexity first, of a measure the highest. Without a number is last."""
        there = [line for line in self.lines if column in line.cells]
        highest = (column.measure != PERPLEXITY) != reverse
        there.sort(key=lambda line: line.cells[column].value, reverse=highest)
        return (*there, *(line for line in self.lines if column not in line.cells))


@dataclass
class _Found:
    """An evaluation that tells numbers, and what it tells of the base's."""

    whose: Known
    created: str
    condition: Condition
    body: Mapping[str, Any]
    cells: dict[Column, Cell] = field(default_factory=dict)
    base: dict[str, dict[Column, Cell]] = field(default_factory=dict)
    """By what it is called."""

    def of_base(self, name: str, column: Column, value: float | None) -> None:
        """The base's number, where there is one."""
        if value is not None:
            self.base.setdefault(name, {})[column] = Cell(value, None, self.created)


def side_by_side(adapters: Sequence[Known], suites: Mapping[str, str]) -> tuple[Table, ...]:
    """The tables that evaluations of these adapters fill: those on today's suites first, then the fullest, the newest.

    Args:
        suites: the digests of suites as they are today, by name; of the others nothing is said.
    """
    found = [
        one for known in adapters for item in known.attestations if (one := _read(known, item))
    ]
    groups: dict[str, list[_Found]] = {}
    for one in found:
        groups.setdefault(one.condition.key, []).append(one)
    paths: dict[str, str] = {}
    for known in adapters:
        for digest, path in _trained_on(known):
            paths.setdefault(digest, path)
    tables = [(_table(group, found, adapters, suites, paths), group) for group in groups.values()]
    tables.sort(key=lambda pair: max(one.created for one in pair[1]), reverse=True)
    tables.sort(key=lambda pair: (bool(pair[0].remark), -len(pair[0].lines)))
    return tuple(table for table, _ in tables)


def _table(
    group: Sequence[_Found],
    found: Sequence[_Found],
    adapters: Sequence[Known],
    suites: Mapping[str, str],
    paths: Mapping[str, str],
) -> Table:
    condition = group[0].condition
    newest = sorted(group, key=lambda one: one.created)  # stable: of equal times the later counts
    lines, absent = [], []
    for known in adapters:
        own = [one for one in newest if one.whose is known]
        if own:
            cells = {column: cell for one in own for column, cell in one.cells.items()}
            other = known.fingerprint is not None and condition.base not in (
                None,
                known.fingerprint,
            )
            remark = "evaluated on another base than the adapter's" if other else ""
            lines.append(Line(known.name, known.digest, cells, remark))
        else:
            elsewhere = [one for one in found if one.whose is known]
            absent.append(Absent(known.name, _why_absent(elsewhere, condition)))
    columns = _in_order(column for one in reversed(newest) for column in one.cells)
    base: dict[str, dict[Column, Cell]] = {}
    for one in newest:
        for name, cells in one.base.items():
            base.setdefault(name, {}).update(cells)
    today = suites.get(condition.suite) if condition.suite is not None else None
    stale = today is not None and today != condition.data
    last = newest[-1].body
    return Table(
        condition=condition,
        repo=text(inner(last, "base").get("repo")) or "",
        path=paths.get(condition.data, ""),
        count=_count(inner(last, "result").get("rows")),
        columns=columns[:MOST_COLUMNS],
        base=tuple(Line(name, None, base[name]) for name in _BASES if name in base),
        lines=tuple(lines),
        absent=tuple(absent),
        remark="another version of the suite than today's" if stale else "",
        left_out=max(0, len(columns) - MOST_COLUMNS),
    )


def _in_order(columns: Iterator[Column]) -> tuple[Column, ...]:
    """Each once: all rows before their parts, and of each the perplexity before the measures."""
    different = list(dict.fromkeys(columns))
    parts = list(dict.fromkeys(column.part for column in different))
    place = {part: at for at, part in enumerate(parts)}
    return tuple(
        sorted(
            different,
            key=lambda one: (one.part is not None, place[one.part], one.measure != PERPLEXITY),
        )
    )


def _why_absent(elsewhere: Sequence[_Found], wanted: Condition) -> str:
    """Of the adapter's evaluations on the same, why the newest isn't in this table."""
    near = [one for one in elsewhere if one.condition.on_the_same(wanted)]
    if not near:
        return "never evaluated on that"
    has = max(near, key=lambda one: one.created).condition
    if has.data != wanted.data:
        return f"evaluated on another version of the {'suite' if wanted.suite else 'task'}"
    if has.base != wanted.base:
        return "evaluated on another base"
    if has.settings != wanted.settings:
        keys = sorted({*has.settings, *wanted.settings})
        told = [key for key in keys if has.settings.get(key) != wanted.settings.get(key)]
        return "evaluated with other settings: " + ", ".join(
            f"{key} {_said(has.settings.get(key))} for {_said(wanted.settings.get(key))}"
            for key in told
        )
    if (has.rows, has.left_out) != (wanted.rows, wanted.left_out):
        return "evaluated on other rows"
    return "evaluated otherwise: another chat template, or computed by something else"


def _said(value: object) -> str:
    return "none" if value is None else str(value)


# Reading one evaluation


def _read(whose: Known, item: Attestation) -> _Found | None:
    """What an attestation tells; None where it is no evaluation that has numbers."""
    if item.type != "eval":
        return None
    body = item.body
    data, settings = inner(body, "data"), inner(body, "settings")
    digest = text(data.get("digest"))
    if digest is None:
        return None
    condition = Condition(
        suite=text(body.get("suite")),
        harness=text(body.get("harness")),
        data=digest,
        rows=text(data.get("rows_digest")),
        left_out=_count(data.get("dropped")) or 0,
        base=text(inner(body, "base").get("fingerprint")),
        settings={key: value for key, value in settings.items() if key not in _APART},
        others={key: value for key, value in body.items() if key not in _NO_CONDITION},
    )
    found = _Found(whose, item.created, condition, body)
    result = inner(body, "result")
    _take(found, result, None, settings)
    for part, numbers in inner(result, "parts").items():
        _take(found, mapping(numbers), part, settings)
    for kind, name in _BASELINES.items():
        _take_baseline(found, name, mapping(inner(result, "baselines").get(kind)), settings)
    return found if found.cells else None


def _take(
    found: _Found, numbers: Mapping[str, Any], part: str | None, settings: Mapping[str, Any]
) -> None:
    """Takes the numbers of all rows, or of a part of them, and what the base's were."""
    if (value := finite(numbers.get("perplexity"))) is not None:
        against = difference(numbers.get("versus_base"))
        column = Column(PERPLEXITY, part)
        found.cells[column] = Cell(value, against, found.created)
        theirs = finite(numbers.get("base_perplexity"))
        loss = finite(numbers.get("loss"))
        if theirs is None and against is not None and loss is not None:
            theirs = _exp(loss - against.estimate)
        found.of_base(BASE, column, theirs)
    measures = inner(numbers, "measures")
    for column in _measured(measures, part, settings):
        one = mapping(measures[column.measure])
        if (value := finite(one.get("value"))) is not None:
            against = difference(one.get("versus_base"))
            found.cells[column] = Cell(value, against, found.created)
            if against is not None:
                found.of_base(BASE, column, finite(value - against.estimate))


def _take_baseline(
    found: _Found, name: str, numbers: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Takes the numbers of the base as it was asked otherwise."""
    found.of_base(name, Column(PERPLEXITY), finite(numbers.get("perplexity")))
    measures = inner(numbers, "measures")
    for column in _measured(measures, None, settings):
        found.of_base(name, column, finite(measures[column.measure]))


def _measured(
    measures: Mapping[str, Any], part: str | None, settings: Mapping[str, Any]
) -> Iterator[Column]:
    """A column for each measure, in the order in which they were asked for.

    Only those that name a file have an identity that isn't their name: the identities that are no names are theirs.
    """
    listed = settings.get("measures")
    told = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    files = " ".join(sorted(one for one in told if one not in measures))
    judge = ", ".join(f"{k} {v}" for k, v in sorted(inner(settings, "judge").items()))
    places = {name: place for place, name in enumerate(told)}
    for name in sorted(measures, key=lambda name: (places.get(name, len(told)), name)):
        rest = judge if name.partition("=")[0] == JUDGE else files
        identity = name if name in places else rest
        yield Column(name, part, identity, _count(settings.get("max_new_tokens")))


def _trained_on(known: Known) -> Iterator[tuple[str, str]]:
    """The digest of the data that the adapter was trained on, and the file that it was in."""
    for item in known.attestations:
        if item.type == "provenance":
            digest = text(inner(item.body, "data").get("digest"))
            data = inner(inner(item.body, "recipe"), "data")
            if digest and (path := text(data.get("path"))):
                yield digest, path


def _count(value: object) -> int | None:
    number = finite(value)
    return int(number) if number is not None and number == int(number) else None


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None
