"""Which adapters fit a base, for thousands at once: modules and their shapes are the same for most of them.

A shape is what `place` needs to know of an adapter: every module with its size. It is read from the headers of the
weights the first time somebody asks, and kept, so that a base is checked once against every distinct one.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from adapterhub.base import BaseModel, Placed, Verdict, judge, place
from adapterhub.canonical import digest_of
from adapterhub.errors import AdapterHubError
from adapterhub.formats.peft import WEIGHTS_NAME, read_facts
from adapterhub.formats.safetensors import TensorFile
from adapterhub.fsio import in_words
from adapterhub.manifest import BaseClaim
from adapterhub.store.blobs import Blobs
from adapterhub.store.catalogue.cachefile import writing
from adapterhub.store.catalogue.indexing import MANY, ProgressFactory, silently
from adapterhub.store.layout import Layout
from adapterhub.store.store import Store

_AT_ONCE = 200
"""Adapters read between two transactions."""


class Shape(NamedTuple):
    """One module's size."""

    out_features: int
    in_features: int
    embedding: bool


def fill_shapes(
    db: sqlite3.Connection, layout: Layout, progress: ProgressFactory
) -> list[AdapterHubError]:
    """Reads the shapes that aren't known yet. Returns what is wrong with those that can't be read; they stay unknown."""
    shapeless = db.execute(
        """SELECT DISTINCT config, weights FROM adapters
           WHERE shape ISNULL AND config NOTNULL AND weights NOTNULL"""
    ).fetchall()
    if not shapeless:
        return []
    missing = sorted({*shapeless} - {*db.execute("SELECT config, weights FROM shaped")})
    problems: list[AdapterHubError] = []
    blobs = Store(layout.home).blobs
    many = progress if len(missing) >= MANY else silently
    with many("Reading the shapes of the weights", len(missing)) as bar:
        for first in range(0, len(missing), _AT_ONCE):
            batch = missing[first : first + _AT_ONCE]
            _keep(db, _read(blobs, batch, problems))
            bar.advance(len(batch))
    with writing(db):
        db.execute(
            """UPDATE adapters SET shape = s.shape FROM shaped s
               WHERE adapters.shape ISNULL AND s.config = adapters.config AND s.weights = adapters.weights"""
        )
    return problems


class Fitting:
    """A base, and the verdicts on adapters by their shapes. Agrees with `Store.fit` for every adapter."""

    def __init__(self, db: sqlite3.Connection, base: BaseModel) -> None:
        self._db = db
        self._base = base
        self._placed: dict[int, Placed] = {}
        self._verdicts: dict[tuple[int, str | None, str | None, str | None], Verdict] = {}

    def verdict(
        self, shape: int, repo: str | None, revision: str | None, fingerprint: str | None
    ) -> Verdict:
        """Does an adapter with this shape, claim and known fingerprint of its base fit?"""
        key = (shape, repo, revision, fingerprint)
        found = self._verdicts.get(key)
        if found is None:
            found = self._verdicts[key] = judge(
                self.placed(shape),
                self._base,
                claim=BaseClaim(repo, revision),
                known_fingerprint=fingerprint,
            )
        return found

    def placed(self, shape: int) -> Placed:
        """Where modules of this shape belong in the base."""
        if shape not in self._placed:
            (text,) = self._db.execute(
                "SELECT modules FROM shapes WHERE id = ?", (shape,)
            ).fetchone()
            modules = {name: Shape(rows, cols, bool(e)) for name, rows, cols, e in json.loads(text)}
            self._placed[shape] = place(modules, self._base)
        return self._placed[shape]


def _read(
    blobs: Blobs, batch: Sequence[tuple[str, str]], problems: list[AdapterHubError]
) -> list[tuple[str, str, str]]:
    """(config, weights, modules as JSON), as `Store.facts` reads them."""
    found = []
    for config, weights in batch:
        try:
            with TensorFile(blobs.path(weights), label=WEIGHTS_NAME) as file:
                modules = read_facts(blobs.verified(config), file).modules
        except AdapterHubError as error:
            problems.append(error)
        except OSError as error:
            problems.append(in_words(error))
        else:
            rows = [
                [name, module.out_features, module.in_features, int(module.embedding)]
                for name, module in modules.items()
            ]
            found.append((config, weights, json.dumps(rows)))
    return found


def _keep(db: sqlite3.Connection, found: list[tuple[str, str, str]]) -> None:
    with writing(db):
        for config, weights, modules in found:
            signature = digest_of(modules.encode("utf-8", "surrogatepass"))
            db.execute(
                "INSERT OR IGNORE INTO shapes (signature, modules) VALUES (?, ?)",
                (signature, modules),
            )
            db.execute(
                "INSERT OR REPLACE INTO shaped SELECT ?, ?, id FROM shapes WHERE signature = ?",
                (config, weights, signature),
            )
