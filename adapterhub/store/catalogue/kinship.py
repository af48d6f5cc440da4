"""Who was made from whom, and who depends on a base: the graph that provenance draws."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from adapterhub.store.catalogue.belonging import Belongs, WantedBase
from adapterhub.store.catalogue.shapes import Fitting
from adapterhub.words import short

MOST = 10_000
"""Adapters in one answer: provenance is other people's word, and a graph of it must end."""


@dataclass(frozen=True)
class Relative:
    """An adapter in a lineage. Not `here`: something was made from it, and this store hasn't got it."""

    digest: str
    names: tuple[str, ...]
    here: bool
    made: str
    """`merged (ties)`, `trained`, `imported`; empty where nobody said."""
    called: str
    """The name it had for who made something from it."""

    @property
    def label(self) -> str:
        """A name of today, else the short digest, with the name of that day."""
        if self.names:
            return self.names[0]
        return f"@{short(self.digest)}" + (f" ({self.called})" if self.called else "")


class Edge(NamedTuple):
    """`child` was made from `parent`; `position` is its place among the parents."""

    child: str
    parent: str
    position: int
    how: str


@dataclass(frozen=True)
class Lineage:
    """The ancestors and descendants of `digest`, itself among the relatives."""

    digest: str
    relatives: dict[str, Relative]
    edges: tuple[Edge, ...]

    def parents(self, digest: str) -> list[str]:
        """Digests it was made from, in order."""
        return [edge.parent for edge in self.edges if edge.child == digest]

    def children(self, digest: str) -> list[str]:
        """Digests of what was made from it, in order of their names."""
        found = {edge.child for edge in self.edges if edge.parent == digest}
        return sorted(found, key=lambda child: (self.relatives[child].label, child))


@dataclass(frozen=True)
class Affected:
    """An adapter that depends on a base: by itself, or (`parent`) through what it was made from."""

    digest: str
    names: tuple[str, ...]
    how: Belongs | Literal["descendant"]
    why: str
    parent: str | None = None


def lineage(db: sqlite3.Connection, digest: str) -> Lineage:
    """Everything `digest` was made from, and everything made from it, whatever the number of steps."""
    seen = {digest}
    for query in (_PARENTS, _CHILDREN):
        walked, front = {digest}, [digest]
        while front and len(seen) < MOST:
            edges = [Edge(*row) for one in front for row in db.execute(query, (one,))]
            others = [edge.parent if query is _PARENTS else edge.child for edge in edges]
            front = [other for other in dict.fromkeys(others) if other not in walked]
            walked |= set(front)
            seen |= set(front)
    among = [Edge(*row) for one in sorted(seen) for row in db.execute(_PARENTS, (one,))]
    return Lineage(
        digest,
        {one: _relative(db, one) for one in sorted(seen)},
        tuple(edge for edge in among if edge.parent in seen),
    )


def affected_by(db: sqlite3.Connection, base: WantedBase) -> list[Affected]:
    """The adapters that a change of `base` invalidates: made for it or checked against it, and what was made from those.

    The shapes must have been read (`fill_shapes`) for candidates to be found.
    """
    shapes = Fitting(db, base.model) if base.model is not None else None
    checked = {
        identity: how
        for identity, how, fingerprint in db.execute("SELECT adapter, how, fingerprint FROM based")
        if fingerprint in base.fingerprints
    }
    rows = db.execute(
        """SELECT id, digest, base, revision, claimed, fingerprint, shape
           FROM adapters WHERE kind NOTNULL"""
    ).fetchall()
    front = []
    for row in map(_Row._make, rows):
        belongs = base.belongs(row, shapes)
        if row.id in checked:
            front.append(_affected(db, row.digest, "equal", checked[row.id]))
        elif belongs in ("equal", "claimed", "candidate"):
            why = f"claims {row.claimed or row.base or ''}"
            front.append(_affected(db, row.digest, belongs, why))
    found: dict[str, Affected] = {}
    while front:
        front.sort(key=lambda one: (one.names or (one.digest,), one.digest))
        found |= {one.digest: one for one in front}
        edges = [Edge(*row) for one in front for row in db.execute(_CHILDREN, (one.digest,))]
        following = {edge.child: edge for edge in reversed(edges) if edge.child not in found}
        front = [
            _affected(db, child, "descendant", edge.how, parent=edge.parent)
            for child, edge in following.items()
        ]
    return list(found.values())


class _Row(NamedTuple):
    id: int
    digest: str
    base: str | None
    revision: str | None
    claimed: str | None
    fingerprint: str | None
    shape: int | None


_PARENTS = """SELECT digest, parent, position, how FROM parents JOIN adapters ON id = adapter
              WHERE digest = ? ORDER BY position"""
_CHILDREN = """SELECT digest, parent, position, how FROM parents JOIN adapters ON id = adapter
               WHERE parent = ? ORDER BY digest, position"""


def _affected(
    db: sqlite3.Connection, digest: str, how: Any, why: str, parent: str | None = None
) -> Affected:
    return Affected(digest, names_of(db, digest), how, why, parent)


def _relative(db: sqlite3.Connection, digest: str) -> Relative:
    row = db.execute("SELECT event, method FROM adapters WHERE digest = ?", (digest,)).fetchone()
    called = db.execute("SELECT name FROM parents WHERE parent = ? LIMIT 1", (digest,)).fetchone()
    event, method = row or (None, None)
    made = f"{event} ({method})" if event and method else event or ""
    return Relative(
        digest, names_of(db, digest), row is not None, made, called[0] if called else ""
    )


def names_of(db: sqlite3.Connection, digest: str) -> tuple[str, ...]:
    """The names of an adapter, in order."""
    rows: Iterable[tuple[str]] = db.execute(
        "SELECT label FROM names WHERE digest = ? ORDER BY namespace, name, tag", (digest,)
    )
    return tuple(label for (label,) in rows)
