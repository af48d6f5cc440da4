"""What the library asks of the hub. Every function here may block, so it is called in a thread, never on the event loop.

The list comes from the catalogue, which is fast for ten thousand names and mends itself; one damaged adapter doesn't hide
the others.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from adapterhub.cli.output import clean
from adapterhub.errors import AdapterHubError
from adapterhub.names import Name, parse_name
from adapterhub.settings import duration
from adapterhub.store import Resolved, Store, gating
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.indexing import ProgressFactory, silently
from adapterhub.store.catalogue.kinship import lineage, names_of
from adapterhub.store.catalogue.search import Found, Query, damage, labels_of, search, targets_of
from adapterhub.store.consequences import Removal, Use, of_removing, uses
from adapterhub.store.gating import Standing
from adapterhub.tui.facts import Fact, Section
from adapterhub.tui.library import gated
from adapterhub.tui.library.about import in_words, problem_in_words
from adapterhub.tui.library.model import Answer, Current, Listing
from adapterhub.tui.library.rows import Row, usual_rows
from adapterhub.tui.library.terms import Asked
from adapterhub.tui.problem import Problem
from adapterhub.tui.watching import Stamp, stamp_of
from adapterhub.tui.widgets.adapter_columns import natural_widths

Tell = Callable[[str], None]
_COLUMNS = (
    "name",
    "digest",
    "added",
    "kind",
    "label",
    "rank",
    "targets",
    "size",
    "event",
    "method",
    "metric",
    "score",
    "scored_on",
)


def now() -> float:
    """The time by which ages are told."""
    return time.time()


def read_rows(store: Store, tell: Tell = lambda _: None) -> Listing:
    """Every name in the store, damaged ones too. Raises only where the store as a whole can't be read.

    `tell` hears how far a catalogue is that has to be made first.
    """

    def find(db: sqlite3.Connection) -> tuple[list[Found], list[tuple[str, AdapterHubError]]]:
        return search(db, Query(), labels_of(db, lambda: store.bases), _COLUMNS), damage(db)

    found, wrong = Catalogue(store.layout, progress=_telling(tell)).ask(find)
    problems = {name: Problem.of(error) for name, error in wrong}
    rows = [_row(one, problems.pop(one.name, None)) for one in found]
    rows += [Row(name, problem=problem) for name, problem in problems.items()]
    rows = sorted((row.warm() for row in rows), key=lambda row: row.name)
    used, moment = uses(store), now()
    return Listing(
        tuple(rows),
        {row.digest: row.name for row in reversed(rows) if row.digest},
        natural_widths(rows, used, moment),
        used,
        moment,
        usual_rows(rows),
    )


def read_details(store: Store, row: Row, names: Mapping[str, str]) -> tuple[Section, ...]:
    """What is known about an adapter, in sections. `names` gives a digest its name, where it has one."""
    from adapterhub.cli.library import details  # it brings the command line along

    if row.problem is not None:
        return problem_in_words(row, row.problem)
    try:
        resolved = Resolved(row.digest, store.manifest(row.digest), parse_name(row.name))
        known = store.attestations(row.digest)
        labels, family = Catalogue(store.layout).ask(
            lambda db: (names_of(db, row.digest), lineage(db, row.digest))
        )
        record = details(store, resolved, names=labels)
        gates = _gates(store, row, labels, names)
        return in_words(row, record, known, names, family, uses(store).get(row.digest, ()), gates)
    except Exception as error:  # noqa: BLE001 - what one adapter's files do must not end the screen
        return problem_in_words(row, Problem.of(error))


def _gates(store: Store, row: Row, labels: Sequence[str], names: Mapping[str, str]) -> Section:
    """How the adapter stands before the gates of all its names, or why that can't be said."""
    asked = [parse_name(label) for label in (row.name, *labels)]
    try:
        found = gating.standings(store, row.digest, asked)
    except AdapterHubError as error:  # a demand for a suite whose file is gone
        return Section("Gates", (Fact("", clean(f"{error.what} {error.why}".strip()), "warning"),))
    return gated.section(found, row.path, row.digest, names)


