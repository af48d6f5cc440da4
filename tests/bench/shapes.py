"""Adapters of the shape of Llama-3.1-8B, made of random factors whose spectrum falls as that of trained ones does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.support.adapters import AdapterMaker, Array, linears

HIDDEN, KEY_VALUE, INNER, LAYERS = 4096, 1024, 14336, 32
LINEARS = linears(HIDDEN, KEY_VALUE, INNER)
"""The seven linears of a layer, as (out, in)."""
KINDS: Mapping[str, str] = {
    "k_proj": "k and v",
    "q_proj": "q and o",
    "up_proj": "gate and up",
    "down_proj": "down",
}
"""One module of every shape, and the modules of a layer that have it."""

_SHARED = slice(1, 3)
"""Directions that all adapters have in common, so that their cosines are not all zero."""


def modules(layers: int = LAYERS, *targets: str) -> dict[str, tuple[int, int]]:
    """The linears of the first `layers` layers whose last part is in `targets`, all seven when none is named."""
    return {
        f"model.layers.{layer}.{linear}": shape
        for layer in range(layers)
        for linear, shape in LINEARS.items()
        if not targets or linear.rpartition(".")[2] in targets
    }


def alike(kind: str) -> int:
    """How many modules of a layer have the shape of `kind`."""
    found = modules(1)
    mine = modules(1, kind)
    return sum(shape in mine.values() for shape in found.values())


def parameters(layers: int, rank: int) -> int:
    """Numbers in one adapter."""
    return rank * sum(out + width for out, width in modules(layers).values())


def decaying(
    shapes: Mapping[str, tuple[int, int]], rank: int, number: int
) -> dict[str, tuple[Array, Array]]:
    """Factors (B, A) of the adapter `number`; direction j of a module has a singular value of about 1/(j + 1)."""
    found = {}
    for place, (module, (out, width)) in enumerate(shapes.items()):
        b, a = _normal((place, number), out, width, rank)
        common_b, common_a = _normal((place,), out, width, 3)
        b[:, _SHARED], a[_SHARED] = common_b[:, _SHARED], common_a[_SHARED]
        b /= np.arange(1, rank + 1, dtype=np.float32)
        found[module] = (b, a)
    return found


def write(
    root: Path, name: str, layers: int, rank: int, dtype: str, number: int, *targets: str
) -> Path:
    """The adapter `number` as a PEFT folder below `root`; for the modules of `targets`, or all seven of a layer."""
    shapes = modules(layers, *targets)
    factors = decaying(shapes, rank, number)
    # Without a task type PEFT loads it onto a model that can't generate text, too.
    return AdapterMaker(root)(
        name, rank=rank, alpha=2 * rank, dtype=dtype, factors=factors, task_type=None
    )


def _normal(seed: tuple[int, ...], out: int, width: int, rank: int) -> tuple[Array, Array]:
    """Standard normal factors (out, rank) and (rank, width), each column and row of norm about 1."""
    random = np.random.default_rng(seed)
    b = random.standard_normal((rank, out), dtype=np.float32).T.copy()
    a = random.standard_normal((rank, width), dtype=np.float32)
    b /= np.float32(out**0.5)
    a /= np.float32(width**0.5)
    return b, a
