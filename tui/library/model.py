"""The state of the library screen, as an immutable value: which adapters there are, which are wanted, which one is looked at.

Widgets draw a `Library` and keep nothing of their own that matters; every change makes a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from adapterhub.store.consequences import Use
from adapterhub.tui.library.fuzzy import SCATTERED, grade
from adapterhub.tui.library.rows import Row
from adapterhub.tui.library.terms import Asked, Terms, parse
from adapterhub.tui.problem import Problem

SortKey = Literal["name", "base", "rank", "targets", "size", "kind", "added", "eval", "served"]
SORTS: tuple[SortKey, ...] = (
    "name",
    "base",
    "rank",
    "targets",
    "size",
    "kind",
    "added",
    "eval",
    "served",
)


@dataclass(frozen=True)
class Listing:
    """What was read from the store at one moment (`now`, seconds since 1970)."""

    rows: tuple[Row, ...]
    names: Mapping[str, str]
    """A name for each digest that has one."""
    widths: Mapping[str, int]
    """How wide each column's longest text is."""
    uses: Mapping[str, tuple[Use, ...]] = field(default_factory=dict)
    now: float = 0.0
    scored_on: str = ""
    """Digest of the rows that most were evaluated on."""


@dataclass(frozen=True)
class Answer:
    """What the hub said to a word of the filter: these adapters, or why it can't say."""

    digests: frozenset[str] = frozenset()
    problem: Problem | None = None


@dataclass(frozen=True)
class Current:
    """The base that adapters are held against: its label, and who doesn't fit it (None while that is found out)."""

    label: str
    path: str
    misfits: frozenset[str] | None = None


@dataclass(frozen=True)
class _Shown:
    """What was let through, and all that it depended on."""

    cause: tuple[object, ...]
    """Everything but the free words."""
    words: tuple[str, ...]
    among: tuple[Row, ...]
    """What `cause` lets through."""
    matched: tuple[Row, ...]
    """Of these, what the words match."""
    visible: tuple[Row, ...]
    """The same, the best first."""

    @cached_property
    def places(self) -> Mapping[str, int]:
        return {row.name: place for place, row in enumerate(self.visible)}


