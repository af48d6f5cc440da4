"""Factored algebra is exact: singular values, truncation and energy against a dense float64 decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.lora.inner import Stack
from adapterhub.lora.lowrank import Spectrum, decompose, total
from adapterhub.lora.rows import Factored
from tests.lora.spectra import cut, kept_by

LAW = settings(max_examples=60, deadline=None)


def factors(
    seed: int, out: int, width: int, rank: int, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator) * scale, torch.randn(
        rank, width, generator=generator
    )


def product(pair: Spectrum | Factored) -> torch.Tensor:
    """b @ a in float64."""
    return pair.b.double() @ pair.a.double()


def check(found: Spectrum, dense: torch.Tensor, rank: int, tolerance: float = 1e-5) -> None:
    """`found` is the best approximation of `dense` (float64) of at most `rank`, and says so."""
    values = torch.linalg.svdvals(dense)
    size = float(dense.norm())
    kept = min(rank, len(found.values))
    assert torch.allclose(found.values, values[:kept], rtol=0, atol=tolerance * size)
    assert found.b.dtype == found.a.dtype == torch.float32
    assert found.b.shape == (dense.shape[0], kept)
    assert found.a.shape == (kept, dense.shape[1])
    best = float(values[rank:].norm())
    assert abs(float((product(found) - dense).norm()) - best) <= tolerance * size
    assert found.energy == pytest.approx(size**2, rel=tolerance)
    assert kept_by(found) == pytest.approx(
        size**2 - best**2, rel=tolerance, abs=tolerance * size**2
    )


@LAW
@given(
    out=st.integers(1, 40),
    width=st.integers(1, 40),
    rank=st.integers(1, 50),
    most=st.integers(1, 50),
    exponent=st.integers(-15, 15),
    seed=st.integers(0, 2**31),
)
def test_decompose_and_cut_are_the_truncated_svd(
    out: int, width: int, rank: int, most: int, exponent: int, seed: int
) -> None:
    b, a = factors(seed, out, width, rank, 10.0**exponent)
    check(cut(decompose(Factored(b, a)), most), b.double() @ a.double(), most)


def test_an_adapter_stacked_on_itself_has_its_own_rank() -> None:
    b, a = factors(0, 30, 20, 4)
    found = decompose(total(Stack([Factored(b, a)] * 2), [0.25, 0.75]))
    assert found.b.shape[1] == 4
    check(found, b.double() @ a.double(), 4)


@pytest.mark.parametrize("which", ["b", "a", "both"])
def test_zero_factors_give_one_direction_of_zeros(which: str) -> None:
    b, a = factors(0, 9, 7, 3)
    b, a = (b * 0 if which != "a" else b), (a * 0 if which != "b" else a)
    found = decompose(Factored(b, a))
    assert found.b.shape == (9, 1)
    assert found.a.shape == (1, 7)
    assert found.energy == kept_by(found) == 0
    assert not product(found).any()


@pytest.mark.parametrize("true_rank", [1, 3])
def test_rank_deficient_factors_lose_their_empty_directions(true_rank: int) -> None:
    left, inner = factors(1, 50, 8, true_rank)
    _, a = factors(2, 1, 40, 8)
    b = left @ inner  # (50, 8) of rank `true_rank`
    found = decompose(Factored(b, a))
    assert found.b.shape[1] == true_rank
    check(found, b.double() @ a.double(), true_rank)


def test_directions_just_above_rounding_are_kept() -> None:
    b, _ = torch.linalg.qr(torch.randn(60, 3, generator=torch.Generator().manual_seed(0)))
    a, _ = torch.linalg.qr(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)))
    sizes = torch.tensor([1.0, 1e-3, 1e-5])
    found = decompose(Factored(b * sizes, a.T))
    assert len(found.values) == 3
    assert found.values[2] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize(
    ("scale_b", "scale_a"), [(1e-18, 1e-18), (1e18, 1e15), (1e-30, 1e30), (1e15, 1e-25)]
)
def test_scales_near_the_ends_of_float32(scale_b: float, scale_a: float) -> None:
    b, a = factors(5, 20, 30, 6)
    b, a = b * scale_b, a * scale_a
    found = decompose(Factored(b, a))
    assert torch.isfinite(found.b).all()
    assert torch.isfinite(found.a).all()
    dense = b.double() @ a.double()
    assert float((product(found) - dense).norm()) <= 1e-5 * float(dense.norm())
    assert found.energy == pytest.approx(float(dense.norm()) ** 2, rel=1e-4)


def test_factors_of_very_unequal_scale_come_out_balanced() -> None:
    b, a = factors(6, 20, 30, 6)
    found = decompose(Factored(b * 1e6, a * 1e-6))
    assert torch.allclose(found.b.norm(dim=0), found.a.norm(dim=1), rtol=1e-4)


def test_the_form_is_canonical() -> None:
    b, a = factors(7, 25, 35, 5)
    mixing = torch.randn(5, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    turned = (b.double() @ mixing, torch.linalg.solve(mixing, a.double()))
    other = decompose(Factored(*(side.float() for side in turned)))
    found = decompose(Factored(b, a))
    assert torch.allclose(found.b, other.b, atol=1e-4)
    assert torch.allclose(found.a, other.a, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 400])
def test_a_stack_wider_than_the_matrix_is_no_trouble(rank: int) -> None:
    b, a = factors(8, 6, 5, 30)
    check(cut(decompose(Factored(b, a)), rank), b.double() @ a.double(), rank)


def test_one_row_or_one_column() -> None:
    for out, width in ((1, 9), (9, 1), (1, 1)):
        b, a = factors(3, out, width, 2)
        check(decompose(Factored(b, a)), b.double() @ a.double(), 2)


@LAW
@given(
    out=st.integers(1, 20),
    width=st.integers(1, 20),
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    weights=st.lists(st.floats(-3, 3).map(lambda w: round(w, 3)), min_size=4, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_a_stack_is_the_weighted_sum_and_its_rank_the_sum_of_ranks(
    out: int, width: int, ranks: list[int], weights: list[float], seed: int
) -> None:
    parts = [Factored(*factors(seed + i, out, width, rank)) for i, rank in enumerate(ranks)]
    found = total(Stack(parts), weights[: len(parts)])
    expected = sum(w * product(p) for w, p in zip(weights, parts, strict=False))
    mass = sum(abs(w) * float(product(p).norm()) for w, p in zip(weights, parts, strict=False))
    assert found.rank == sum(ranks)
    assert float((product(found) - expected).norm()) <= 1e-6 * mass


@LAW
@given(
    rank=st.integers(1, 12),
    wanted=st.integers(1, 15),
    seed=st.integers(0, 2**31),
)
def test_asking_for_fewer_directions_is_cutting_them_off(rank: int, wanted: int, seed: int) -> None:
    delta = Factored(*factors(seed, 14, 11, rank))
    few, fewer = decompose(delta, wanted), cut(decompose(delta), wanted)
    assert torch.allclose(few.b, fewer.b, rtol=1e-5, atol=1e-5)
    assert torch.allclose(few.a, fewer.a, rtol=1e-5, atol=1e-5)
    assert torch.equal(few.values, fewer.values)
    assert few.energy == fewer.energy


@LAW
@given(
    out=st.integers(1, 20),
    width=st.integers(1, 20),
    ranks=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=4, max_size=4),
    rank=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_what_a_sum_holds_of_its_parts_is_what_it_holds_of_their_matrices(
    out: int, width: int, ranks: list[int], weights: list[float], rank: int, seed: int
) -> None:
    parts = [Factored(*factors(seed + i, out, width, own)) for i, own in enumerate(ranks)]
    found = decompose(total(Stack(parts), weights[: len(parts)]), rank)
    for part in parts:
        dense = product(part)
        wanted = found.b.double().T @ dense @ found.a.double().T
        size = float(
            found.b.double().norm() * found.a.double().norm() * part.b.norm() * part.a.norm()
        )
        for same in (part, Factored(part.b, part.a)):  # by the stack, and by its own factors
            norm, seen = found.seen(same)
            assert norm == pytest.approx(float(dense.norm()) ** 2, rel=1e-5, abs=1e-30)
            assert float((seen - wanted).norm()) <= 1e-5 * size


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_a_badly_conditioned_gauge_costs_no_more_than_its_own_rounding(condition: float) -> None:
    b, a = factors(11, 60, 50, 8)
    turn, _ = torch.linalg.qr(
        torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).double()
    )
    mixing = turn * torch.logspace(0, -float(torch.tensor(condition).log10()), 8).double()
    turned = (b.double() @ mixing).float(), torch.linalg.solve(mixing, a.double()).float()
    dense = (
        turned[0].double() @ turned[1].double()
    )  # with what rounding the factors has cost already
    found = decompose(Factored(*turned))
    assert float((product(found) - dense).norm()) <= 1e-6 * condition**0.5 * float(dense.norm())


def test_weights_beyond_float32_are_refused() -> None:
    delta = Factored(*factors(0, 5, 4, 2))
    with pytest.raises(torch.linalg.LinAlgError, match="overflow"):  # type: ignore[attr-defined]
        decompose(total(Stack([delta]), [1e39]))


@pytest.mark.parametrize("gauge", [1e-12, 1e-7, 1e7, 1e12])
def test_parts_whose_sizes_lie_in_b_or_in_a_weigh_the_same(gauge: float) -> None:
    one, other = Factored(*factors(0, 40, 30, 4)), Factored(*factors(1, 40, 30, 4))
    turned = Factored(other.b * gauge, other.a / gauge)
    plain = decompose(total(Stack([one, other]), [1.0, 1.0]))
    found = decompose(total(Stack([one, turned]), [1.0, 1.0]))
    assert torch.allclose(found.values, plain.values, rtol=1e-5)
    assert torch.allclose(found.b, plain.b, atol=1e-4)


def test_columns_of_very_different_sizes_are_all_there() -> None:
    b, a = factors(3, 40, 30, 8)
    sizes = torch.logspace(0, -12, 8)
    found = decompose(Factored(b * sizes, a / sizes[:, None]))
    check(found, b.double() @ a.double(), 8)


def test_what_cancels_is_nothing() -> None:
    delta = Factored(*factors(5, 40, 30, 4))
    again = Factored(delta.b.clone(), delta.a.clone())
    found = decompose(total(Stack([delta, again]), [1.0, -1.0]))
    assert found.b.shape == (40, 1)
    assert not product(found).any()
    nearly = decompose(total(Stack([delta, again]), [1.0, -0.999]))
    assert torch.allclose(nearly.values, 0.001 * decompose(delta).values, rtol=1e-3)
