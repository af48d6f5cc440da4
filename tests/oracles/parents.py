"""What every oracle takes: the parents' deltas side by side, and parameters by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tests.support.dense import Deltas

Parameters = Mapping[str, float | str | bool]
Vector = npt.NDArray[np.float64]
Stack = npt.NDArray[np.float64]
"""(K, out, in): one module of all parents."""


class Oracle(Protocol):
    """One merge method on dense deltas. Methods without weights or random masks ignore `weights` or `seed`."""

    def __call__(
        self,
        parents: Sequence[Deltas],
        weights: Sequence[float],
        parameters: Parameters,
        seed: int = 0,
    ) -> Deltas: ...


def stacks(parents: Sequence[Deltas]) -> dict[str, Stack]:
    """Module -> (K, out, in), sorted by module; zeros for a parent that lacks the module."""
    shapes = {module: delta.shape for parent in parents for module, delta in parent.items()}
    return {
        module: np.stack([parent.get(module, np.zeros(shapes[module])) for parent in parents])
        for module in sorted(shapes)
    }


def column(weights: Sequence[float]) -> Stack:
    """The weights as (K, 1, 1), to multiply a stack with."""
    return np.asarray(weights, dtype=np.float64)[:, None, None]


def number(parameters: Parameters, name: str) -> float:
    return float(parameters[name])


def share(part: float, count: int) -> int:
    """⌊part·count⌋ of the decimal number that `part` was written as: 29% of 100 is 29, which binary floats make 28."""
    return math.floor(Fraction(str(part)) * count)
