"""Bringing the catalogue up to date: reads what has changed in the store, and writes it in one transaction.

Files are read before the transaction begins, so that nobody waits for a slow disk. Two processes may do this at once:
what is written counts up a generation, and whoever finds another one than he looked at looks again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from adapterhub.errors import AdapterHubError
from adapterhub.names import Name
from adapterhub.store.catalogue.cachefile import storable, writing
from adapterhub.store.catalogue.changes import Changes
from adapterhub.store.catalogue.logs import Mark
from adapterhub.store.layout import Layout

if TYPE_CHECKING:
    from adapterhub.store.catalogue.record import Record
    from adapterhub.store.store import Store

MANY = 200
"""From so many adapters on, reading them is shown as progress."""
_TRIES = 3
_GENERATION = "generation"
_COLUMNS = (
    "kind", "base", "revision", "claimed", "fingerprint", "known_repo", "rank", "alpha", "targets", "modules",
    "parameters", "dtype", "size", "content", "event", "method", "license", "metric", "score", "scored_on", "used",
    "config", "weights",
)  # fmt: skip
_ALL_COLUMNS = ("digest", "listed", "again", "error", "told", *_COLUMNS)
_PUT_ADAPTER = (  # the names are ours, the values are bound
    f"INSERT INTO adapters ({', '.join(_ALL_COLUMNS)}) VALUES ({', '.join('?' * len(_ALL_COLUMNS))})"  # noqa: S608
    f" ON CONFLICT (digest) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _ALL_COLUMNS[1:])}"
    " RETURNING id"
)
_CLEAR = (
    "UPDATE adapters SET shape = NULL WHERE id = ?",
    "DELETE FROM search WHERE rowid = ?",
    "DELETE FROM files WHERE adapter = ?",
    "DELETE FROM parents WHERE adapter = ?",
    "DELETE FROM based WHERE adapter = ?",
    "DELETE FROM measured WHERE adapter = ?",
)


class Bar(Protocol):
    """A running piece of work that is shown."""

    def advance(self, amount: float = 1) -> None: ...


ProgressFactory = Callable[[str, float], AbstractContextManager[Bar]]


class Silent:
    """Progress that nobody sees."""

    def advance(self, amount: float = 1) -> None:
        pass


def silently(description: str, total: float) -> AbstractContextManager[Bar]:
    """Shows nothing."""
    return nullcontext(Silent())


@dataclass(frozen=True)
class _Ref:
    name: Name
    digest: str | None
    added: str
    error: str | None

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.name.namespace, self.name.name, self.name.tag)


def update(db: sqlite3.Connection, layout: Layout, progress: ProgressFactory) -> None:
    """Makes the catalogue in `db` say what the store's files say. Costs next to nothing where nothing has changed."""
    for _ in range(_TRIES):
        generation = _generation(db)
        found = _read(db, layout, progress)
        if found is None:
            return
        with writing(db):
            if _generation(db) == generation:
                found.write()
                return
    with writing(db):  # others are always quicker: let them wait
        found = _read(db, layout, progress)
        if found is not None:
            found.write()


