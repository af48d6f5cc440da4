"""Curves as text: a line plot in braille dots, two columns and four rows of them a character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column of its dots (Unicode chapter 21)."""
_EMPTY = 0x2800
Point = tuple[float, float]


def curve(
    points: Sequence[Point], width: int, height: int, *, right: float, marks: Sequence[Point] = ()
) -> list[str]:
    """`points` as a curve in `height` lines of at most `width` characters, the values of its ends at the left.

    Args:
        points: (x, y) in order of x, x from 1; more than there are columns are averaged.
        right: the x of the right edge, so that a running curve grows towards it.
        marks: (x, y) drawn as `o` over the curve.
    """
    drawn = [y for _, y in (*points, *marks) if math.isfinite(y)]
    if not drawn or width < 20 or height < 2:
        return []
    low, high = min(drawn), max(drawn)
    span = (high - low) or 1.0
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    gutter = max(map(len, labels)) + 1
    columns = width - gutter - 1
    cells = [[_EMPTY] * columns for _ in range(height)]

    def place(x: float, y: float, across: int, down: int) -> tuple[int, int]:
        column = min(across - 1, max(0, int((x - 1) / max(1.0, right) * across)))
        row = min(down - 1, max(0, round((high - y) / span * (down - 1))))
        return column, row

    before: int | None = None
    for column, value in _averaged(points, 2 * columns, right):
        _, row = place(0, value, 1, 4 * height)
        # The rows between two neighbours are filled, so that a steep piece is a line and not two dots.
        start = row if before is None else before
        for between in range(min(row, start), max(row, start) + 1):
            cells[between // 4][column // 2] |= _DOTS[between % 4][column % 2]
        before = row
    lines = [[chr(cell) for cell in line] for line in cells]
    for x, y in marks:
        if math.isfinite(y):
            column, row = place(x, y, columns, height)
            lines[row][column] = "o"
    return [
        f"{label:>{gutter - 1}} ┤{''.join(line).rstrip(chr(_EMPTY))}"
        for label, line in zip(labels, lines, strict=True)
    ]


def _averaged(points: Sequence[Point], columns: int, right: float) -> list[tuple[int, float]]:
    """A value for each column from the first point to the last: the mean of the points in it, or between its neighbours."""
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        if math.isfinite(y):
            column = min(columns - 1, max(0, int((x - 1) / max(1.0, right) * columns)))
            total, count = sums.get(column, (0.0, 0))
            sums[column] = (total + y, count + 1)
    known = [(column, total / count) for column, (total, count) in sorted(sums.items())]
    joined = known[:1]
    for (left, low), (column, high) in pairwise(
        known
    ):  # few points over many columns: straight lines between them
        slope = (high - low) / (column - left)
        joined += [(at, low + slope * (at - left)) for at in range(left + 1, column + 1)]
    return joined