def answer(store: Store, asked: Asked) -> Answer:
    """Which adapters a word of the filter means that rows can't answer by themselves."""
    try:
        query = _query(store, asked)
        found = Catalogue(store.layout).ask(lambda db: _digests(db, store, query))
    except Exception as error:  # noqa: BLE001 - told under the filter
        return Answer(problem=Problem.of(error))
    return Answer(frozenset(found))


def misfits(store: Store, base: Current) -> Current:
    """`base` with the adapters that don't fit it. What has no shape, or one that can't be read, is none of them."""
    model = store.bases.open(base.path)

    def find(db: sqlite3.Connection) -> frozenset[str]:
        fitting = set(_digests(db, store, Query(fits=model)))
        every = search(db, Query(), {}, ("digest", "shape"))
        return frozenset(
            row.digest for row in every if row.shape is not None and row.digest not in fitting
        )

    return Current(base.label, base.path, Catalogue(store.layout).ask(find))


def known_bases(store: Store) -> list[Current]:
    """The base models that are remembered on this machine."""
    return [
        Current(str(record["repo"] or record["path"].rpartition("/")[2]), str(record["path"]))
        for record in store.bases.records()
    ]


def gates_before(store: Store, asked: Sequence[tuple[Row, str]]) -> list[Standing]:
    """How adapters stand before the gates of the names that they are to get; a name that an adapter has needs none."""
    found = [gating.standing(store, parse_name(name), row.digest) for row, name in asked]
    return [
        one for one, (row, _) in zip(found, asked, strict=True) if one and one.now != row.digest
    ]


def removal(store: Store, names: Sequence[Name]) -> Removal:
    """What removing these names would do."""
    return Catalogue(store.layout).ask(lambda db: of_removing(store, db, names))


def leases_stamp(store: Store) -> tuple[Stamp, tuple[Use, ...]]:
    """Changes when somebody begins or ends to use an adapter, and when somebody who did is gone."""
    return stamp_of(store.layout.leases), tuple(
        use for found in uses(store).values() for use in found
    )


def _query(store: Store, asked: Asked) -> Query:
    if asked.key == "parent":
        return Query(parent=store.resolve(asked.value).digest)
    if asked.key == "fits":
        return Query(fits=store.bases.open(asked.value))
    from adapterhub.store.catalogue.use import in_use

    since = time.time() - duration(asked.value, "behind unused:")
    return Query(unused_since=since, in_use=in_use(store))


def _digests(db: sqlite3.Connection, store: Store, query: Query) -> list[str]:
    if query.fits is not None:
        from adapterhub.store.catalogue.shapes import fill_shapes

        fill_shapes(db, store.layout, silently)
    return [row.digest for row in search(db, query, {}, ("digest",))]


def _row(found: Found, problem: Problem | None) -> Row:
    targets = targets_of(found.targets) or ()
    return Row(
        name=found.name,
        digest=found.digest,
        added=found.added,
        kind=found.kind,
        base=found.label or "",
        rank=found.rank,
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        size=found.size,
        event=found.event or "",
        method=found.method or "",
        metric=found.metric or "",
        score=found.score,
        scored_on=found.scored_on or "",
        problem=problem,
    )


def _telling(tell: Tell) -> ProgressFactory:
    """Progress as words: `Reading the store for the catalogue: 400 of 10000`."""

    class Bar:
        def __init__(self, description: str, total: float) -> None:
            self._description, self._total, self._done = description, int(total), 0

        def advance(self, amount: float = 1) -> None:
            self._done += int(amount)
            if self._done % 100 == 0:
                tell(f"{self._description}: {self._done} of {self._total}")

    @contextmanager
    def progress(description: str, total: float) -> Iterator[Bar]:
        yield Bar(description, total)

    return progress
