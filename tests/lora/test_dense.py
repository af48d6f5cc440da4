"""The best low-rank form of a delta that isn't of low rank, exact and randomised, against torch's float64 SVD."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from adapterhub.lora import dense
from adapterhub.lora.dense import best_rank, blocks, whole
from adapterhub.lora.lowrank import Spectrum


@dataclass(frozen=True)
class Matrix:
    """A row source that is simply a matrix."""

    values: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def rows(self, first: int, last: int) -> torch.Tensor:
        found: torch.Tensor = self.values[first:last]
        return found


def random(out: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def decaying(out: int, width: int, rate: float) -> torch.Tensor:
    """Singular values rate^0, rate^1, ..."""
    side = min(out, width)
    left, _ = torch.linalg.qr(random(out, side, 1).double())
    right, _ = torch.linalg.qr(random(width, side, 2).double())
    values = torch.tensor(rate, dtype=torch.float64).pow(torch.arange(side))
    product: torch.Tensor = (left * values) @ right.T
    return product.float()


def sparse(out: int, width: int) -> torch.Tensor:
    """As TIES leaves it: a fifth of a low-rank product's elements."""
    low = random(out, 12, 3) @ random(12, width, 4)
    return torch.where(low.abs() >= low.abs().flatten().quantile(0.8), low, 0.0)


def lost(found: Spectrum, matrix: torch.Tensor) -> float:
    """Norm of what `found` misses."""
    return float((found.b.double() @ found.a.double() - matrix.double()).norm())


@pytest.mark.parametrize("shape", [(70, 40), (40, 70), (50, 50), (1, 30), (30, 1)])
@pytest.mark.parametrize("rank", [1, 7, 100])
@pytest.mark.parametrize("kind", ["random", "sparse"])
def test_exact_is_the_truncated_svd(shape: tuple[int, int], rank: int, kind: str) -> None:
    matrix = random(*shape) if kind == "random" else sparse(*shape)
    found = best_rank(Matrix(matrix), rank)
    values = torch.linalg.svdvals(matrix.double())
    size = float(matrix.double().norm())
    kept = min(rank, len(found.values))
    assert torch.allclose(found.values, values[:kept], rtol=1e-6, atol=1e-6 * float(values[0]))
    assert lost(found, matrix) == pytest.approx(float(values[rank:].norm()), abs=1e-5 * size)
    assert found.energy == pytest.approx(size**2, rel=1e-9)
    assert found.kept == pytest.approx(float((values[:rank] ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("rank", [1, 8, 40])
@pytest.mark.parametrize("kind", ["falling", "sparse"])
def test_randomised_is_nearly_the_best_and_says_truly_how_good(
    shape: tuple[int, int], rank: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", 16)
    matrix = decaying(*shape, 0.8) if kind == "falling" else sparse(*shape)
    found = best_rank(Matrix(matrix), rank)
    values = torch.linalg.svdvals(matrix.double())
    size = float(matrix.double().norm())
    best = float(values[rank:].norm())
    # Honest: what is reported as kept is what the factors hold, and the energy is the matrix's.
    assert found.energy == pytest.approx(size**2, rel=1e-6)
    assert lost(found, matrix) ** 2 == pytest.approx(
        max(0.0, found.energy - found.kept), abs=2e-6 * size**2
    )
    # Good: within one part in a hundred of the best possible energy, even where singular values hardly fall.
    assert lost(found, matrix) >= best - 1e-6 * size
    assert found.kept >= 0.99 * float((values[:rank] ** 2).sum())
    tolerance = 1e-5 if kind == "falling" else 0.02
    assert torch.allclose(
        found.values, values[: len(found.values)], rtol=0, atol=tolerance * float(values[0])
    )


def test_randomised_is_exact_for_a_delta_of_low_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", 16)
    matrix = random(200, 5, 1) @ random(5, 150, 2)
    found = best_rank(Matrix(matrix), 5)
    values = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(found.values, values[:5], rtol=1e-5)
    assert lost(found, matrix) <= 1e-5 * float(matrix.norm())


@pytest.mark.parametrize("side", [16, 1024])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_nothing_is_approximated_by_nothing(
    side: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    found = best_rank(Matrix(torch.zeros(*shape)), 7)
    assert found.energy == found.kept == 0
    assert torch.isfinite(found.b).all()
    assert not (found.b @ found.a).any()


@pytest.mark.parametrize("scale", [1e-20, 1e15])
@pytest.mark.parametrize("side", [16, 1024])
def test_scale_makes_no_difference(
    scale: float, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    matrix = sparse(80, 60)
    plain, scaled = best_rank(Matrix(matrix), 9), best_rank(Matrix(matrix * scale), 9)
    assert torch.allclose(scaled.values / scale, plain.values, rtol=1e-4)
    assert scaled.kept / scaled.energy == pytest.approx(plain.kept / plain.energy, rel=1e-4)


@pytest.mark.parametrize("side", [8, 1024])
def test_the_result_is_the_same_every_time(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "EXACT_SIDE", side)
    torch.manual_seed(1)
    one = best_rank(Matrix(sparse(90, 70)), 5)
    torch.manual_seed(2)
    torch.rand(100)
    two = best_rank(Matrix(sparse(90, 70)), 5)
    assert torch.equal(one.b, two.b)
    assert torch.equal(one.a, two.a)


@pytest.mark.parametrize("tile", [1, 50, 10_000])
def test_blocks_cover_every_row_once(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "TILE_VALUES", tile)
    matrix = random(23, 10)
    found = list(blocks(Matrix(matrix)))
    assert [first for first, _ in found] == [
        sum(len(block) for _, block in found[:i]) for i in range(len(found))
    ]
    assert torch.equal(whole(Matrix(matrix)), matrix)
    spectrum = best_rank(Matrix(matrix), 4)
    assert torch.allclose(spectrum.values, torch.linalg.svdvals(matrix.double())[:4], rtol=1e-6)
