"""Intervals agree with scipy's, hold what they promise, and say what was shown and no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adapterhub.evaluate.intervals import Interval, ratio_interval


def rows(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Skewed differences of rows of unequal length."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 200, count).astype(float)
    return tokens * (random.gamma(2.0, 0.2, count) - 0.3), tokens


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_scipys(seed: int) -> None:
    sums, counts = rows(seed)
    found = ratio_interval(sums, counts, resamples=40_000)
    expected = stats.bootstrap(
        (sums, counts),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=40_000,
        rng=np.random.default_rng(7),
    ).confidence_interval
    assert found is not None
    assert found.estimate == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)


def test_it_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        tokens = random.integers(5, 50, 60)
        losses = tokens * random.normal(0.1, 0.5, 60)
        found = ratio_interval(losses, tokens, resamples=600, seed=trial)
        assert found is not None
        hits += found.low <= 0.1 <= found.high
    assert 0.90 <= hits / 400 <= 0.99


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30), st.integers(-3, 3))
def test_it_scales_with_what_is_measured_and_turns_with_its_sign(
    sums: list[int], power: int
) -> None:
    """By powers of two, which round nothing: a tie of drawn sums stays one."""
    ones = [1.0] * len(sums)
    found = ratio_interval(sums, ones, resamples=200)
    scaled = ratio_interval([2.0**power * one for one in sums], ones, resamples=200)
    turned = ratio_interval([-one for one in sums], ones, resamples=200)
    assert found is not None
    assert scaled is not None
    assert turned is not None
    assert found.low <= found.high
    assert (scaled.estimate, scaled.low, scaled.high) == pytest.approx(
        tuple(2.0**power * one for one in (found.estimate, found.low, found.high)), rel=1e-9
    )
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_no_difference_is_no_difference_and_one_row_says_nothing() -> None:
    assert ratio_interval([0.0] * 7, [3.0] * 7) == Interval(0.0, 0.0, 0.0, rows=7)
    assert ratio_interval([1.0], [1.0]) is None
    assert ratio_interval([], []) is None


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-2, -1, "better"), (-1, 1, "same"), (1, 2, "worse"), (0, 2, "same")]
)
def test_the_word_for_a_loss(low: float, high: float, word: str) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert interval.word(lower_is_better=True) == word
    opposite = {"better": "worse", "worse": "better", "same": "same"}
    assert interval.word(lower_is_better=False) == opposite[word]


@pytest.mark.parametrize(("rows", "word"), [(2, "same"), (5, "same"), (6, "worse"), (40, "worse")])
def test_few_rows_show_nothing_however_alike_they_are(rows: int, word: str) -> None:
    found = ratio_interval([1.0] * rows, [2.0] * rows)
    assert found is not None
    assert found.low == found.high == 0.5
    assert found.word(lower_is_better=True) == word
