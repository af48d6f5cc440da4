"""The k-th largest magnitude is exact: the same float32 number that sorting everything gives."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.lora import dense
from adapterhub.merge.deltas import Delta
from adapterhub.merge.select import magnitude_thresholds

LAW = settings(max_examples=60, deadline=None)


def delta(seed: int, out: int, width: int, rank: int = 3, scale: float = 1.0) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(out, rank, generator=generator) * scale
    return Delta(b, torch.randn(rank, width, generator=generator))


def kth_largest(deltas: list[Delta], density: float) -> tuple[float, int]:
    """By numpy.partition on all magnitudes; and how many are kept."""
    values = np.abs(np.concatenate([dense.whole(one).numpy().ravel() for one in deltas]))
    keep = max(1, math.floor(Fraction(str(density)) * len(values)))  # of the number as it was typed
    return float(np.partition(values, len(values) - keep)[len(values) - keep]), keep


@LAW
@given(
    seed=st.integers(0, 2**31),
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    exponent=st.integers(-30, 30),
    density=st.floats(1e-4, 0.9999),
    per_module=st.booleans(),
)
def test_the_threshold_is_the_kth_largest_to_the_bit(
    seed: int, shapes: list[tuple[int, int]], exponent: int, density: float, per_module: bool
) -> None:
    deltas = {
        f"m{i}": delta(seed + i, *shape, scale=2.0 ** (exponent * (i + 1) / 2))
        for i, shape in enumerate(shapes)
    }
    found = magnitude_thresholds(deltas, density, per_module=per_module, workers=1)
    for name, one in deltas.items():
        expected, _ = kth_largest([one] if per_module else list(deltas.values()), density)
        assert found[name] == expected


@pytest.mark.parametrize("per_module", [True, False])
@pytest.mark.parametrize(
    ("density", "kept"), [(0.29, 29), (0.57, 57), (0.58, 58), (0.07, 7), (0.999, 99)]
)
def test_a_share_is_of_the_number_as_it_was_typed(
    density: float, kept: int, per_module: bool
) -> None:
    # 0.29 * 100 and 0.57 * 100 are below 29 and 57 in floating point, and 0.07 * 100 is above 7.
    one = delta(0, 10, 10)
    threshold = magnitude_thresholds({"m": one}, density, per_module=per_module, workers=1)["m"]
    assert int((dense.whole(one).abs() >= threshold).sum()) == kept


@pytest.mark.parametrize("per_module", [True, False])
def test_ties_subnormals_and_zeros_are_counted_right(per_module: bool) -> None:
    values = torch.tensor(
        [[0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, -1.0, 1.0, 3.4e38, -1.1754944e-38]]
    )
    exact = Delta(torch.ones(1, 1), values)
    for keep in range(1, 10):
        found = magnitude_thresholds({"m": exact}, keep / 10, per_module=per_module, workers=1)["m"]
        assert found == float(
            values.abs().flatten().sort(descending=True).values[int(keep / 10 * 10) - 1]
        ), keep


def test_tiles_and_workers_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whole numbers: their products are exact, so only the counting could depend on how the rows are cut.
    generator = torch.Generator().manual_seed(3)
    deltas = {
        f"m{i}": Delta(
            torch.randint(-9, 9, (70 + i, 4), generator=generator).float(),
            torch.randint(-9, 9, (4, 50), generator=generator).float(),
        )
        for i in range(3)
    }
    results = []
    for tile, workers in ((2**22, 1), (100, 1), (1, 2), (777, 2)):
        monkeypatch.setattr(dense, "TILE_VALUES", tile)
        results.append(magnitude_thresholds(deltas, 0.137, per_module=False, workers=workers))
    assert results[1:] == results[:1] * 3
    assert results[0]["m0"] == kth_largest(list(deltas.values()), 0.137)[0]


def test_everything_survives_a_density_of_one() -> None:
    assert magnitude_thresholds({"m": delta(0, 5, 5)}, 1.0, per_module=True, workers=1) == {
        "m": 0.0
    }
