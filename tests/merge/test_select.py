"""The k-th largest magnitude is exact: the same float32 number that sorting everything gives, whichever way it is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.lora import rows
from adapterhub.lora.parallel import for_each
from adapterhub.lora.rows import Factored, Held, Rows, whole
from adapterhub.merge import select
from adapterhub.merge.select import Each, in_turn, kth_largest, share_of
from tests.lora.matrices import Streamed

LAW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def factored(seed: int, out: int, width: int, rank: int = 3, scale: float = 1.0) -> Factored:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(out, rank, generator=generator) * scale
    return Factored(b, torch.randn(rank, width, generator=generator))


def coarse(seed: int, out: int, width: int) -> Factored:
    """Small whole numbers: most values are shared by many elements, a third of them zero, and products are exact."""
    generator = torch.Generator().manual_seed(seed)
    b, a = (torch.randint(-2, 3, shape, generator=generator) for shape in ((out, 1), (1, width)))
    return Factored(b.float(), a.float())


def found(deltas: Mapping[str, Rows], k: int, each: Each = in_turn) -> float:
    total = sum(delta.shape[0] * delta.shape[1] for delta in deltas.values())
    return kth_largest(sorted(deltas), deltas.__getitem__, k, each, total)


def by_sorting(deltas: Mapping[str, Rows]) -> list[float]:
    """All magnitudes, largest first."""
    values = np.concatenate([whole(deltas[name]).numpy().ravel() for name in sorted(deltas)])
    return [float(value) for value in np.sort(np.abs(values))[::-1]]


@dataclass
class Ways:
    """How often the sample gave the answer, was given up, and everything was counted."""

    sampled: int = 0
    given_up: int = 0
    counted: int = 0
    samples: dict[str, Any] = field(default_factory=dict)
    """Module -> what to answer in place of its sample."""


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Small deltas are sampled too, and the ways that were taken are counted."""
    seen = Ways()
    monkeypatch.setattr(select, "SAMPLED_FROM", 1000)
    from_sample, from_histogram, sample = (
        getattr(select, name) for name in ("_from_sample", "_from_histogram", "_sample")
    )

    def sampling(*args: Any) -> int | None:
        bits: int | None = from_sample(*args)
        seen.sampled += bits is not None
        seen.given_up += bits is None
        return bits

    def counting(*args: Any) -> int:
        seen.counted += 1
        bits: int = from_histogram(*args)
        return bits

    monkeypatch.setattr(select, "_from_sample", sampling)
    monkeypatch.setattr(select, "_from_histogram", counting)
    monkeypatch.setattr(
        select, "_sample", lambda name, *rest: seen.samples.get(name, sample(name, *rest))
    )
    return seen


@LAW
@given(
    seed=st.integers(0, 2**31),
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    exponent=st.integers(-30, 30),
    share=st.floats(0, 1),
)
def test_it_is_the_kth_largest_to_the_bit(
    seed: int, shapes: list[tuple[int, int]], exponent: int, share: float
) -> None:
    deltas = {
        f"m{i}": factored(seed + i, *shape, scale=2.0 ** (exponent * (i + 1) / 2))
        for i, shape in enumerate(shapes)
    }
    ordered = by_sorting(deltas)
    for k in {1, len(ordered), max(1, round(share * len(ordered)))}:
        assert found(deltas, k) == ordered[k - 1]


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_finds_the_same_in_one_pass(ways: Ways, seed: int) -> None:
    deltas = {
        "q": factored(seed, 500, 300, 5),
        "u": factored(seed + 50, 400, 420, 9, scale=0.3),
        "one": factored(seed + 90, 1, 1),
    }
    ordered = by_sorting(deltas)
    shares = (0.001, 0.01, 0.137, 0.2, 0.5, 0.86)
    for share in shares:
        k = round(share * len(ordered))
        assert found(deltas, k) == ordered[k - 1]
    assert ways.sampled == len(shares)
    assert ways.counted == ways.given_up == 0


@LAW
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from([factored, coarse]),
    exponents=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    share=st.floats(0, 1),
)
def test_it_is_exact_whatever_the_sample_is_worth(
    ways: Ways,
    seed: int,
    kind: Callable[[int, int, int], Factored],
    exponents: tuple[int, int],
    share: float,
) -> None:
    before = ways.sampled + ways.given_up
    deltas = {}
    for place, exponent in enumerate(exponents):
        delta = kind(seed + place, 37, 31)
        deltas[f"m{place}"] = Factored(delta.b * 2.0**exponent, delta.a)
    ordered = by_sorting(deltas)
    for k in (1, len(ordered), max(1, round(share * len(ordered)))):
        assert found(deltas, k) == ordered[k - 1]
    assert ways.sampled + ways.given_up == before + 3
    assert ways.counted == ways.given_up


