"""A grid of numbers as a person reads it on a terminal: coloured cells with the numbers in them, as wide as it has room.

Many layers stand in several panels side by side, so that 32 of them fit into 24 lines. Without colour the numbers remain.
Red is what hurts a merge (opposed signs, unequal norms), blue the same direction; plain is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adapterhub.compare.grid import Grid

Line = list[tuple[str, str]]

_PANEL_ROWS = 16
_GAP = "   "
_PLAIN = "dim"
# From the 256 colours that every terminal has, so that none has to find the nearest.
_RED = ("white on color(160)", "white on color(124)", "white on color(52)")
_BLUE = ("white on color(18)", "white on color(25)", "white on color(33)")


@dataclass(frozen=True)
class _Scale:
    """`styles` has one entry more than `edges`: values below the first edge get the first."""

    edges: tuple[float, ...]
    styles: tuple[str, ...]
    low: str
    high: str

    def style(self, value: float) -> str:
        return self.styles[sum(value >= edge for edge in self.edges)]


_SCALES: Mapping[str, _Scale] = {
    "cosine": _Scale(
        (-0.5, -0.2, -0.05, 0.05, 0.2, 0.5), (*_RED, _PLAIN, *_BLUE), "opposed", "the same"
    ),
    "conflict": _Scale(
        (0.25, 0.4, 0.47, 0.53, 0.6, 0.75), (*_BLUE[::-1], _PLAIN, *_RED[::-1]), "agree", "opposed"
    ),
    "norm-ratio": _Scale(
        (1 / 8, 1 / 4, 1 / 2, 2, 4, 8),
        (*_RED, _PLAIN, *_RED[::-1]),
        "first stronger",
        "second stronger",
    ),
    "overlap": _Scale((0.05, 0.25, 0.5), (_PLAIN, *_BLUE), "apart", "the same subspaces"),
}


def heatmap(grid: Grid, measure: str, width: int) -> list[Line]:
    """The lines of the heatmap, at most `width` columns wide where the names of the columns allow it."""
    scale = _SCALES[measure]
    columns = [name.removesuffix("_proj") for name in grid.columns]
    if len(set(columns)) < len(columns):
        columns = list(grid.columns)
    rows = [*grid.rows]
    label = max([3, *(len(name) for name, _ in rows)])
    lines: list[Line] = []
    for first, last in _fitting(columns, width - label):
        lines += _panels(
            columns[first:last],
            [(name, cells[first:last]) for name, cells in rows],
            grid.total[first:last],
            label,
            width,
            scale,
        )
    if grid.outside:
        lines.append([])
    lines += [
        [(f"{name} ", "bold"), *_cell(value, len(_shown(value)), scale)]
        for name, value in grid.outside
    ]
    return lines


def legend(measure: str) -> Line:
    """What the colours mean: a ruler with the edges between them."""
    scale = _SCALES[measure]
    line = [(scale.low, "dim"), ("  ", "")]
    for style, edge in zip(scale.styles, [*scale.edges, None], strict=True):
        line.append((" -- " if style == _PLAIN else "    ", style))
        if edge is not None:
            line.append((_shown(edge), ""))
    return [*line, ("  ", ""), (scale.high, "dim")]


def _fitting(columns: Sequence[str], room: int) -> list[tuple[int, int]]:
    """[first, last) of the columns that fit beside each other; all of them at once where they do."""
    starts, used = [0], 0
    for place, name in enumerate(columns):
        used += _wide(name) + 1
        if used > room and place > starts[-1]:
            starts.append(place)
            used = _wide(name) + 1
    return list(pairwise([*starts, len(columns)]))


def _panels(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    total: Sequence[float | None],
    label: int,
    width: int,
    scale: _Scale,
) -> list[Line]:
    one = label + sum(_wide(name) + 1 for name in columns)
    fit = max(1, (width + len(_GAP)) // (one + len(_GAP)))
    count = min(fit, -(-len(rows) // _PANEL_ROWS)) or 1
    height = -(-len(rows) // count)
    head: Line = [(" " * label, ""), *((f" {name:>{_wide(name)}}", "bold") for name in columns)]
    lines: list[Line] = [_joined([head] * count)]
    for row in range(height):
        side = [rows[place] for place in range(row, len(rows), height)]
        lines.append(_joined([_row(name, cells, columns, label, scale) for name, cells in side]))
    return [*lines, _row("all", total, columns, label, scale)]


def _row(
    name: str, cells: Sequence[float | None], columns: Sequence[str], label: int, scale: _Scale
) -> Line:
    line: Line = [(f"{name:>{label}}", "bold")]
    for cell, column in zip(cells, columns, strict=True):
        line += [(" ", ""), *_cell(cell, _wide(column), scale)]
    return line


def _cell(value: float | None, wide: int, scale: _Scale) -> Line:
    return [(f"{_shown(value):>{wide}}", "" if value is None else scale.style(value))]


def _joined(parts: Sequence[Line]) -> Line:
    line: Line = []
    for place, part in enumerate(parts):
        line += [*([(_GAP, "")] if place else []), *part]
    return line


def _wide(name: str) -> int:
    return max(4, len(name))


def _shown(value: float | None) -> str:
    """At most four characters: -.31, .05, 1.0, 12, 1e3; a point where there is nothing to measure."""
    if value is None:
        return "·"
    if abs(value) >= 999.5:
        return f"{min(value, 9e99):.0e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 9.95:
        return f"{value:.0f}"
    if abs(value) >= 0.995:
        return f"{value:.1f}"
    text = f"{value:.2f}".replace("0.", ".", 1)
    return ".00" if text == "-.00" else text
