"""The best low-rank form of a delta that isn't of low rank, exact and randomised, against torch's float64 SVD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from adapterhub.lora import dense, rows
from adapterhub.lora.dense import EXACT_SIDE, best_rank
from adapterhub.lora.lowrank import Spectrum
from adapterhub.lora.memory import Memory
from tests.lora.matrices import Streamed, decaying, flat, normal, sparse
from tests.lora.spectra import kept_by

WIDE = (EXACT_SIDE + 50, EXACT_SIDE + 260)
SHAPES = [WIDE, WIDE[::-1], (EXACT_SIDE + 60, EXACT_SIDE + 60)]
"""Large enough to be approximated, none of them a whole number of tiles."""


def lost(found: Spectrum, matrix: torch.Tensor) -> float:
    """Norm of what `found` misses."""
    return float((found.b.double() @ found.a.double() - matrix.double()).norm())


def best(matrix: torch.Tensor, rank: int, budget: int = Memory().limit) -> Spectrum:
    return best_rank(Streamed(matrix), rank, Memory(budget))


@pytest.mark.parametrize("shape", [(70, 40), (40, 70), (50, 50), (1, 30), (30, 1)])
@pytest.mark.parametrize("rank", [1, 7, 100])
@pytest.mark.parametrize("kind", [normal, sparse])
def test_exact_is_the_truncated_svd(
    shape: tuple[int, int], rank: int, kind: Callable[[int, int], torch.Tensor]
) -> None:
    matrix = kind(*shape)
    found = best(matrix, rank)
    values = torch.linalg.svdvals(matrix.double())
    size = float(matrix.double().norm())
    kept = min(rank, len(found.values))
    assert torch.allclose(found.values, values[:kept], rtol=1e-6, atol=1e-6 * float(values[0]))
    assert lost(found, matrix) == pytest.approx(float(values[rank:].norm()), abs=1e-5 * size)
    assert found.energy == pytest.approx(size**2, rel=1e-9)
    assert kept_by(found) == pytest.approx(float((values[:rank] ** 2).sum()), rel=1e-6)


def ties_like(out: int, width: int) -> torch.Tensor:
    """The mean of what agrees, of two trimmed products of low rank."""
    one, other = sparse(out, width), sparse(out, width, seed=7)
    sign = torch.sign(one + other)
    agreeing = [torch.where(part * sign > 0, part, 0.0) for part in (one, other)]
    count = sum((part != 0).float() for part in agreeing)
    return (agreeing[0] + agreeing[1]) / torch.as_tensor(count).clamp(min=1)


def heavy_tailed(out: int, width: int) -> torch.Tensor:
    """Elements without a fourth moment, so that single ones stand out of the bulk."""
    values = np.random.default_rng(0).standard_t(2.5, (out, width))
    return torch.from_numpy(values).float()


def dropped(out: int, width: int) -> torch.Tensor:
    """As DARE leaves it: every second element of a low-rank product, at random."""
    stays = torch.rand(out, width, generator=torch.Generator().manual_seed(5)) < 0.5
    return 2 * normal(out, 16, 1) @ normal(16, width, 2) * stays


def low(out: int, width: int) -> torch.Tensor:
    return normal(out, 20, 1) @ normal(20, width, 2)


def falling(out: int, width: int) -> torch.Tensor:
    return decaying(out, width, 0.8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 16, 64])
@pytest.mark.parametrize("kind", [ties_like, sparse, heavy_tailed, dropped, low, falling, flat])
def test_randomised_keeps_nearly_the_best_energy_and_says_truly_how_much(
    shape: tuple[int, int], rank: int, kind: Callable[[int, int], torch.Tensor]
) -> None:
    matrix = kind(*shape)
    found = best(matrix, rank)
    values = torch.linalg.svdvals(matrix.double())
    size = float(matrix.double().norm())
    optimum = float((values[:rank] ** 2).sum())
    # Honest: what is reported as kept is what the factors hold, and the energy is the matrix's.
    assert found.energy == pytest.approx(size**2, rel=1e-6)
    kept = size**2 - lost(found, matrix) ** 2
    assert kept == pytest.approx(kept_by(found), abs=1e-6 * size**2)
    # Good: at most half a percent below the best there is, even where singular values hardly fall.
    assert 0.995 * optimum <= kept <= optimum + 1e-6 * size**2
    if quickly_falling := kind in (low, falling) and rank >= 16:
        assert kept >= (1 - 1e-5) * optimum
    tolerance = 1e-5 if quickly_falling else 0.02
    assert torch.allclose(
        found.values, values[: len(found.values)], rtol=0, atol=tolerance * float(values[0])
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 16, 64])
def test_of_pure_noise_it_misses_little_of_the_whole(shape: tuple[int, int], rank: int) -> None:
    # Nothing is harder: no direction is better than the next. There is little to keep then, and little is missed.
    matrix = normal(*shape)
    found = best(matrix, rank)
    optimum = float((torch.linalg.svdvals(matrix.double())[:rank] ** 2).sum())
    assert kept_by(found) >= optimum - 0.002 * found.energy
    assert kept_by(found) >= 0.98 * optimum


def test_randomised_is_exact_for_a_delta_of_low_rank() -> None:
    matrix = normal(WIDE[0], 5, 1) @ normal(5, WIDE[1], 2)
    found = best(matrix, 5)
    values = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(found.values, values[:5], rtol=1e-5)
    assert lost(found, matrix) <= 1e-5 * float(matrix.norm())


@pytest.mark.parametrize("side", [16, 1024])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_nothing_is_approximated_by_nothing(
    side: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    found = best(torch.zeros(*shape), 7)
    assert found.energy == kept_by(found) == 0
    assert torch.isfinite(found.b).all()
    assert not (found.b @ found.a).any()


@pytest.mark.parametrize("scale", [1e-31, 1e-20, 1e15, 1e31])
@pytest.mark.parametrize("side", [16, 1024])
def test_scale_makes_no_difference(
    scale: float, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    matrix = sparse(80, 60)
    plain, scaled = best(matrix, 9), best(matrix * scale, 9)
    assert torch.allclose(scaled.values / scale, plain.values, rtol=1e-4)
    assert kept_by(scaled) / scaled.energy == pytest.approx(kept_by(plain) / plain.energy, rel=1e-4)


@pytest.mark.parametrize("side", [8, 1024])
def test_the_result_is_the_same_every_time(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    torch.manual_seed(1)
    one = best(sparse(90, 70), 5)
    torch.manual_seed(2)
    torch.rand(100)
    two = best(sparse(90, 70), 5)
    assert torch.equal(one.b, two.b)
    assert torch.equal(one.a, two.a)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [3, 37])
def test_a_delta_held_or_computed_again_for_every_pass_gives_the_same_bits(
    shape: tuple[int, int], rank: int
) -> None:
    matrix = sparse(*shape)
    streamed, held = Streamed(matrix), Streamed(matrix)
    one = best_rank(streamed, rank, Memory(0))
    two = best_rank(held, rank, Memory(4 * matrix.numel()))
    assert held.passes == 1
    assert streamed.passes > 2
    assert torch.equal(one.b, two.b)
    assert torch.equal(one.a, two.a)
    assert torch.equal(one.values, two.values)
    assert one.energy == two.energy


@pytest.mark.parametrize("side", [16, 1024])
@pytest.mark.parametrize("tile", [1, 50, 10_000])
def test_the_height_of_tiles_makes_no_difference_but_of_rounding(
    side: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    monkeypatch.setattr(rows, "TILE_VALUES", tile)
    matrix = decaying(53, 40, 0.6)
    assert torch.allclose(
        best(matrix, 4).values, torch.linalg.svdvals(matrix.double())[:4], rtol=1e-5
    )
