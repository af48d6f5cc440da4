"""Adapters that relate to another one as a test wants it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.support.adapters import Factors, Shapes, llama_modules, random_factors

LAYERS = 6
ALL = llama_modules(layers=range(LAYERS))


def layer(module: str) -> int:
    return int(module.split(".")[2])


def mixed(
    one: Factors,
    cosine: Callable[[str], float],
    *,
    seed: int = 1,
    times: float = 1.0,
    modules: Shapes = ALL,
) -> Factors:
    """Factors (of twice the rank) whose deltas have about this cosine with those of `one`, module by module."""
    found = {}
    for module, (b, a) in random_factors(modules, seed=seed).items():
        c = cosine(module)
        mine, theirs = one[module]
        left = np.concatenate([c * mine, np.sqrt(1 - c * c) * b], axis=1)
        found[module] = (times * left, np.concatenate([theirs, a]))
    return found
