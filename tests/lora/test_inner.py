"""Inner products, norms and projections of deltas are those of whole float64 matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.lora import inner
from adapterhub.lora.inner import Stack, energy, gram, projected
from adapterhub.lora.rows import Factored, Rows
from tests.lora.matrices import exact, factored, kinds, normal, size

LAW = settings(max_examples=60, deadline=None)
SIDE = st.integers(1, 30)


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


@pytest.mark.parametrize("room", [1, 40, 1000])
def test_products_are_the_same_whatever_the_pieces(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [factored(37, 23, 3, 0), factored(37, 23, 1, 5)]
    monkeypatch.setattr(inner, "_ROOM", room)
    stack = Stack(parts)
    b = torch.cat([part.b for part in parts], dim=1).double()
    a = torch.cat([part.a for part in parts]).double()
    assert torch.allclose(stack.left, b.T @ b, rtol=1e-13, atol=1e-13)
    assert torch.allclose(stack.right, a @ a.T, rtol=1e-13, atol=1e-13)


def test_factors_of_any_memory_layout_have_the_same_products() -> None:
    delta = factored(30, 20, 4)
    turned = Factored(delta.b.T.contiguous().T, delta.a.T.contiguous().T)
    assert torch.allclose(gram([delta]), gram([turned]), rtol=1e-14, atol=0)


def test_a_stack_knows_its_parts_and_nobody_elses() -> None:
    parts = [factored(9, 8, 2), factored(9, 8, 3)]
    stack = Stack(parts)
    assert [stack.place_of(part) for part in parts] == [slice(0, 2), slice(2, 5)]
    assert stack.place_of(Factored(parts[0].b, parts[0].a)) is None
    assert stack.columns([2.0, -1.0]).tolist() == [2.0, 2.0, -1.0, -1.0, -1.0]
