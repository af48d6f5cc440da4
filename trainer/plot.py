"""Curves as text: a line plot in braille dots, two columns and four rows of them a character.

`curve` is the plot of the command line; the screens draw several curves into one frame with `traced` and `Frame`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LARGEST = 1e300
"""Nothing that is measured is larger. What is isn't drawn: sums and spans of such numbers are no longer finite."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column of its dots (Unicode chapter 21)."""
EMPTY = 0x2800
"""The braille character without a dot; a cell's bits are added to it."""
Point = tuple[float, float]


def drawable(value: float) -> bool:
    """Whether a value has a place in a plot."""
    return math.isfinite(value) and abs(value) <= LARGEST


@dataclass(frozen=True)
class Frame:
    """The part of the plane that is shown, and on how many characters."""

    left: float
    right: float
    low: float
    high: float
    columns: int
    lines: int

    def place(self, x: float, y: float) -> tuple[int, int]:
        """The (column, line) of a point in characters; what lies outside is moved to the edge."""
        return self.column(x, self.columns), self.line(y, self.lines)

    def column(self, x: float, across: int) -> int:
        """The column of `x` where the frame has `across` of them."""
        share = _within((x - self.left) / ((self.right - self.left) or 1.0))
        return min(across - 1, int(share * across))

    def line(self, y: float, down: int) -> int:
        """The line of `y` where the frame has `down` of them."""
        span = (self.high - self.low) or 1.0
        return round(_within((self.high - y) / span) * (down - 1))


def _within(share: float) -> float:
    """From 0 to 1, whatever the numbers were: what is no number is 0."""
    return min(1.0, max(0.0, share))


def traced(points: Sequence[Point], frame: Frame, *, on: int = 1, off: int = 0) -> list[list[int]]:
    """The bits of each cell through which the curve of `points` (in order of x) goes.

    More points than there are columns are averaged. `on` columns of dots are drawn and `off` left out, in turn: the
    same curve as a line, in dashes or in dots.
    """
    cells = [[0] * frame.columns for _ in range(frame.lines)]
    down = 4 * frame.lines
    before: int | None = None
    for column, value in _averaged(points, 2 * frame.columns, frame):
        row = frame.line(value, down)
        # The rows between two neighbours are filled, so that a steep piece is a line and not two dots.
        start = row if before is None else before
        before = row
        if column % (on + off) >= on:
            continue
        for between in range(min(row, start), max(row, start) + 1):
            cells[between // 4][column // 2] |= _DOTS[between % 4][column % 2]
    return cells


def curve(
    points: Sequence[Point], width: int, height: int, *, right: float, marks: Sequence[Point] = ()
) -> list[str]:
    """`points` as a curve in `height` lines of at most `width` characters, the values of its ends at the left.

    Args:
        points: (x, y) in order of x, x from 1; more than there are columns are averaged.
        right: the x of the right edge, so that a running curve grows towards it.
        marks: (x, y) drawn as `o` over the curve.
    """
    drawn = [y for _, y in (*points, *marks) if drawable(y)]
    if not drawn or width < 20 or height < 2:
        return []
    low, high = min(drawn), max(drawn)
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    gutter = max(map(len, labels)) + 1
    frame = Frame(1, 1 + max(1.0, right), low, high, width - gutter - 1, height)
    lines = [[chr(EMPTY + bits) for bits in line] for line in traced(points, frame)]
    for x, y in marks:
        if drawable(y):
            column, row = frame.place(x, y)
            lines[row][column] = "o"
    return [
        f"{label:>{gutter - 1}} ┤{''.join(line).rstrip(chr(EMPTY))}"
        for label, line in zip(labels, lines, strict=True)
    ]


def smoothed(points: Sequence[Point], weight: float) -> list[Point]:
    """The exponential moving average of the values: each keeps `weight` of the one before.

    The first values aren't held back by a start at zero (the bias is divided out). What is no number is left out.
    """
    found: list[Point] = []
    total = share = 0.0
    for x, y in points:
        if drawable(y):
            total = weight * total + (1 - weight) * y
            share = weight * share + (1 - weight)
            found.append((x, total / share))
    return found


def _averaged(points: Sequence[Point], columns: int, frame: Frame) -> list[tuple[int, float]]:
    """A value for each column from the first point to the last: the mean of the points in it, or between its neighbours."""
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        if drawable(y):
            column = frame.column(x, columns)
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
