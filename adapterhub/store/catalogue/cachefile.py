"""The cache: one SQLite file a store, outside of it, that may be lost at any moment and costs only time.

It is made again when it is missing, of another schema or damaged. Where it can't be used at all (a folder that can't be
written, a full disk, a file that stays locked) the same tables live in memory for as long as the command runs.

Why a rollback journal and not a write-ahead log: who deletes the database and leaves a log beside it has poisoned the
next one. SQLite drops a rollback journal beside an empty database by itself; TRUNCATE ends it through the open file,
never by name, so a process whose database was deleted meanwhile can't take another's journal away.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from adapterhub.fsio import typed_path
from adapterhub.store.catalogue.tables import SCHEMA, TABLES
from adapterhub.store.layout import Layout

T = TypeVar("T")

PATIENCE_SECONDS = 5.0
"""How long another process may hold the file. Writers gather what they write before they begin."""
# The low byte of SQLite's error codes for a file that is sound and can't be used now; anything else is damage.
_UNUSABLE = frozenset(
    {
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_AUTH,
    }
)  # fmt: skip
_STORE_ID = re.compile(r"[0-9a-f]{8,64}\Z")


class OtherSchemaError(sqlite3.DatabaseError):
    """The file has tables of another version, or none of ours."""


class CacheFile:
    """The cache of one store. Nothing is opened before it is needed."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._memory: sqlite3.Connection | None = None

    @property
    def path(self) -> Path:
        """Where the file lies. A copy of a store has the same id, so the store's own place is part of the name."""
        place = hashlib.sha256(os.fsencode(os.path.realpath(self._layout.store))).hexdigest()[:16]
        return default_folder() / f"{_store_id(self._layout) or 'store'}-{place}.{SCHEMA}.sqlite3"

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns. It is called again, on a new file or in memory, where the file turns out to be unusable."""
        for last in (False, True):
            if self._memory is not None:
                break
            path = self.path
            identity = _identity(path)
            try:
                with _opened(path) as db:
                    return work(db)
            except (sqlite3.DatabaseError, ValueError) as error:
                # ValueError: what was read makes no sense (text that is no UTF-8, JSON that is none).
                if last or not _is_damage(error):
                    self._memory = _in_memory()
                else:
                    _discard(path, identity)
            except OSError:
                self._memory = _in_memory()
        assert self._memory is not None
        return work(self._memory)

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The file, or the tables in memory, for work that isn't worth doing twice. In autocommit mode."""
        self.run(lambda db: db.execute("SELECT count(*) FROM sqlite_master").fetchone())
        if self._memory is not None:
            yield self._memory
            return
        with _opened(self.path) as db:
            yield db


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction, with the right to write from its beginning; nothing of it stays when the block fails."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def storable(values: Iterable[Any]) -> list[Any]:
    """Values as SQLite can hold them: text that is Unicode, numbers of 64 bits."""
    found = []
    for value in values:
        if isinstance(value, str) and not value.isascii():
            value = value.encode("utf-8", "replace").decode()
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = None
        found.append(value)
    return found


def default_folder() -> Path:
    """`$ADAPTERHUB_CACHE`, else the platform's folder for caches."""
    chosen = os.environ.get("ADAPTERHUB_CACHE")
    if chosen:
        return typed_path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("adapterhub", appauthor=False))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=PATIENCE_SECONDS, isolation_level=None)
    try:
        _prepare(db)
        yield db
    finally:
        db.close()


def _in_memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    _prepare(db)
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = TRUNCATE")
    db.execute("PRAGMA cache_spill = OFF")  # a spilling writer would lock readers out until it ends
    db.execute("PRAGMA cell_size_check = ON")
    db.execute("PRAGMA cache_size = -65536")  # kB; ten thousand adapters are read from memory
    if _schema(db) == SCHEMA:
        return
    with writing(db):
        if _schema(db) == SCHEMA:  # another process was quicker
            return
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise OtherSchemaError("tables of another version")
        for statement in TABLES:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA}")


def _schema(db: sqlite3.Connection) -> int:
    (number,) = db.execute("PRAGMA user_version").fetchone()
    return int(number)


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF not in _UNUSABLE


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _discard(path: Path, identity: tuple[int, int] | None) -> None:
    """Deletes the database, unless another process has put a new one in its place. Its journal is left to SQLite."""
    if identity is None or _identity(path) == identity:
        with suppress(OSError):
            path.unlink()


def _store_id(layout: Layout) -> str:
    try:
        text = (layout.store / "id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if _STORE_ID.match(text) else ""
