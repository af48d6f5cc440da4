"""A grid of numbers as a person reads it on a terminal: coloured cells with the numbers in them, as wide as it has room.

Many layers stand in several panels side by side, so that 32 of them fit into 24 lines. Without colour the numbers remain.
Red is what hurts a merge (opposed signs, unequal norms), blue the same direction; plain is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from adapterhub.compare.grid import Grid
from adapterhub.compare.scales import SCALES, Scale, short_columns, shown

Line = list[tuple[str, str]]

_PANEL_ROWS = 16
_GAP = "   "
_PLAIN = "dim"
# From the 256 colours that every terminal has, so that none has to find the nearest.
_STYLES: Mapping[int, str] = {
    -3: "white on color(160)",
    -2: "white on color(124)",
    -1: "white on color(52)",
    0: _PLAIN,
    1: "white on color(18)",
    2: "white on color(25)",
    3: "white on color(33)",
}


def heatmap(grid: Grid, measure: str, width: int) -> list[Line]:
    """The lines of the heatmap, at most `width` columns wide where the names of the columns allow it."""
    scale = SCALES[measure]
    columns = short_columns(grid.columns)
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
        [(f"{name} ", "bold"), *_cell(value, len(shown(value)), scale)]
        for name, value in grid.outside
    ]
    return lines


def legend(measure: str) -> Line:
    """What the colours mean: a ruler with the edges between them."""
    scale = SCALES[measure]
    line = [(scale.low, "dim"), ("  ", "")]
    for tone, edge in zip(scale.tones, [*scale.edges, None], strict=True):
        line.append(("    " if tone else " -- ", _STYLES[tone]))
        if edge is not None:
            line.append((shown(edge), ""))
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
    scale: Scale,
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
    name: str, cells: Sequence[float | None], columns: Sequence[str], label: int, scale: Scale
) -> Line:
    line: Line = [(f"{name:>{label}}", "bold")]
    for cell, column in zip(cells, columns, strict=True):
        line += [(" ", ""), *_cell(cell, _wide(column), scale)]
    return line


def _cell(value: float | None, wide: int, scale: Scale) -> Line:
    return [(f"{shown(value):>{wide}}", "" if value is None else _STYLES[scale.tone(value)])]


def _joined(parts: Sequence[Line]) -> Line:
    line: Line = []
    for place, part in enumerate(parts):
        line += [*([(_GAP, "")] if place else []), *part]
    return line


def _wide(name: str) -> int:
    return max(4, len(name))
