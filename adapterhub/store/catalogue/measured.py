"""What evaluations measured, by a key each: `json` of the data, `forgetting.passed` of a suite or task. The newest one counts.

Numbers on other rows than another adapter's don't compare, so each is kept with the digest of its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from adapterhub.errors import UsageError
from adapterhub.evaluated import PERPLEXITY, Difference, Number, evaluation_of, number_in_words
from adapterhub.words import did_you_mean, some

if TYPE_CHECKING:
    import sqlite3

    from adapterhub.manifest import Attestation

PREFIX = "eval:"
"""Before a key, where columns and orders are named."""


class Measured(NamedTuple):
    """The newest number of one key."""

    key: str
    measure: str
    """The key without its suite or task."""
    value: float
    verdict: str | None
    difference: float | None
    low: float | None
    high: float | None
    """How it differs from the base's, and between which values; None where that isn't known."""
    rows: int | None
    scored_on: str | None
    """The digest of the rows."""

    @property
    def words(self) -> str:
        """`0.95 (better, +0.1 (+0.02 to +0.18))`."""
        versus = None
        if self.difference is not None and self.low is not None and self.high is not None:
            versus = Difference(self.difference, self.low, self.high, self.verdict)
        return number_in_words(self.measure, Number(self.value, versus))


def measured_by(known: Iterable[Attestation]) -> list[Measured]:
    """The numbers of an adapter's evaluations (the oldest first), each key once."""
    newest: dict[str, Measured] = {}
    for item in known:
        found = evaluation_of(item)
        if found is None:
            continue
        for name, number in found.numbers.items():
            key = f"{found.task}.{name}" if found.task is not None else name
            versus = number.versus_base
            newest[key] = Measured(
                key=key,
                measure=name,
                value=number.value,
                verdict=versus.verdict if versus else None,
                difference=versus.estimate if versus else None,
                low=versus.low if versus else None,
                high=versus.high if versus else None,
                rows=found.rows,
                scored_on=found.rows_digest,
            )
    return list(newest.values())


def known_keys(db: sqlite3.Connection) -> list[str]:
    """Everything that anything was measured by."""
    return [key for (key,) in db.execute("SELECT DISTINCT key FROM measured ORDER BY key")]


def require_known(db: sqlite3.Connection, key: str) -> None:
    """UsageError where no adapter has been measured by `key`."""
    known = known_keys(db)
    if key in known:
        return
    raise UsageError(
        f"Nothing here was measured by '{key}'.",
        why=did_you_mean(key, known) or (f"There are: {some(known, 8)}." if known else ""),
        hint="adapterhub eval NAME base --data FILE --measure json  measures, and eval:json names that.",
    )


def numbers_by(db: sqlite3.Connection, key: str) -> dict[str, Measured]:
    """What every adapter was measured by `key`, by the adapter's digest."""
    rows = db.execute(
        f"SELECT a.digest, {', '.join(f'm.{name}' for name in Measured._fields)}"  # noqa: S608 - the fields are ours
        " FROM measured m JOIN adapters a ON a.id = m.adapter WHERE m.key = ?",
        (key,),
    )
    return {digest: Measured._make(values) for digest, *values in rows}


def best_first(
    digests: Sequence[str], numbers: Mapping[str, Measured], *, reverse: bool
) -> list[int]:
    """The places of `digests` from the best number to the worst, or the other way round; what has none is last.

    Of a perplexity less is better, of everything else more.
    """
    known = [place for place, digest in enumerate(digests) if digest in numbers]

    def value(place: int) -> float:
        one = numbers[digests[place]]
        return one.value if one.measure == PERPLEXITY else -one.value

    ordered = sorted(known, key=value, reverse=reverse)
    return ordered + [place for place, digest in enumerate(digests) if digest not in numbers]
