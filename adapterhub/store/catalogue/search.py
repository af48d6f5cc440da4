"""Finding adapters in the catalogue: one query with everything `ls` can filter by."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from adapterhub.errors import AdapterHubError, UsageError
from adapterhub.store.catalogue.cachefile import storable

if TYPE_CHECKING:
    from adapterhub.base import BaseModel, BaseRegistry
    from adapterhub.store.catalogue.belonging import WantedBase
    from adapterhub.store.catalogue.shapes import Fitting

SORTS = ("name", "added", "size", "rank", "base")
_RANKS = re.compile(r"(?P<low>\d{1,18})?(?P<dots>\.\.)?(?P<high>\d{1,18})?\Z")
_COMPARED = re.compile(r"(?P<how>>=|<=|>|<)\s*(?P<rank>\d{1,18})\Z")


class Found(NamedTuple):
    """One name and what the catalogue knows of its adapter.

    `targets` is JSON; `base` the claim, `label` what to call it; `metric` and `score` what the newest evaluation
    measured, `scored_on` the digest of its rows.
    """

    name: str
    digest: str
    added: str
    kind: str
    base: str | None
    revision: str | None
    claimed: str | None
    fingerprint: str | None
    known_repo: str | None
    rank: int | None
    alpha: float | None
    targets: str | None
    modules: int | None
    parameters: int | None
    dtype: str | None
    size: int
    content: str
    event: str | None
    method: str | None
    license: str | None
    metric: str | None
    score: float | None
    scored_on: str | None
    shape: int | None
    label: str | None = None
    note: str | None = None
    """How it belongs to the base that was asked for, or what its fingerprint says of the base it is to fit."""


@dataclass(frozen=True)
class Query:
    """What to look for; everything given must hold."""

    text: str = ""
    """Part of a name, or the beginnings of words anywhere: names, base, targets, model card, provenance, notes."""
    base: WantedBase | None = None
    fits: BaseModel | None = None
    targets: tuple[str, ...] = ()
    ranks: tuple[int, int] | None = None
    method: str | None = None
    """How it was made: `ties`, `qlora`, or in general `merged`, `trained`, `imported`."""
    parent: str | None = None
    """Only adapters made from the one with this digest, directly."""
    kind: str | None = None
    unused_since: float | None = None
    """Only what nothing has been done with since this time (seconds since 1970); see `use`."""
    in_use: Mapping[str, float] | None = None
    """When the adapters were last used, as far as the catalogue can't know it: digest -> time."""
    sort: str = "name"
    reverse: bool = False


def parse_ranks(text: str) -> tuple[int, int]:
    """The ranks in `8`, `8..64`, `8..`, `..64`, `>=16`, `<16`: the lowest and the highest. UsageError otherwise."""
    if match := _COMPARED.match(text.strip()):
        rank = int(match["rank"])
        return {
            ">=": (rank, sys.maxsize),
            ">": (rank + 1, sys.maxsize),
            "<=": (0, rank),
            "<": (0, rank - 1),
        }[match["how"]]
    match = _RANKS.match(text.strip())
    if (
        match is None
        or not (match["low"] or match["high"])
        or (match["low"] and match["high"] and not match["dots"])
    ):
        raise UsageError(
            f"'{text}' is no rank.",
            why="It must be a number, a range, or a bound.",
            hint="For example --rank 8, --rank 8..64 or --rank '>=16'.",
        )
    low = int(match["low"]) if match["low"] else 0
    if not match["dots"]:
        return low, low
    return low, int(match["high"]) if match["high"] else sys.maxsize


def search(
    db: sqlite3.Connection,
    query: Query,
    labels: Mapping[str, str],
    columns: Collection[str] = Found._fields,
) -> list[Found]:
    """The names whose adapters match, in the order asked for.

    Args:
        labels: what the bases with a known fingerprint are called on this machine.
        columns: the fields of Found that are wanted; the others may be None.
    """
    conditions, values = _conditions(query)
    wanted = {"name", "digest", query.sort, *columns}
    if query.fits is not None or query.base is not None or labels:
        wanted |= {"base", "revision", "claimed", "fingerprint", "shape"}
    if query.sort == "base":
        wanted.add("label")
    selected = ", ".join(
        _SELECTED.get(field, f"a.{field}") if field in wanted else "NULL" for field in Found._fields
    )
    rows = db.execute(
        f"""SELECT {selected} FROM names n JOIN adapters a ON a.id = n.adapter
            WHERE a.kind NOTNULL {"".join(f" AND {condition}" for condition in conditions)}
            ORDER BY n.namespace, n.name, n.tag""",  # noqa: S608 - fields and conditions are ours, values are bound
        storable(values),  # an argument may hold bytes that are no UTF-8
    )
    found = list(map(Found._make, rows))
    if labels:
        found = [_labelled(row, labels) for row in found]
    if query.base is not None:
        found = _belonging(db, query.base, found)
    if query.fits is not None:
        found = _fitting(db, query.fits, found)
    if query.sort != "name":
        attribute = "label" if query.sort == "base" else query.sort
        found.sort(key=lambda row: _nothing_last(getattr(row, attribute)))
    return found[::-1] if query.reverse else found


