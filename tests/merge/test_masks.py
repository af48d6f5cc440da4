"""Random masks depend on seed, parent, module and element alone, and are as likely as they claim."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.lora import rows
from adapterhub.lora.rows import Held, Rows, whole
from adapterhub.merge.methods.masks import RandomStream, limit
from adapterhub.merge.methods.pruning import Dropped, RankDropped
from tests.lora.matrices import Streamed, normal
from tests.oracles import stream
from tests.oracles.elementwise import chances

LAW = settings(max_examples=60, deadline=None)
MODULE = "model.layers.0.mlp.up_proj"
SIGMAS = 4


@LAW
@given(
    seed=st.integers(0, 2**63 - 1),
    parent=st.integers(0, 20),
    module=st.text(min_size=1, max_size=40),
    first=st.integers(0, 300),
    count=st.integers(0, 300),
)
def test_any_stretch_of_the_numbers_is_that_of_the_whole_stream(
    seed: int, parent: int, module: str, first: int, count: int
) -> None:
    whole_stream = stream(seed, parent, module, (600,))
    found = RandomStream(seed, parent, module).numbers(first, count)
    assert found.dtype == np.uint32
    assert np.array_equal(found, whole_stream[first : first + count])


def test_a_stretch_far_out_is_reached_without_walking_there() -> None:
    # A hundred million elements in; 2**32 elements are a matrix of 65536 by 65536, where 32 bits would start again.
    for place in (10**8 + 3, 2**32 + 5):
        found = RandomStream(1, 0, MODULE).numbers(place, 4)
        key = hashlib.sha256(f"1/0/{MODULE}".encode()).digest()[:16]
        step = np.random.Philox(key=int.from_bytes(key, "little"))
        step.advance(place // 8)
        words = step.random_raw(8).astype("<u8").view("<u4")
        assert np.array_equal(found, words[place % 8 :][:4])


def test_another_seed_parent_or_module_gives_other_numbers() -> None:
    streams = [
        RandomStream(*key).numbers(0, 1000)
        for key in ((0, 0, "q"), (1, 0, "q"), (0, 1, "q"), (0, 0, "k"), (10, 0, "q"), (1, 1, "q"))
    ]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert (one == other).sum() <= 2
            # ... and not by a shift of the same ones
            assert len(np.intersect1d(one, other)) <= 2


@pytest.mark.parametrize("chance", [0.0, 1e-4, 0.1, 0.3, 0.5, 0.999, 1.0])
def test_a_chance_is_met_to_four_sigma(chance: float) -> None:
    count = 400_000
    kept = (RandomStream(3, 0, MODULE).numbers(0, count) < limit(chance)).sum()
    assert abs(kept - chance * count) <= SIGMAS * math.sqrt(chance * (1 - chance) * count)


def test_numbers_next_to_each_other_are_independent() -> None:
    # All four outcomes of a pair at chance 0.3, along a row and down a column.
    kept = (RandomStream(3, 0, MODULE).numbers(0, 400 * 512) < limit(0.3)).reshape(400, 512)
    for one, other in ((kept[:, :-1], kept[:, 1:]), (kept[:-1], kept[1:])):
        for first, second in ((True, True), (True, False), (False, True), (False, False)):
            chance = (0.3 if first else 0.7) * (0.3 if second else 0.7)
            count = int(((one == first) & (other == second)).sum())
            assert abs(count - chance * one.size) <= 6 * math.sqrt(chance * (1 - chance) * one.size)


def dropped(inner: Rows, rescale: str = "none") -> Rows:
    return Dropped(inner, 0.4, RandomStream(5, 1, MODULE), rescale)


def rank_dropped(inner: Rows, rescale: str = "none") -> Rows:
    return RankDropped(inner, 0.4, 0.3, RandomStream(5, 1, MODULE), rescale)


@pytest.mark.parametrize("drop", [dropped, rank_dropped])
@pytest.mark.parametrize("rescale", ["inverse", "l1", "none"])
def test_tiles_make_no_difference_to_what_is_dropped(
    drop: Callable[[Rows, str], Rows], rescale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = normal(37, 29)
    for build in (Streamed, Held):
        found = []
        for tile in (1, 29 * 5, 10_000):
            monkeypatch.setattr(rows, "TILE_VALUES", tile)
            found.append(whole(drop(build(matrix.clone()), rescale)))
        # An L1 norm is added up tile by tile, so that its last bits may differ; what stays may not.
        assert all(torch.equal(one != 0, found[0] != 0) for one in found)
        assert all(torch.allclose(one, found[0], rtol=1e-6, atol=0) for one in found)


def test_what_stays_is_rescaled_to_the_same_mean_or_the_same_l1_norm_or_not_at_all() -> None:
    matrix = normal(60, 50)
    plain = whole(dropped(Streamed(matrix)))
    stays = plain != 0
    assert torch.equal(plain, torch.where(stays, matrix, 0.0))
    assert torch.allclose(whole(dropped(Streamed(matrix), "inverse")), plain / 0.4)
    restored = whole(dropped(Streamed(matrix), "l1"))
    assert float(restored.abs().sum()) == pytest.approx(float(matrix.abs().sum()), rel=1e-5)
    assert torch.equal(restored != 0, stays)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.25), (0.8, 0.0)])
def test_magprune_keeps_every_rank_as_often_as_it_says(density: float, epsilon: float) -> None:
    matrix = normal(4000, 9)
    found = whole(
        RankDropped(
            Streamed(matrix), density, epsilon, RandomStream(0, 0, MODULE), rescale="inverse"
        )
    )
    settings: Any = {"density": density, "epsilon": epsilon}
    chance = torch.from_numpy(chances(matrix.double().numpy(), settings)).float()
    stays = found != 0
    assert torch.allclose(found[stays], (matrix / chance)[stays])
    for rank in range(9):
        p = density - epsilon + 2 * epsilon * rank / 8
        of_this_rank = (chance - p).abs() < 1e-6
        count, kept = int(of_this_rank.sum()), int((stays & of_this_rank).sum())
        assert count >= 4000
        assert abs(kept - p * count) <= SIGMAS * math.sqrt(p * (1 - p) * count)


def test_of_equal_magnitudes_the_earlier_column_ranks_lower() -> None:
    matrix = torch.tensor([[2.0, -1.0, 1.0, -2.0, 0.0, 1.0]]).repeat(30, 1)
    found = whole(RankDropped(Streamed(matrix), 0.5, 0.3, RandomStream(2, 0, "m"), "inverse"))
    ranks = torch.tensor([4, 1, 2, 5, 0, 3])
    expected = matrix / (0.5 - 0.3 + 2 * 0.3 * ranks / 5)
    stays = found != 0
    assert torch.allclose(found[stays], expected.expand_as(found)[stays])
    assert stays.any(dim=0)[matrix[0] != 0].all()
