"""Random numbers by place: which ones an element gets depends on the seed, the parent, the module and the element alone.

The stream of a parent's module is Philox 4x64 (Salmon et al. 2011, doi:10.1145/2063384.2063405), keyed by the first 16
bytes of sha256("SEED/PARENT/MODULE"), read as little-endian uint32; element row·in + column takes the number of that index.
So any tile can be made by itself, and the result depends neither on workers nor on tiles.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

_PER_STEP = 8  # uint32 of one counter step: 4 x 64 bits


class RandomStream:
    """The random uint32 of one parent's module."""

    def __init__(self, seed: int, parent: int, module: str) -> None:
        digest = hashlib.sha256(f"{seed}/{parent}/{module}".encode()).digest()
        self._key = int.from_bytes(digest[:16], "little")

    def numbers(self, first: int, count: int) -> npt.NDArray[np.uint32]:
        """`count` numbers from index `first` on."""
        generator = np.random.Philox(key=self._key)
        generator.advance(first // _PER_STEP)
        skipped = first % _PER_STEP
        raw = generator.random_raw((skipped + count + 1) // 2)
        return raw.astype("<u8", copy=False).view("<u4")[skipped : skipped + count]


def limit(chance: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """What a number must be below for something of this chance to happen: chance·2³², rounded."""
    return np.rint(np.asarray(chance, np.float64) * 2.0**32).astype(np.uint64)
