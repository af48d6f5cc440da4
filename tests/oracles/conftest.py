"""Dense parents made to measure, and `torch.bernoulli` answering with our masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np
import pytest
import torch

from tests.oracles.masks import Mask
from tests.support.dense import Deltas, Matrix

SHAPES = {"q_proj": (24, 32), "up_proj": (40, 24), "v_proj": (8, 32)}


def dense(*scales: float, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> list[Deltas]:
    """One parent a scale, of normal deltas that share a direction: float64 values that float32 holds exactly."""
    shared = {
        m: np.random.default_rng((99, i)).standard_normal(shapes[m]) for i, m in enumerate(shapes)
    }
    found = []
    for place, scale in enumerate(scales):
        random = np.random.default_rng(place)
        parent = {m: scale * (0.6 * shared[m] + random.standard_normal(shapes[m])) for m in shapes}
        found.append({m: d.astype(np.float32).astype(np.float64) for m, d in parent.items()})
    return found


class Draws:
    """Stands in for torch.bernoulli: hands out the masks it was given, in order, and keeps the chances it was asked for."""

    def __init__(self) -> None:
        self.masks: list[Mask] = []
        self.asked: list[Matrix] = []
        self._numbers: Iterator[int] = count()

    def __call__(self, chances: torch.Tensor) -> torch.Tensor:
        mask = self.masks[next(self._numbers)]
        assert mask.shape == chances.shape
        self.asked.append(chances.double().numpy())
        return torch.from_numpy(mask).to(chances.dtype)

    @property
    def all_drawn(self) -> bool:
        return len(self.asked) == len(self.masks)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    found = Draws()
    monkeypatch.setattr(torch, "bernoulli", found)
    return found