_SELECTED = {
    "name": "n.label",
    "digest": "n.digest",
    "added": "n.added",
    "label": "coalesce(a.base, a.known_repo)",
    "note": "NULL",
}


def damage(db: sqlite3.Connection) -> list[tuple[str, AdapterHubError]]:
    """Names that can't be read or whose adapters can't, and why."""
    rows = db.execute(
        # The planner would read all names for the few that are wrong.
        """SELECT label, error FROM names INDEXED BY names_wrong WHERE error NOTNULL
           UNION SELECT label, a.error FROM adapters a INDEXED BY adapters_wrong CROSS JOIN names USING (digest)
                 WHERE a.error NOTNULL
           ORDER BY label"""
    )
    return [(label, error_from(text)) for label, text in rows]


def labels_of(db: sqlite3.Connection, bases: Callable[[], BaseRegistry]) -> dict[str, str]:
    """What the bases of this machine are called, by fingerprint, where an adapter doesn't claim one itself.

    `bases` is called only where one is needed: what it loads is more than all the rest of a listing.
    """
    if (
        db.execute(
            "SELECT 1 FROM adapters WHERE base ISNULL AND fingerprint NOTNULL LIMIT 1"
        ).fetchone()
        is None
    ):
        return {}
    return {
        record["fingerprint"]: str(record["repo"] or record["path"].rpartition("/")[2])
        for record in reversed(bases().records())
    }


def error_from(text: str) -> AdapterHubError:
    """The error that was kept as text."""
    import adapterhub.errors

    kind, what, why, hint = json.loads(text)
    found = getattr(adapterhub.errors, str(kind), AdapterHubError)
    error: AdapterHubError = found(what, why=why, hint=hint)
    return error


def _conditions(query: Query) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []

    def also(condition: str, *bound: Any) -> None:
        conditions.append(condition)
        values.extend(bound)

    text = query.text.replace("\0", " ").strip()
    if text:
        words = _words(text)
        in_name = "instr(lower(n.label), lower(?))"
        if words:
            also(
                f"({in_name} OR a.id IN (SELECT rowid FROM search WHERE search MATCH ?))",  # noqa: S608
                text,
                words,
            )
        else:
            also(in_name, text)
    if query.kind is not None:
        also("a.kind = lower(?)", query.kind)
    if query.method is not None:
        also("lower(?) IN (a.method, a.event)", query.method)
    if query.ranks is not None:
        also("a.rank BETWEEN ? AND ?", *query.ranks)
    for target in query.targets:
        also("EXISTS (SELECT 1 FROM json_each(a.targets) WHERE value = ?)", target)
    if query.parent is not None:
        also("a.id IN (SELECT adapter FROM parents WHERE parent = ?)", query.parent)
    if query.unused_since is not None:
        also(_UNUSED, query.unused_since)
        used = [digest for digest, at in (query.in_use or {}).items() if at >= query.unused_since]
        also("a.digest NOT IN (SELECT value FROM json_each(?))", json.dumps(used))
    return conditions, values


# The last statement about it, the last line of the journal that names it, the last adapter made of it.
_UNUSED = """max(
    coalesce(strftime('%s', a.used), 0) + 0,
    coalesce((SELECT strftime('%s', at) FROM touched t WHERE t.digest = a.digest), 0) + 0,
    coalesce((SELECT max(strftime('%s', at) + 0) FROM parents WHERE parent = a.digest), 0)
) < ?"""


def _words(text: str) -> str:
    """The text as a query of FTS5: every word a quoted prefix, so that none of it is read as an operator."""
    words = [word for word in text.split() if any(map(str.isalnum, word))]
    return " ".join('"' + word.replace('"', '""') + '"*' for word in words)


def _labelled(row: Found, labels: Mapping[str, str]) -> Found:
    label = labels.get(row.fingerprint or "")
    return row._replace(label=label) if row.base is None and label else row


def _noted(row: Found, note: str) -> Found:
    return Found._make((*row[:-1], note))  # what _replace does, in half the time


def _belonging(db: sqlite3.Connection, base: WantedBase, rows: list[Found]) -> list[Found]:
    shapes: Fitting | None = None
    if base.model is not None:
        from adapterhub.store.catalogue.shapes import Fitting

        shapes = Fitting(db, base.model)
    return [_noted(row, how) for row in rows if (how := base.belongs(row, shapes))]


def _fitting(db: sqlite3.Connection, base: BaseModel, rows: list[Found]) -> list[Found]:
    from adapterhub.store.catalogue.shapes import Fitting

    fitting = Fitting(db, base)
    found = []
    for row in rows:
        if row.shape is not None:
            verdict = fitting.verdict(row.shape, row.base, row.revision, row.fingerprint)
            if verdict.ok:
                found.append(_noted(row, row.note or f"fingerprint {verdict.fingerprint}"))
    return found


def _nothing_last(value: Any) -> tuple[bool, Any]:
    return (
        value is None,
        "" if value is None else value.lower() if isinstance(value, str) else value,
    )


@lru_cache(maxsize=1024)
def targets_of(text: str | None) -> list[str] | str | None:
    """The targets as the manifest has them, from the JSON of a row."""
    found: list[str] | str | None = None if text is None else json.loads(text)
    return found
