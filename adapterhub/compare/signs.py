"""How often two deltas have opposite signs: what TIES and its kin see of a conflict.

Signs are properties of elements, so elements have to be formed: of a fixed sample of rows, or of all rows, block by block.
Unrelated deltas have opposite signs in half of their elements.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from adapterhub.lora.adapter import Array, Factors

Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
_Bits = npt.NDArray[np.uint32]

SAMPLE_ROWS = 64
"""Rows of each module that are looked at unless all are."""

TOP_PART = 5
"""TIES keeps the largest 1/5 of the elements by default (density 0.2)."""

_TILE_VALUES = 2**18
_MAGNITUDE = np.uint32(0x7FFF_FFFF)
_LOW_BITS = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_TAME = 20


@dataclass(frozen=True)
class SignConflict:
    """Counts for two deltas in `rows` of the `of_rows` rows of a module.

    `shared` elements are other than zero in both, `opposed` of these have opposite signs. `top_shared` and `top_opposed`
    are the same among the elements that belong to the largest fifth of these rows in both deltas.
    """

    rows: int
    of_rows: int
    shared: int
    opposed: int
    top_shared: int
    top_opposed: int
    error: float
    """Standard error of `rate` by the sampling, from how the rows differ; 0 where all rows were looked at."""

    @property
    def rate(self) -> float | None:
        """Share of opposed elements, None where nothing is shared."""
        return self.opposed / self.shared if self.shared else None

    @property
    def top_rate(self) -> float | None:
        return self.top_opposed / self.top_shared if self.top_shared else None

    @property
    def stands_for(self) -> float:
        """Elements of the module that one element looked at stands for."""
        return self.of_rows / self.rows


def sample_rows(module: str, out: int, count: int = SAMPLE_ROWS) -> Rows:
    """`count` of `out` rows, rising: one from each of `count` equal stretches, always the same for a module's name.

    Which one is drawn, so that rows of one place in every attention head are no more likely than others.
    """
    if out <= count:
        return np.arange(out)
    key = hashlib.sha256(module.encode("utf-8", "surrogatepass")).digest()[:16]
    drawn = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    edges = np.arange(count + 1, dtype=np.uint64) * np.uint64(out) // np.uint64(count)
    return (edges[:-1] + drawn % np.diff(edges)).astype(np.intp)


def sign_conflicts(
    factors: Sequence[Factors], rows: Rows | None = None
) -> dict[tuple[int, int], SignConflict]:
    """Of every pair (i, j), i < j, of deltas of one module; in `rows`, which must fit into memory, or else in all."""
    out, width = factors[0].shape
    pairs = [(_tame(pair.b), _tame(pair.a)) for pair in factors]
    if rows is None:
        rows, height = np.arange(out), out

        def tiles() -> Iterable[list[Array]]:
            return _products(pairs, np.arange(out))
    else:
        height, kept = len(rows), list(_products(pairs, rows))

        def tiles() -> Iterable[list[Array]]:
            return kept

    least = _thresholds(tiles, len(pairs), max(1, height * width // TOP_PART))
    tallies = {pair: _Tally() for pair in combinations(range(len(pairs)), 2)}
    for tile in tiles():
        negative = [block < 0 for block in tile]
        there = [block != 0 for block in tile]
        top = [_magnitude(block) >= limit for block, limit in zip(tile, least, strict=True)]
        for (one, other), tally in tallies.items():
            tally.add(
                negative[one] != negative[other],
                there[one] & there[other],
                top[one] & top[other],
            )
    return {pair: tally.conflict(height, out) for pair, tally in tallies.items()}


class _Tally:
    """Counts of one pair, row by row for the error of the sampling."""

    def __init__(self) -> None:
        self.shared: list[npt.NDArray[np.intp]] = []
        self.opposed: list[npt.NDArray[np.intp]] = []
        self.top_shared = self.top_opposed = 0

    def add(self, opposite: Mask, both: Mask, top: Mask) -> None:
        opposed = opposite & both
        self.shared.append(np.count_nonzero(both, axis=1))
        self.opposed.append(np.count_nonzero(opposed, axis=1))
        self.top_shared += int(np.count_nonzero(both & top))
        self.top_opposed += int(np.count_nonzero(opposed & top))

    def conflict(self, rows: int, of_rows: int) -> SignConflict:
        shared, opposed = np.concatenate(self.shared), np.concatenate(self.opposed)
        total, against = int(shared.sum()), int(opposed.sum())
        error = 0.0
        if 1 < rows < of_rows and total:
            # of a ratio of two sums over rows drawn without putting back
            spread = float(np.var(opposed - against / total * shared, ddof=1))
            error = math.sqrt(rows * (1 - rows / of_rows) * spread) / total
        return SignConflict(rows, of_rows, total, against, self.top_shared, self.top_opposed, error)


def _products(pairs: list[tuple[Array, Array]], rows: Rows) -> Iterator[list[Array]]:
    """The rows of every delta, tile by tile: a list of (n, in) with the deltas in order."""
    step = max(1, _TILE_VALUES // max(1, pairs[0][1].shape[1]))
    for first in range(0, len(rows), step):
        chosen = rows[first : first + step]
        yield [b[chosen] @ a for b, a in pairs]


def _tame(factor: Array) -> Array:
    """`factor` times a power of two where its products might leave float32's range; no sign or order depends on it."""
    largest = max(float(factor.max(initial=0)), -float(factor.min(initial=0)))
    exponent = math.frexp(largest)[1]
    return factor if abs(exponent) < _TAME else np.ldexp(factor, -exponent)


def _magnitude(block: Array) -> _Bits:
    """Bit patterns without the sign: for floating point they are in order of the magnitude."""
    return block.view(np.uint32) & _MAGNITUDE


def _thresholds(
    tiles: Callable[[], Iterable[list[Array]]], deltas: int, wanted: int
) -> list[np.uint32]:
    """For each delta the `wanted`-th largest magnitude, exactly: first its upper bits are found, then its lower ones."""
    high = np.zeros((deltas, 1 << 15), np.int64)
    for tile in tiles():
        for counts, block in zip(high, tile, strict=True):
            counts += np.bincount((_magnitude(block) >> _LOW_BITS).ravel(), minlength=len(counts))
    found = [_from_top(counts, wanted) for counts in high]
    low = np.zeros((deltas, 1 << 16), np.int64)
    for tile in tiles():
        for counts, block, (bin_, _) in zip(low, tile, found, strict=True):
            bits = _magnitude(block)
            inside = bits[bits >> _LOW_BITS == bin_] & _LOW
            counts += np.bincount(inside, minlength=len(counts))
    return [
        np.uint32(bin_ << 16 | _from_top(counts, rest)[0])
        for counts, (bin_, rest) in zip(low, found, strict=True)
    ]


def _from_top(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest, and how many of that bin are wanted."""
    from_top = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_top, wanted))
    above = int(from_top[index - 1]) if index else 0
    return len(counts) - 1 - index, wanted - above