def _generation(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT offset FROM marks WHERE log = ?", (_GENERATION,)).fetchone()
    return int(row[0]) if row else 0


def _read(db: sqlite3.Connection, layout: Layout, progress: ProgressFactory) -> _News | None:
    """What is to be written; None where nothing is."""
    changes = Changes(db, layout)
    if not changes.any:
        return None
    from adapterhub.store.store import Store

    store = Store(layout.home)
    refs = [_read_ref(store, name) for name in sorted(changes.names)]
    known = changes.digests("SELECT digest FROM adapters")
    named = {ref.digest for ref in refs if ref.digest is not None}
    wanted = changes.subjects | changes.came | changes.went | (named - known)
    news = _News(db, changes, refs, _read_records(store, sorted(wanted), progress))
    return news if news.any else None


def _read_ref(store: Store, name: Name) -> _Ref:
    from adapterhub.store.catalogue.record import as_text

    try:
        return _Ref(name, store.refs.read(name), store.added(name), None)
    except (AdapterHubError, OSError) as error:
        return _Ref(name, None, "", as_text(error))


def _read_records(store: Store, digests: list[str], progress: ProgressFactory) -> list[Record]:
    from adapterhub.store.catalogue.record import read_record

    many = progress if len(digests) >= MANY else silently
    found = []
    with many("Reading the store for the catalogue", len(digests)) as bar:
        for digest in digests:
            listed = store.layout.manifest(digest).is_file()
            found.append(read_record(store, digest, listed=listed))
            bar.advance()
    return found


class _News:
    """Rows that differ from what the catalogue says."""

    def __init__(
        self, db: sqlite3.Connection, changes: Changes, refs: list[_Ref], records: list[Record]
    ) -> None:
        self._db = db
        self._changes = changes
        self._refs = [ref for ref in refs if self._is_new_ref(ref)]
        self._records = [record for record in records if self._is_new_record(record)]

    @property
    def any(self) -> bool:
        changes = self._changes
        moved = changes.marks or changes.stamps or changes.waits_anew
        return bool(self._refs or self._records or moved)

    def write(self) -> None:
        """Writes them; the caller begins and ends the transaction."""
        db, changes = self._db, self._changes
        if changes.afresh:
            db.execute("DELETE FROM touched")
        renamed = {record.digest for record in self._records}
        for ref in self._refs:
            renamed |= self._write_ref(ref)
        for record in self._records:
            self._write_record(record)
        self._drop_orphans()
        for digest in renamed:
            self._join(digest)
        db.executemany(
            "INSERT INTO touched VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET at = max(at, excluded.at)",
            changes.touched.items(),
        )
        self._write_progress()

    def _is_new_ref(self, ref: _Ref) -> bool:
        """Whether the catalogue says something else of this name."""
        gone = ref.digest is None and ref.error is None
        found = None if gone else (ref.digest, ref.added, ref.error)
        return bool(self._row(ref) != found)

    def _is_new_record(self, record: Record) -> bool:
        """False for an adapter that still can't be read, for the same reason as last time."""
        row = self._db.execute(
            "SELECT again, listed, error, told FROM adapters WHERE digest = ?", (record.digest,)
        ).fetchone()
        same = row == (1, record.listed, record.error, record.told)
        return not (record.again and same)

    def _write_progress(self) -> None:
        db, changes = self._db, self._changes
        for folder, stamp in changes.stamps.items():
            if stamp is None:
                db.execute("DELETE FROM folders WHERE path = ?", (folder,))
            else:
                db.execute("INSERT OR REPLACE INTO folders VALUES (?, ?)", (folder, stamp))
        marks = {**changes.marks, _GENERATION: Mark(_generation(db) + 1, b"")}
        for log, mark in marks.items():
            db.execute(
                "INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (log, mark.offset, mark.tail)
            )
        db.execute("DELETE FROM pending")
        db.executemany(
            "INSERT INTO pending VALUES (?, ?, ?, ?)",
            [(*line, *found) for line, found in changes.waiting.items()],
        )

    def _row(self, ref: _Ref) -> Any:
        return self._db.execute(
            "SELECT digest, added, error FROM names WHERE namespace = ? AND name = ? AND tag = ?",
            ref.key,
        ).fetchone()

    def _write_ref(self, ref: _Ref) -> set[str]:
        """Returns the adapters whose names have changed by it."""
        before = self._row(ref)
        if ref.digest is None and ref.error is None:
            self._db.execute(
                "DELETE FROM names WHERE namespace = ? AND name = ? AND tag = ?", ref.key
            )
        else:
            self._db.execute(
                "INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                (*ref.key, str(ref.name), ref.digest, ref.added, ref.error),
            )
        return {digest for digest in (before and before[0], ref.digest) if digest}

    def _write_record(self, record: Record) -> None:
        values = [record.digest, record.listed, record.again, record.error, record.told]
        values += [record.columns.get(column) for column in _COLUMNS]
        (identity,) = self._db.execute(_PUT_ADAPTER, storable(values)).fetchone()
        self._clear(identity)
        self._insert("INSERT INTO search (rowid, about) VALUES (?, ?)", [(identity, record.about)])
        self._insert(
            "INSERT INTO files VALUES (?, ?, ?, ?)", [(identity, *file) for file in record.files]
        )
        self._insert(
            "INSERT INTO parents VALUES (?, ?, ?, ?, ?, ?)",
            [
                (identity, position, parent.digest, parent.name, parent.how, parent.at)
                for position, parent in enumerate(record.parents)
            ],
        )
        self._insert(
            "INSERT INTO based VALUES (?, ?, ?, ?, ?, ?)",
            [(identity, b.fingerprint, b.repo, b.revision, b.how, b.at) for b in record.based],
        )
        self._insert(
            "INSERT INTO measured VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [(identity, *one) for one in record.measured],
        )

    def _join(self, digest: str) -> None:
        """Lets names and adapter know each other, now that both are written."""
        self._db.execute(
            "UPDATE names SET adapter = (SELECT id FROM adapters WHERE digest = ?1) WHERE digest = ?1",
            (digest,),
        )
        found = self._db.execute(
            "SELECT label FROM names WHERE digest = ? ORDER BY label", (digest,)
        ).fetchall()
        self._db.execute(
            "UPDATE search SET names = ? WHERE rowid = (SELECT id FROM adapters WHERE digest = ?)",
            ("\n".join(label for (label,) in found), digest),
        )

    def _drop_orphans(self) -> None:
        """What is neither on the shelves nor has a name."""
        gone = self._db.execute(
            "SELECT id FROM adapters WHERE NOT listed AND digest NOT IN (SELECT digest FROM names WHERE digest NOTNULL)"
        ).fetchall()
        for (identity,) in gone:
            self._clear(identity)
            self._db.execute("DELETE FROM adapters WHERE id = ?", (identity,))

    def _clear(self, identity: int) -> None:
        for statement in _CLEAR:
            self._db.execute(statement, (identity,))

    def _insert(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        self._db.executemany(statement, map(storable, rows))
