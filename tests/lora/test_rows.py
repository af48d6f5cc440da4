"""Deltas by rows: every element comes once, whatever the tiles, and inner products are those of whole float64 matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.lora import rows
from adapterhub.lora.rows import (
    Factored,
    Held,
    Rows,
    blocks,
    buffer,
    energy,
    gram,
    projected,
    tiles,
    whole,
)
from tests.lora.matrices import Streamed, normal

LAW = settings(max_examples=60, deadline=None)
SIDE = st.integers(1, 30)


def factored(out: int, width: int, rank: int, seed: int = 0) -> Factored:
    return Factored(normal(out, rank, seed), normal(rank, width, seed + 1))


def exact(delta: Rows) -> torch.Tensor:
    """Without the product's own products."""
    if isinstance(delta, Factored):
        return delta.b.double() @ delta.a.double()
    return (delta.whole if isinstance(delta, Held) else delta.values).double()  # type: ignore[attr-defined]


def size(delta: Rows) -> float:
    """A norm that what cancels within factors counts in: that of the factors."""
    if isinstance(delta, Factored):
        return float(delta.b.double().norm() * delta.a.double().norm())
    return float(exact(delta).norm())


def kinds(out: int, width: int, rank: int, seed: int) -> list[Rows]:
    """One of each kind of rows."""
    return [
        factored(out, width, rank, seed),
        Held(normal(out, width, seed + 2)),
        Streamed(normal(out, width, seed + 3)),
    ]


@pytest.mark.parametrize("tile", [1, 50, 777, 10_000])
def test_tiles_cover_every_row_once_and_fit_into_their_buffer(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TILE_VALUES", tile)
    for out, width in ((23, 10), (1, 900), (60, 1), (7, 50)):
        found = list(tiles((out, width)))
        assert [row for first, last in found for row in range(first, last)] == list(range(out))
        heights = [last - first for first, last in found]
        assert set(heights[:-1]) <= {max(heights)}, "a product's last bits depend on its shape"
        assert buffer(Held(torch.zeros(out, width))).shape == (max(heights), width)
        assert max(heights) == 1 or max(heights) * width <= tile


@pytest.mark.parametrize("tile", [1, 50, 10_000])
def test_blocks_and_whole_give_the_matrix(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TILE_VALUES", tile)
    for delta in kinds(23, 10, 3, 0):
        seen = [(first, block.clone()) for first, block in blocks(delta)]
        assert [first for first, _ in seen] == [first for first, _ in tiles(delta.shape)]
        assert torch.equal(torch.cat([block for _, block in seen]), whole(delta))
        assert torch.allclose(whole(delta).double(), exact(delta), rtol=0, atol=1e-5)


def test_any_rows_can_be_had_by_themselves() -> None:
    for delta in kinds(19, 8, 3, 1):
        room = torch.full((5, 8), 7.0)
        delta.fill(11, 16, room)
        assert torch.allclose(room.double(), exact(delta)[11:16], rtol=0, atol=1e-5)


@LAW
@given(out=SIDE, width=SIDE, rank=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_inner_products_and_energies_are_those_of_the_matrices(
    out: int, width: int, rank: int, seed: int
) -> None:
    one, other = factored(out, width, rank, seed), factored(out, width, 2, seed + 9)
    in_factors: list[Rows | None] = [one, None, other, one]
    mixed: list[Rows | None] = [*kinds(out, width, rank, seed), None, other]
    for deltas in (in_factors, mixed):
        dense = [torch.zeros(out, width).double() if d is None else exact(d) for d in deltas]
        flat = torch.stack([matrix.flatten() for matrix in dense])
        found, expected = gram(deltas), flat @ flat.T
        sizes = torch.tensor([0.0 if delta is None else size(delta) for delta in deltas])
        assert found.dtype == torch.float64
        assert ((found - expected).abs() <= 1e-6 * sizes[:, None] * sizes[None, :]).all()
        for place, delta in enumerate(deltas):
            if delta is not None:
                slack = 1e-6 * float(sizes[place]) ** 2
                assert energy(delta) == pytest.approx(float(expected[place, place]), abs=slack)


def test_the_gram_matrix_of_nothing_is_zero() -> None:
    assert torch.equal(gram([None, None]), torch.zeros(2, 2, dtype=torch.float64))


def test_the_energy_of_factors_that_cancel_is_not_negative() -> None:
    delta = factored(40, 30, 5)
    nothing = Factored(torch.cat([delta.b, -delta.b], dim=1), torch.cat([delta.a, delta.a]))
    assert 0 <= energy(nothing) <= 1e-5 * energy(delta)


def test_inner_products_of_factors_see_what_float32_products_would_lose() -> None:
    # Two adapters a small angle apart: 1 - cos² is 1e-8 and must be known to a percent, for the methods on the sphere.
    one = factored(60, 50, 4)
    near = Factored(one.b + 1e-4 * normal(60, 4, 5), one.a)
    found = gram([one, near])
    flat = torch.stack([exact(one).flatten(), exact(near).flatten()])
    wanted = flat @ flat.T

    def gap(g: torch.Tensor) -> float:
        return float(1 - g[0, 1] ** 2 / (g[0, 0] * g[1, 1]))

    assert 1e-9 < gap(wanted) < 1e-7
    assert gap(found) == pytest.approx(gap(wanted), rel=1e-2)


@LAW
@given(out=SIDE, width=SIDE, count=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_projections_are_those_of_the_matrix(out: int, width: int, count: int, seed: int) -> None:
    b, a = normal(out, count, seed + 20), normal(count, width, seed + 21)
    for delta in kinds(out, width, 3, seed):
        expected = b.double().T @ exact(delta) @ a.double().T
        found = projected(delta, b, a)
        assert found.dtype == torch.float64
        assert float((found - expected).norm()) <= 1e-6 * float(b.norm() * a.norm()) * size(delta)
