"""The curve in the terminal: its ends are labelled, it grows to the right, and it falls where the loss falls."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.trainer.plot import curve


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
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60),
    st.integers(0, 200),
    st.integers(0, 12),
)
def test_no_numbers_break_it(values: list[float], width: int, height: int) -> None:
    lines = curve(list(enumerate(values, 1)), width, height, right=len(values))
    assert len(lines) in (0, height)
    assert all(len(line) <= width + 24 for line in lines)
    if not any(map(math.isfinite, values)):
        assert lines == []
