"""Merges that were done before: the adapter of the store that a recipe has given already."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.merge.recipe import Recipe
from adapterhub.store import Store
from adapterhub.store.catalogue.catalogue import Catalogue


def find_done(store: Store, recipe: Recipe, preferred: str | None = None) -> str | None:
    """The digest of an adapter with a name that this very recipe gave, `preferred` before others; None if there is none."""
    first = recipe.parents[0]

    def children(db: sqlite3.Connection) -> list[str]:
        rows = db.execute(
            "SELECT DISTINCT a.digest FROM adapters a JOIN parents p ON a.id = p.adapter"
            " JOIN names n ON n.digest = a.digest WHERE p.parent = ? ORDER BY a.digest",
            (first,),
        )
        return [row[0] for row in rows]

    found = [
        digest
        for digest in Catalogue(store.layout).ask(children)
        if was_made_by(store, digest, recipe)
    ]
    return preferred if preferred in found else next(iter(found), None)


def was_made_by(store: Store, digest: str, recipe: Recipe, *, but: tuple[str, ...] = ()) -> bool:
    """Whether one of the recipes that gave this adapter is `recipe`, not looking at its keys `but`."""
    return any(_same(found, recipe, but) for found in recipes_of(store, digest))


def report_of(store: Store, digest: str, recipe: Recipe) -> Mapping[str, Any]:
    """What was reported when `recipe` gave this adapter; empty where it didn't."""
    for body in _merges(store, digest):
        if _same(body["recipe"], recipe) and isinstance(body.get("report"), Mapping):
            return dict(body["report"])
    return {}


def recipes_of(store: Store, digest: str) -> list[Mapping[str, Any]]:
    """The attested recipes of a merged adapter, the latest first: different ones may have given the same tensors."""
    return [body["recipe"] for body in _merges(store, digest)]


def _merges(store: Store, digest: str) -> list[Mapping[str, Any]]:
    """What was said of the merges that gave this adapter, the latest first; nothing where it is no longer there."""
    try:
        store.manifest(digest)
        known = store.attestations(digest)
    except AdapterHubError:
        return []
    bodies = [a.body for a in reversed(known) if a.type == "provenance"]
    return [
        b for b in bodies if b.get("event") == "merged" and isinstance(b.get("recipe"), Mapping)
    ]


def _same(found: Mapping[str, Any], recipe: Recipe, but: tuple[str, ...] = ()) -> bool:
    wanted = json.loads(json.dumps(recipe.document()))  # as it is after writing and reading
    for key in but:
        found, wanted = ({k: v for k, v in one.items() if k != key} for one in (found, wanted))
    return bool(found == wanted)