@dataclass(frozen=True)
class Library:
    """The state of the library screen."""

    rows: tuple[Row, ...] = ()
    """Everything, in the order in which it is shown."""
    names: Mapping[str, str] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)
    uses: Mapping[str, tuple[Use, ...]] = field(default_factory=dict)
    now: float = 0.0
    scored_on: str = ""
    query: str = ""
    space: str = ""
    """The namespace that was chosen; empty for all."""
    sort: SortKey = "name"
    reverse: bool = False
    selected: str = ""
    """The name the user last moved to. It is kept while a filter hides it."""
    seeking: bool = False
    """The user is typing and hasn't moved since: the best match is the current row."""
    marked: frozenset[str] = frozenset()
    """Names."""
    answers: Mapping[Asked, Answer] = field(default_factory=dict)
    base: Current | None = None
    problem: Problem | None = None
    """Why the store could not be read the last time; the rows are then those of before."""
    loaded: bool = False
    _shown: _Shown | None = field(default=None, compare=False, repr=False)
    """What was let through the last time: most changes (of the cursor, of marks) let through the same."""

    @property
    def terms(self) -> Terms:
        """The filter, read."""
        return parse(self.query)

    @property
    def visible(self) -> tuple[Row, ...]:
        """The rows that namespace and filter let through, the best matches of free words first."""
        return self._let_through.visible

    @property
    def places(self) -> Mapping[str, int]:
        """Name -> its place among the visible rows."""
        return self._let_through.places

    @property
    def _let_through(self) -> _Shown:
        terms = self.terms
        cause = (
            self.rows,
            self.space,
            terms.narrowing,
            self.marked if "marked" in terms.flags else None,
            self.uses if "running" in terms.flags else None,
            self.answers if terms.asked else None,
        )
        before = self._shown
        if before is not None and before.cause == cause:
            if before.words == terms.words:
                return before
            # What matches a longer word matched the shorter one: while somebody types, fewer and fewer are looked at.
            longer = len(before.words) <= len(terms.words) and all(
                map(str.startswith, terms.words, before.words)
            )
            rows = before.matched if longer else before.among
            among = before.among
        else:
            among = rows = self._among()
        matched, visible = _ranked(rows, terms.words)
        found = _Shown(cause, terms.words, among, matched, visible)
        object.__setattr__(self, "_shown", found)
        return found

    def _among(self) -> tuple[Row, ...]:
        """The rows that all but the free words let through."""
        rows = self.rows
        if self.space:
            rows = tuple(row for row in rows if row.within(self.space))
        for test in self._tests():
            rows = tuple(filter(test, rows))
        return rows

    def _tests(self) -> list[Callable[[Row], bool]]:
        terms = self.terms
        tests = list(terms.tests)
        if "damaged" in terms.flags:
            tests.append(lambda row: row.problem is not None)
        if "marked" in terms.flags:
            tests.append(lambda row: row.name in self.marked)
        if "running" in terms.flags:
            tests.append(lambda row: row.digest in self.uses)
        for asked in terms.asked:
            answer = self.answers.get(asked)
            if answer is not None and answer.problem is None:
                tests.append(_among(answer.digests))
        return tests

    @property
    def position(self) -> int:
        """The place of `current` among the visible rows."""
        return 0 if self.seeking else self.places.get(self.selected, 0)

    @property
    def current(self) -> Row | None:
        """The row the detail pane shows: the selected one, or the first where that is hidden."""
        return self.visible[self.position] if self.visible else None

    @property
    def narrowed(self) -> bool:
        """Whether something is hidden on purpose."""
        return bool(self.query.strip() or self.space)

    @cached_property
    def chosen(self) -> tuple[Row, ...]:
        """What an action works on: the marked rows, else the current one."""
        if self.marked:
            return tuple(row for row in self.rows if row.name in self.marked)
        return (self.current,) if self.current else ()

    def fits(self, row: Row) -> bool | None:
        """Whether the row's adapter fits the current base; None where that isn't asked or isn't known yet."""
        if self.base is None or self.base.misfits is None:
            return None
        return row.digest not in self.base.misfits

    # What may happen to it

    def read(self, listing: Listing) -> Library:
        """After the store was read. When the selected name is gone, what took its place in the list is selected."""
        there = {row.name for row in listing.rows}
        fresh = replace(
            self,
            rows=listing.rows,
            names=listing.names,
            widths=listing.widths,
            uses=listing.uses,
            now=listing.now,
            scored_on=listing.scored_on,
            marked=self.marked & there,
            answers={},
            problem=None,
            loaded=True,
        ).ordered()
        if not self.loaded and not self.selected:
            return replace(fresh, selected=fresh.rows[0].name if fresh.rows else "")
        if self.current and self.selected not in there and fresh.visible:
            successor = fresh.visible[min(self.position, len(fresh.visible) - 1)]
            return replace(fresh, selected=successor.name)
        return fresh

    def ordered(self) -> Library:
        """The same with its rows in the order that was chosen; what has no value comes last either way."""
        say = _SORTED_BY.get(self.sort)
        if say is None:
            rows = sorted(self.rows, key=_by_name, reverse=self.reverse)
        else:
            keyed = [(say(self, row), row) for row in sorted(self.rows, key=_by_name)]
            there = [pair for pair in keyed if pair[0] is not None]
            there.sort(key=lambda pair: pair[0], reverse=self.reverse)
            rows = [row for _, row in there] + [row for value, row in keyed if value is None]
        return replace(self, rows=tuple(rows))

    def marking(self, name: str) -> Library:
        """With the mark of `name` set or taken away."""
        return replace(self, marked=self.marked ^ {name})

    def marking_all(self) -> Library:
        """With every visible row marked; where they all are, with none of them."""
        names = frozenset(self.places)
        return replace(
            self, marked=self.marked - names if names <= self.marked else self.marked | names
        )

    def inverted(self) -> Library:
        """With the marks of the visible rows the other way round."""
        return replace(self, marked=self.marked ^ frozenset(self.places))


def _ranked(rows: tuple[Row, ...], words: Sequence[str]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The rows that all words match: as they come, and with the best first."""
    if not words:
        return rows, rows
    matched: list[Row] = []
    groups: tuple[list[Row], ...] = tuple([] for _ in range(SCATTERED + 1))
    for row in rows:
        worst = 0
        for word in words:
            how = grade(word, row.lowered, row.others)
            if how is None:
                break
            if how > worst:
                worst = how
        else:
            matched.append(row)
            groups[worst].append(row)
    return tuple(matched), tuple(row for group in groups for row in group)


def _by_name(row: Row) -> str:
    return row.name


def _among(digests: frozenset[str]) -> Callable[[Row], bool]:
    return lambda row: row.digest in digests


_SORTED_BY: dict[str, Callable[[Library, Row], Any]] = {
    "base": lambda _, row: row.base.lower() or None,
    "rank": lambda _, row: row.rank,
    "targets": lambda _, row: (len(row.targets), row.targets) if row.targets else None,
    "size": lambda _, row: row.size,
    "kind": lambda _, row: row.kind or None,
    "added": lambda _, row: row.added or None,
    "eval": lambda state, row: row.score if row.scored_on == state.scored_on else None,
    "served": lambda state, row: (
        [use.where for use in state.uses[row.digest]] if row.digest in state.uses else None
    ),
}