@pytest.mark.parametrize(
    "sample",
    [
        np.full(500, 1e-3),  # all below
        np.full(500, 1e3),  # all above
        np.zeros(500),
        np.linspace(0.0, 1e9, 500),  # too wide to be counted one by one
        np.linspace(1.0, 1.001, 500),  # beside it
        None,  # as of a delta that is not in factors
    ],
)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_a_misleading_sample_is_given_up(ways: Ways, sample: Any, share: float) -> None:
    deltas = {"m": factored(3, 90, 70, 6)}
    ordered = by_sorting(deltas)
    k = round(share * len(ordered))
    ways.samples["m"] = None if sample is None else sample.astype(np.float32)
    assert found(deltas, k) == ordered[k - 1]
    assert (ways.given_up, ways.counted) == (1, 1)


@pytest.mark.parametrize("kind", ["many equal", "all zero", "one that is not zero", "two values"])
def test_equal_values_and_zeros_are_counted_right_by_a_sample_too(ways: Ways, kind: str) -> None:
    delta = coarse(2, 60, 50)
    if kind != "many equal":
        delta = Factored(torch.zeros(60, 1), torch.ones(1, 50))
    if kind == "one that is not zero":
        delta.b[7], delta.a[0, :-1] = -3.0, 0.0
    if kind == "two values":
        delta.b[::2] = 1.5
    deltas = {"m": delta}
    ordered = by_sorting(deltas)
    for k in (1, 2, 1000, 1500, 1501, 2999, 3000):
        assert found(deltas, k) == ordered[k - 1], k
    assert ways.sampled


def test_deltas_that_are_not_in_factors_are_counted(ways: Ways) -> None:
    matrix = whole(factored(4, 50, 30))
    deltas: dict[str, Rows] = {
        "a": factored(5, 40, 30),
        "b": Streamed(matrix),
        "c": Held(2 * matrix),
    }
    ordered = by_sorting(deltas)
    for k in (1, 100, 2500, len(ordered)):
        assert found(deltas, k) == ordered[k - 1]
    assert (ways.sampled, ways.counted) == (0, 4)


@pytest.mark.parametrize("sampled_from", [1, 10**9])
def test_a_delta_that_is_held_is_not_changed(
    sampled_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "SAMPLED_FROM", sampled_from)
    matrix = whole(factored(4, 50, 30))
    before = matrix.clone()
    found({"m": Held(matrix)}, 300)
    assert torch.equal(matrix, before)


def test_beyond_all_values_there_is_zero() -> None:
    assert found({"m": factored(0, 5, 5)}, 26) == 0.0


def test_subnormals_and_the_ends_of_float32_are_in_order(ways: Ways) -> None:
    values = torch.tensor(
        [[0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.0, -1.0, 1.0, 3.4e38, -1.1754944e-38]]
    )
    for copies in (1, 150):  # counted, and sampled
        deltas = {"m": Factored(torch.ones(copies, 1), values)}
        ordered = by_sorting(deltas)
        for k in range(1, len(ordered), copies):
            assert found(deltas, k) == ordered[k - 1], k
    assert ways.sampled + ways.given_up == 10


@pytest.mark.parametrize("sampled_from", [1, 10**9])
def test_tiles_and_workers_do_not_matter(
    sampled_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole numbers: their products are exact, so only the counting could depend on how the rows are cut.
    generator = torch.Generator().manual_seed(3)
    deltas = {
        f"m{i}": Factored(
            torch.randint(-9, 9, (70 + i, 4), generator=generator).float(),
            torch.randint(-9, 9, (4, 50), generator=generator).float(),
        )
        for i in range(3)
    }
    ordered = by_sorting(deltas)
    monkeypatch.setattr(select, "SAMPLED_FROM", sampled_from)
    for tile, workers in ((2**22, 1), (100, 1), (1, 2), (777, 2)):
        monkeypatch.setattr(rows, "TILE_VALUES", tile)

        def each(items: Any, work: Any, workers: int = workers) -> Any:
            return for_each(items, work, workers=workers, done=lambda: None)

        assert found(deltas, 1459, each) == ordered[1458]


@pytest.mark.parametrize(
    ("density", "count", "kept"),
    [
        (0.29, 100, 29),  # 28.999999999999996 in floating point
        (0.57, 100, 57),
        (0.58, 100, 58),
        (0.07, 100, 7),
        (0.999, 100, 99),
        (0.2, 6144, 1228),
        (1.0, 7, 7),
        (1e-9, 7, 1),
    ],
)
def test_a_share_is_of_the_number_as_it_was_typed(density: float, count: int, kept: int) -> None:
    assert share_of(density, count) == kept


def test_a_share_may_be_nothing_where_that_is_allowed() -> None:
    assert share_of(0.01, 99, least=0) == 0
    assert share_of(0.01, 100, least=0) == 1
