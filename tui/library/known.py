"""What takes long to find out, kept: the norms of an adapter, which never change, and the journal by name until it does."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

from adapterhub.names import parse_name
from adapterhub.store import Resolved, Store
from adapterhub.store.journal import Change
from adapterhub.tui.facts import Section
from adapterhub.tui.library.about import further
from adapterhub.tui.library.rows import Row
from adapterhub.tui.problem import Problem
from adapterhub.tui.watching import Stamp, names_stamp

if TYPE_CHECKING:
    from adapterhub.compare.norms import Norms

_MOST = 256
"""Adapters whose norms are kept."""


class Known:
    """The memory of one screen. Its questions block, and may be asked from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = Lock()
        self._norms: OrderedDict[str, Norms | Problem] = OrderedDict()
        self._stamp: Stamp = None
        self._changes: dict[str, list[Change]] = {}

    def sections(self, row: Row) -> tuple[Section, ...]:
        """What is told of an adapter when the reader stays with it."""
        if row.problem is not None:
            return ()
        try:
            return further(self.norms(row), self.history(row))
        except Exception as error:  # noqa: BLE001 - what one adapter's files do must not end the screen
            return further(Problem.of(error), ())

    def norms(self, row: Row) -> Norms | Problem:
        """How much the adapter changes each layer, or why that can't be said."""
        found = self._norms.get(row.digest)
        if found is None:
            found = self._norms[row.digest] = _norms(self._store, row)
            while len(self._norms) > _MOST:
                self._norms.popitem(last=False)
        return found

    def history(self, row: Row) -> list[Change]:
        """Every change of the name, all its tags, oldest first."""
        with self._lock:
            stamp = names_stamp(self._store)
            if stamp is None or stamp != self._stamp:
                self._changes = {}
                for change in self._store.log():
                    self._changes.setdefault(change.ref.partition(":")[0], []).append(change)
                self._stamp = stamp
            return self._changes.get(row.path, [])


def _norms(store: Store, row: Row) -> Norms | Problem:
    from adapterhub.compare.norms import norms_of

    try:
        return norms_of(
            store, Resolved(row.digest, store.manifest(row.digest), parse_name(row.name))
        )
    except Exception as error:  # noqa: BLE001 - as above
        return Problem.of(error)
