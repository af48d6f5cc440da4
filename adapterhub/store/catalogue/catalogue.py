"""The catalogue: what `ls` and everything that searches reads instead of ten thousand files.

It lists and finds; what a name means is always asked of its ref. It is brought up to date before every answer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.indexing import ProgressFactory, silently, update
from adapterhub.store.layout import Layout

T = TypeVar("T")


class Catalogue:
    """The catalogue of one store. Cheap to make; safe to use from several processes."""

    def __init__(self, layout: Layout, *, progress: ProgressFactory = silently) -> None:
        self.layout = layout
        self.file = CacheFile(layout)
        self._progress = progress

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of `question`, given the tables (see `tables`) as the store is now.

        `question` may be called again, so it has no other effects than on the cache.
        """

        def answer(db: sqlite3.Connection) -> T:
            update(db, self.layout, self._progress)
            return question(db)

        return self.file.run(answer)
