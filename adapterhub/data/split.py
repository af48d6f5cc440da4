"""Which rows are trained on and which are held out, told from a row's content alone; preferences likewise.

A row is held out when the hash of its question falls below the fraction. So the answer depends neither on the order
of the file nor on the other rows; rows that ask the same question always land on the same side; and `eval` finds the
held-out rows again later from the data file, the fraction and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from adapterhub.canonical import digest_of
from adapterhub.data.rows import Example
from adapterhub.errors import UsageError

R = TypeVar("R", bound=Example)

_SCALE = 2**64


@dataclass(frozen=True)
class Split(Generic[R]):
    """Rows to train on and rows never to train on, each in the order of their digests."""

    train: tuple[R, ...]
    held_out: tuple[R, ...]
    fraction: float
    seed: int


def split_rows(
    rows: Iterable[R], held_out: float, *, seed: int = 0, limit: int | None = None
) -> Split[R]:
    """Splits `rows` with about `held_out` of them (0 <= held_out < 1) held out.

    `limit` keeps that many rows before the split, chosen by content hash as well, so it too ignores the order.
    Raises UsageError where a side that was asked for comes out empty.
    """
    if not 0 <= held_out < 1:
        raise UsageError(f"held_out is {held_out}; it must be at least 0 and less than 1.")
    ordered = sorted(rows, key=lambda row: row.digest)
    if limit is not None:
        ordered = sorted(ordered, key=lambda row: hashed(b"limit", seed, row.canonical()))[:limit]
        ordered.sort(key=lambda row: row.digest)
    train: list[R] = []
    kept_out: list[R] = []
    for row in ordered:
        out = hashed(b"held-out", seed, row.split_key) < held_out * _SCALE
        (kept_out if out else train).append(row)
    if not train or (held_out > 0 and not kept_out):
        side = "trained on" if not train else "held out"
        raise UsageError(
            f"No row would be {side}: there are {len(ordered)} rows and held_out is {held_out}.",
            hint="Use more rows or another held_out.",
        )
    return Split(tuple(train), tuple(kept_out), held_out, seed)


def dataset_digest(rows: Sequence[Example]) -> str:
    """`sha256:<hex>` over the rows' contents, whatever their order and file format."""
    lines = sorted(row.canonical() for row in rows)
    return digest_of(b"".join(line + b"\n" for line in lines))


def hashed(purpose: bytes, seed: int, content: bytes) -> int:
    """A number in [0, 2**64), uniform over contents and independent between purposes and seeds."""
    head = purpose + b"\0" + str(seed).encode("ascii") + b"\0"
    return int.from_bytes(hashlib.sha256(head + content).digest()[:8], "big")
