"""The k-th largest magnitude of deltas that are never held whole: exact.

For non-negative float32 the bit pattern, read as an integer, is in order of the value. So values are counted by bits:
integers, whose sum depends neither on the order of the tiles nor on the number of workers. Large deltas in factors are
first sampled, which gives a narrow range that almost surely holds the value: one pass counts what lies above the range,
and each bit pattern within. Otherwise, or should the range have missed it, two passes do: the first counts the upper 16
bits and finds the bin, the second the lower 15 within that bin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from threading import Lock
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from adapterhub.lora.rows import Factored, Held, Rows, blocks

T = TypeVar("T")
Counts = npt.NDArray[np.int64]

SAMPLED_FROM = 2**24
"""With fewer values than this, sampling costs more than it saves."""
_SAMPLES = 2**21
_SIGMAS = 6.0
_WIDEST = 2**22
"""Bit patterns of a range that are counted one by one."""
_LOW_BITS = 15
_HIGH_BINS = 1 << 16
_LOW_BINS = 1 << _LOW_BITS
_SEED = 0x5E1EC7


class Each(Protocol):
    """Runs a function on many things, several at a time, with progress."""

    def __call__(self, items: Sequence[str], work: Callable[[str], T], /) -> list[T]: ...


def in_turn(items: Sequence[str], work: Callable[[str], T], /) -> list[T]:
    """An `Each` for work that is one of many already."""
    return [work(item) for item in items]


def share_of(density: float, count: int, least: int = 1) -> int:
    """⌊density·count⌋, but at least `least`, of the decimal fraction that was typed.

    0.29 of 100 is 29, where binary floating point says 28.999...
    """
    return max(least, math.floor(Fraction(str(density)) * count))


def kth_largest(
    names: Sequence[str], open_rows: Callable[[str], Rows], k: int, each: Each, total: int
) -> float:
    """The k-th largest magnitude (k from 1) among all `total` values of the deltas `names`; 0 where k is beyond them."""
    if k > total:
        return 0.0
    bits = None
    if total >= SAMPLED_FROM:
        bits = _from_sample(names, open_rows, k, each, total)
    if bits is None:
        bits = _from_histogram(names, open_rows, k, each)
    return float(np.array(bits, np.int32).view(np.float32))


def _from_sample(
    names: Sequence[str], open_rows: Callable[[str], Rows], k: int, each: Each, total: int
) -> int | None:
    """One pass within a range guessed from a sample; None where a range can't be guessed, or misses."""
    count = min(_SAMPLES, total // 4)
    drawn = each(names, lambda name: _sample(name, open_rows(name), count / total))
    if any(part is None for part in drawn):
        return None
    sample = np.sort(np.concatenate([part for part in drawn if part is not None]))
    share = k / total
    spread = _SIGMAS * math.sqrt(share * (1 - share) * len(sample)) + 1
    middle = len(sample) * (1 - share)
    low = sample[max(0, math.floor(middle - spread))]
    high = sample[min(len(sample) - 1, math.ceil(middle + spread))]
    width = int(high.view(np.int32)) - int(low.view(np.int32)) + 1
    if width > _WIDEST:
        return None
    tally = _Tally(width)
    each(names, lambda name: tally.add(*_count_between(open_rows(name), low, high)))
    if not tally.above < k <= tally.above + int(tally.counts.sum()):
        return None
    found, _ = _find(tally.counts, k - tally.above)
    return int(low.view(np.int32)) + found


class _Tally:
    """Counts of all modules together, added up as they come: one array, however many modules there are."""

    def __init__(self, length: int) -> None:
        self.counts: Counts = np.zeros(length, np.int64)
        self.above = 0
        self._lock = Lock()

    def add(self, above: int, counts: Counts) -> None:
        with self._lock:
            self.above += above
            self.counts += counts


def _sample(name: str, delta: Rows, share: float) -> npt.NDArray[np.float32] | None:
    """Magnitudes at random places, independent of each other; None for a delta that isn't in factors."""
    if not isinstance(delta, Factored):
        return None
    out, width = delta.shape
    count = math.ceil(share * out * width)
    draw = np.random.default_rng([_SEED, *name.encode()])
    b, a = delta.b, delta.a.T.contiguous()
    found = []
    for first in range(0, count, 2**16):
        some = min(2**16, count - first)
        rows = torch.from_numpy(draw.integers(0, out, some)).to(b.device)
        columns = torch.from_numpy(draw.integers(0, width, some)).to(b.device)
        found.append((b[rows] * a[columns]).sum(dim=1).abs().cpu().numpy())
    drawn: npt.NDArray[np.float32] = np.concatenate(found)
    return drawn


def _count_between(delta: Rows, low: np.float32, high: np.float32) -> tuple[int, Counts]:
    """How many magnitudes are above `high`, and how many have each bit pattern from `low` to `high`."""
    start, end = int(low.view(np.int32)), int(high.view(np.int32))
    counts = np.zeros(end - start + 1, np.int64)
    above, waiting, length = 0, list[npt.NDArray[np.float32]](), 0
    for values in _magnitudes(delta):
        beyond = values > high
        above += int(np.count_nonzero(beyond))
        within = values[(values >= low) ^ beyond]
        waiting.append(within)
        length += len(within)
        if length > len(counts):  # adding up the counts costs as much as there are bit patterns
            counts += _by_bits(waiting, start, len(counts))
            waiting, length = [], 0
    return above, counts + _by_bits(waiting, start, len(counts))


def _magnitudes(delta: Rows) -> Iterator[npt.NDArray[np.float32]]:
    """Tile by tile, in place but where the tile is the held delta itself."""
    for _, tile in blocks(delta):
        yield (tile.abs() if isinstance(delta, Held) else tile.abs_()).cpu().numpy()


def _by_bits(parts: list[npt.NDArray[np.float32]], start: int, length: int) -> Counts:
    values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return np.bincount(values.view(np.int32) - start, minlength=length)


def _from_histogram(
    names: Sequence[str], open_rows: Callable[[str], Rows], k: int, each: Each
) -> int:
    """Two passes: the bin of the upper bits, then the lower bits within it."""
    high = _Tally(_HIGH_BINS)
    each(names, lambda name: high.add(0, _count(open_rows(name), None)))
    bin_, remaining = _find(high.counts, k)
    low = _Tally(_LOW_BINS)
    each(names, lambda name: low.add(0, _count(open_rows(name), bin_)))
    return bin_ << _LOW_BITS | _find(low.counts, remaining)[0]


def _count(delta: Rows, high_bin: int | None) -> Counts:
    """Counts of the upper bits of all magnitudes, or of the lower bits of those in `high_bin`."""
    counts = np.zeros(_HIGH_BINS if high_bin is None else _LOW_BINS, np.int64)
    for values in _magnitudes(delta):
        bits = values.view(np.int32).ravel()
        if high_bin is None:
            counts += np.bincount(bits >> _LOW_BITS, minlength=_HIGH_BINS)
        else:
            inside = bits[(bits >> _LOW_BITS) == high_bin]
            counts += np.bincount(inside & (_LOW_BINS - 1), minlength=_LOW_BINS)
    return counts


def _find(counts: Counts, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest, and how many of that bin are wanted."""
    from_top = np.cumsum(counts[::-1])
    index = int(np.searchsorted(from_top, wanted))
    above = int(from_top[index - 1]) if index else 0
    return len(counts) - 1 - index, wanted - above
