"""Random masks, the whole stream of a module at once.

Element e = row·in + column of parent number i is kept iff u_e < round(p·2³²), u_e the e-th 32-bit word of the Philox
generator whose key is the first half of SHA-256 of "seed/i/module".
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from tests.support.dense import Matrix

Mask = npt.NDArray[np.bool_]


def stream(seed: int, parent: int, module: str, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The words u_e of a module in its shape; parents are numbered from 0, by their place in the recipe."""
    count = math.prod(shape)
    digest = hashlib.sha256(f"{seed}/{parent}/{module}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    pairs = generator.random_raw((count + 1) // 2).astype("<u8")
    return pairs.view("<u4")[:count].astype(np.int64).reshape(shape)


def limit(chance: float | Matrix) -> npt.NDArray[np.int64]:
    """round(p·2³²): the words below it keep their element."""
    return np.rint(np.asarray(chance, dtype=np.float64) * 2**32).astype(np.int64)


def kept(
    chance: float | Matrix, seed: int, parent: int, module: str, shape: tuple[int, ...]
) -> Mask:
    """Which elements are kept with probability `chance`, one for all or one each."""
    return stream(seed, parent, module, shape) < limit(chance)
