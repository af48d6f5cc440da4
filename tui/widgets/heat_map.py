"""A heatmap with a cursor: numbers in cells, coloured by what they mean. Without colour the numbers remain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from adapterhub.compare.scales import SCALES, shown
from adapterhub.tui.comparing import Row

_LEAST = 4
_MOST_LABEL = 28


class HeatMap(ScrollView, can_focus=True):
    """Rows of layers, columns of kinds of modules."""

    HELP: ClassVar[str | None] = (
        "The heatmap: a line for each layer, a column for each kind of module. Move with arrows or h j k l; what is said"
        " beside it is about the cell under the cursor."
    )
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "heat--label", "heat--cursor", "heat--plain",
        "heat--against1", "heat--against2", "heat--against3", "heat--alike1", "heat--alike2", "heat--alike3",
    }  # fmt: skip
    DEFAULT_CSS = """
    HeatMap {
        .heat--label { color: $text-muted; text-style: bold; }
        .heat--plain { color: $text-muted; }
        .heat--cursor { background: $foreground; color: $background; text-style: bold; }
        .heat--against1 { background: $error 25%; color: $foreground; }
        .heat--against2 { background: $error 50%; color: $foreground; }
        .heat--against3 { background: $error 85%; color: auto; text-style: bold; }
        .heat--alike1 { background: $primary 25%; color: $foreground; }
        .heat--alike2 { background: $primary 50%; color: $foreground; }
        .heat--alike3 { background: $primary 85%; color: auto; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "step(1, 0)", "Down", show=False, id="heat.down", tooltip="The next layer"),
        Binding("up,k", "step(-1, 0)", "Up", show=False, id="heat.up", tooltip="The layer before"),
        Binding("right,l", "step(0, 1)", "Right", show=False, id="heat.right", tooltip="The next kind of module"),
        Binding("left,h", "step(0, -1)", "Left", show=False, id="heat.left", tooltip="The kind of module before"),
        Binding("pagedown", "step(10, 0)", "Page down", show=False, id="heat.page_down", tooltip="Ten layers on"),
        Binding("pageup", "step(-10, 0)", "Page up", show=False, id="heat.page_up", tooltip="Ten layers back"),
        Binding("g,home", "step(-9999, 0)", "Top", show=False, id="heat.top", tooltip="The first layer"),
        Binding("G,end", "step(9999, 0)", "Bottom", show=False, id="heat.bottom", tooltip="All layers together"),
    ]  # fmt: skip

    cursor: reactive[tuple[int, int]] = reactive((0, 0))
    """(row, column)."""

    class Moved(Message):
        """The cursor is on another cell."""

        def __init__(self, row: int, column: int) -> None:
            super().__init__()
            self.row, self.column = row, column

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._columns: Sequence[str] = ()
        self._rows: Sequence[Row] = ()
        self._measure = "cosine"

    def show(self, columns: Sequence[str], rows: Sequence[Row], measure: str) -> None:
        """Draws another map; the cursor stays where it can."""
        self._columns, self._rows, self._measure = columns, rows, measure
        self.virtual_size = Size(self._label + sum(w + 1 for w in self._widths), len(rows) + 1)
        self.cursor = self._within(*self.cursor)
        self.refresh()

    # The cursor

    def action_step(self, down: int, right: int) -> None:
        row, column = self.cursor
        self.cursor = self._within(row + down, column + right)

    def on_click(self, event: events.Click) -> None:
        if (offset := event.get_content_offset(self)) is None or not self._rows:
            return
        line = offset.y + round(self.scroll_y) - (0 if offset.y == 0 else 1)
        x, column = offset.x + round(self.scroll_x) - self._label, 0
        if offset.y == 0 or x < 0:
            return
        for place, width in enumerate(self._widths):
            if x >= width + 1:
                x, column = x - width - 1, place + 1
        self.cursor = self._within(line, column)

    def watch_cursor(self, before: tuple[int, int], cursor: tuple[int, int]) -> None:
        row, column = cursor
        left = self._label + sum(width + 1 for width in self._widths[:column])
        width = self._widths[column] + 1 if self._widths else 1
        self.scroll_to_region(Region(left, row, width, 2), animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved(row, column))

    def _within(self, row: int, column: int) -> tuple[int, int]:
        if not self._rows:
            return 0, 0
        row = max(0, min(row, len(self._rows) - 1))
        return row, max(0, min(column, len(self._rows[row].values) - 1))

    # What is drawn

    @property
    def _label(self) -> int:
        return max([3, *(min(_MOST_LABEL, len(row.label)) for row in self._rows)])

    @property
    def _widths(self) -> list[int]:
        return [max(_LEAST, len(name)) for name in self._columns] or [_LEAST]

    def render_line(self, y: int) -> Strip:
        left, wide = round(self.scroll_x), self.size.width
        if y == 0:  # the names of the columns stay
            strip = self._head()
        else:
            place = y - 1 + round(self.scroll_y)
            strip = self._line(place) if place < len(self._rows) else Strip.blank(wide)
        base = self.rich_style
        return strip.crop_extend(left, left + wide, base).apply_style(base)

    def _head(self) -> Strip:
        style = self.get_component_rich_style("heat--label")
        names = "".join(
            f" {name:>{w}}" for name, w in zip(self._columns, self._widths, strict=False)
        )
        return Strip([Segment(" " * self._label + names, style)])

    def _line(self, place: int) -> Strip:
        row = self._rows[place]
        label = row.label if len(row.label) <= _MOST_LABEL else "…" + row.label[1 - _MOST_LABEL :]
        cells = [
            Segment(
                f"{label:>{self._label}}",
                self.get_component_rich_style("heat--label"),
            )
        ]
        for column, value in enumerate(row.values):
            here = (place, column) == self.cursor
            text = f"{shown(value):>{self._widths[column]}}"
            cells.append(Segment("▸" if here else " "))
            cells.append(Segment(text, self._style(value, here=here)))
        return Strip(cells)

    def _style(self, value: float | None, *, here: bool) -> Style:
        if here and self.has_focus:
            return self.get_component_rich_style("heat--cursor")
        tone = 0 if value is None else SCALES[self._measure].tone(value)
        if tone == 0:
            return self.get_component_rich_style("heat--plain")
        return self.get_component_rich_style(
            f"heat--{'alike' if tone > 0 else 'against'}{abs(tone)}"
        )


def legend(measure: str) -> str:
    """What low and high mean, in words."""
    scale = SCALES[measure]
    ends = f"{scale.low} {shown(scale.edges[0])} … {shown(scale.edges[-1])} {scale.high}"
    return f"{ends}   {shown(None)} not in two of them"
