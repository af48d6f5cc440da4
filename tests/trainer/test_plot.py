"""The curve in the terminal: its ends are labelled, it grows to the right, and it falls where the loss falls."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.trainer.plot import Frame, curve, drawable, smoothed, traced


def test_a_falling_loss_falls_across_the_whole_width() -> None:
    lines = curve([(i, 5 - i / 50) for i in range(1, 201)], 60, 6, right=200)
    assert lines[0].startswith("4.98 ┤")
    assert lines[-1].startswith("   1 ┤")
    first = [min((i for i, c in enumerate(line[6:]) if c > "⠀"), default=-1) for line in lines]
    assert first == sorted(first)
    assert first[0] == 0
    assert len(lines[-1]) >= 58


def test_half_a_training_fills_half_the_width() -> None:
    lines = curve([(i, 1.0 + i % 3) for i in range(1, 101)], 80, 5, right=200)
    drawn = max(len(line) for line in lines)
    assert 36 <= drawn <= 46


def test_held_out_losses_are_marked() -> None:
    lines = curve([(1.0, 3.0), (100.0, 1.0)], 50, 5, right=100, marks=[(50, 2.0)])
    assert [line.count("o") for line in lines] == [0, 0, 1, 0, 0]


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60),
    st.integers(0, 200),
    st.integers(0, 12),
)
def test_no_numbers_break_it(values: list[float], width: int, height: int) -> None:
    lines = curve(list(enumerate(values, 1)), width, height, right=len(values))
    assert len(lines) in (0, height)
    assert all(len(line) <= width + 24 for line in lines)
    if not any(map(drawable, values)):
        assert lines == []


def test_values_whose_span_is_infinite_are_left_out() -> None:
    points = [(1.0, -1e308), (2.0, 1e308), (3.0, 2.0), (4.0, 1.0)]
    lines = curve(points, 40, 4, right=4)
    assert [lines[0].split()[0], lines[-1].split()[0]] == ["2", "1"]
    assert smoothed(points, 0.5)[0] == (3.0, 2.0)
    assert Frame(0, math.inf, -1e308, 1e308, 9, 9).place(1e308, -1e308) == (0, 0)
    assert Frame(0, 1e-300, 0, 1, 9, 9).place(1e300, 0.5) == (8, 4)


def test_dashes_leave_out_columns_and_nothing_else() -> None:
    points = [(float(x), math.sin(x / 9)) for x in range(100)]
    frame = Frame(0, 100, -1, 1, 40, 6)
    whole, dashed = traced(points, frame), traced(points, frame, on=3, off=1)
    assert whole != dashed
    for solid, broken in zip(whole, dashed, strict=True):
        assert all(bits & ~all_bits == 0 for all_bits, bits in zip(solid, broken, strict=True))


def test_smoothing_keeps_a_level_and_quietens_noise() -> None:
    level = smoothed([(float(x), 3.0) for x in range(9)], 0.9)
    assert [y for _, y in level] == pytest.approx([3.0] * 9)
    noisy = [(float(x), 1.0 + (-1) ** x) for x in range(50)]
    values = [y for _, y in smoothed(noisy, 0.9)][20:]
    assert max(values) - min(values) < 0.3
    assert smoothed([(1.0, math.nan), (2.0, 5.0)], 0.5) == [(2.0, 5.0)]
