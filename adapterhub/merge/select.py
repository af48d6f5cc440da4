"""The k-th largest magnitude of a delta that is never held whole: exact, in two passes.

For non-negative float32 the bit pattern, read as an integer, is in order of the value. The first pass counts the upper
16 bits and finds the bin of the k-th largest; the second counts the lower 15 bits within that bin. Counts are integers,
so neither the order of the blocks nor the number of workers matters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch

from adapterhub.lora.dense import blocks
from adapterhub.lora.parallel import for_each
from adapterhub.merge.deltas import Delta

_LOW_BITS = 15
_HIGH_BINS = 1 << 16
_LOW_BINS = 1 << _LOW_BITS


def magnitude_thresholds(
    deltas: Mapping[str, Delta],
    density: float,
    *,
    per_module: bool,
    workers: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """For every module the smallest magnitude that survives when the ⌊density·N⌋ (at least 1) largest are kept.

    N counts the elements of all modules together, or of each one with `per_module`.
    """
    names = sorted(deltas)
    if density >= 1:
        return dict.fromkeys(names, 0.0)
    high = for_each(names, lambda name: _count(deltas[name], None), workers=workers, done=done)
    if per_module:
        chosen = [
            _find(counts, _kept(density, _size(deltas[name])))
            for name, counts in zip(names, high, strict=True)
        ]
    else:
        total = int(sum(_size(delta) for delta in deltas.values()))
        chosen = [_find(_sum(high), _kept(density, total))] * len(names)
    bins = dict(zip(names, chosen, strict=True))
    low = for_each(
        names, lambda name: _count(deltas[name], bins[name][0]), workers=workers, done=done
    )
    if not per_module:
        low = [_sum(low)] * len(names)
    thresholds = {}
    for name, counts in zip(names, low, strict=True):
        high_bin, remaining = bins[name]
        low_bin, _ = _find(counts, remaining)
        thresholds[name] = struct.unpack("<f", struct.pack("<I", high_bin << _LOW_BITS | low_bin))[
            0
        ]
    return thresholds


def _kept(density: float, count: int) -> int:
    # As the decimal fraction that was typed: 0.29 of 100 is 29, where binary floating point says 28.999...
    return max(1, math.floor(Fraction(str(density)) * count))


def _size(delta: Delta) -> int:
    return delta.shape[0] * delta.shape[1]


def _count(delta: Delta, high_bin: int | None) -> torch.Tensor:
    """Counts of the upper bits of all magnitudes, or of the lower bits of those in `high_bin`."""
    counts = torch.zeros(_HIGH_BINS if high_bin is None else _LOW_BINS, dtype=torch.int64)
    for _, block in blocks(delta):
        bits = block.abs().view(torch.int32).flatten()
        if high_bin is None:
            counts += torch.bincount(bits >> _LOW_BITS, minlength=_HIGH_BINS)
        else:
            inside = bits[(bits >> _LOW_BITS) == high_bin]
            counts += torch.bincount(inside & (_LOW_BINS - 1), minlength=_LOW_BINS)
    return counts


def _find(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest, and how many of that bin are wanted."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, wanted))
    above = int(from_top[index - 1]) if index else 0
    return len(counts) - 1 - index, wanted - above


def _sum(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts).sum(dim=0)
