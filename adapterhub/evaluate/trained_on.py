"""Rows that an adapter was trained on: what it says about them, it may have learned by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.data import Row, dataset_digest, split_rows
from adapterhub.errors import UsageError
from adapterhub.evaluate.task import Chosen
from adapterhub.store.catalogue.record import parents_of
from adapterhub.tolerant import finite, inner

if TYPE_CHECKING:
    from adapterhub.store import Store


def rows_trained_on(store: Store, digest: str, chosen: Chosen, rows: Sequence[Row]) -> int:
    """How many of `rows`, which are scored of those chosen, the adapter, or one that it was made of, was trained on.

    As far as the trainer told it: of trainings on a file with exactly these rows, by the split that they recorded. Rows of one
    file that stand in another as well aren't found.
    """
    trained: set[str] = set()
    seen: set[str] = set()
    waiting = [digest]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for item in store.attestations(current):
            waiting += [parent.digest for parent in parents_of(item)]
            if item.type == "provenance" and item.body.get("event") == "trained":
                trained |= _trained(item.body, chosen)
    return sum(row.digest in trained for row in rows)


def _trained(body: Mapping[str, Any], chosen: Chosen) -> frozenset[str]:
    """Digests of the rows of this file that one training learned from; none where it split another file, or otherwise."""
    data = inner(body, "data")
    share, seed = finite(data.get("held_out")), finite(data.get("split_seed"))
    if data.get("digest") != chosen.digest or share is None or seed is None:
        return frozenset()
    limit = finite(inner(inner(body, "recipe"), "data").get("limit"))
    try:
        most = None if limit is None else int(limit)
        split = split_rows(chosen.every, share, seed=int(seed), limit=most)
    except UsageError:
        return frozenset()
    told = dataset_digest(split.held_out) == data.get("held_out_digest")
    return frozenset(row.digest for row in split.train) if told else frozenset()
