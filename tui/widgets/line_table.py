"""A table of lines that come and go: columns that don't fit go, one takes the room that is left, the cursor stays on its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.coordinate import Coordinate
from textual.message import Message
from textual.widgets import DataTable

_LEAST = 24
"""Cells that the column which takes the rest has at least."""


@dataclass(frozen=True)
class Column:
    """A column. Of those that `goes` says, the highest goes first where there is no room."""

    title: str
    goes: int = 0
    takes_rest: bool = False
    right: bool = False


@dataclass(frozen=True)
class Line:
    """A row: what it is known by, and its cells as they are drawn."""

    key: str
    cells: tuple[str, ...]
    style: str = ""


class LineTable(DataTable[Text]):
    """Lines with a row cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", id="lines.open", tooltip="Open this line"),
        Binding("j", "cursor_down", "Down", show=False, id="lines.down", tooltip="Next line"),
        Binding("k", "cursor_up", "Up", show=False, id="lines.up", tooltip="Previous line"),
        Binding("g", "scroll_top", "Top", show=False, id="lines.top", tooltip="First line"),
        Binding("G", "scroll_bottom", "Bottom", show=False, id="lines.bottom", tooltip="Last line"),
    ]

    class Moved(Message):
        """The cursor came to another line."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Opened(Message):
        """Enter, or a click on the line with the cursor."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, title: str, columns: Sequence[Column], id: str | None = None) -> None:  # noqa: A002 - as in every widget
        super().__init__(cursor_type="row", id=id, classes="panel")
        self.border_title = Content(title)
        self._all_columns = tuple(columns)
        self._lines: tuple[Line, ...] = ()
        self._drawn: tuple[tuple[int, ...], int] | None = None

    @property
    def lines(self) -> tuple[Line, ...]:
        """What is shown."""
        return self._lines

    @property
    def current(self) -> str | None:
        """The key of the line under the cursor."""
        return self._under_cursor(self._lines)

    def allow_focus(self) -> bool:
        """A table that isn't shown takes no keys."""
        return self.display and super().allow_focus()

    def show(self, lines: Sequence[Line], selected: str | None = None) -> None:
        """Draws these lines; the cursor goes to `selected`, or stays on its line, or near where that was."""
        before, self._lines = self._lines, tuple(lines)
        place = self._place(before, selected)
        if self._layout() != self._drawn or [x.key for x in before] != [x.key for x in lines]:
            self._redraw(place)
            return
        for row, (old, new) in enumerate(zip(before, self._lines, strict=True)):
            if old != new:
                for at, cell in enumerate(self._cells(new)):
                    self.update_cell_at(Coordinate(row, at), cell)
        if lines and place != self.cursor_row:
            self.move_cursor(row=place)

    def on_resize(self, event: events.Resize) -> None:
        if self._layout() != self._drawn:
            self._redraw(max(0, self.cursor_row))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        if (key := self.current) is not None:
            self.post_message(self.Moved(key))

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        if (key := self.current) is not None:
            self.post_message(self.Opened(key))

    def _place(self, before: Sequence[Line], selected: str | None) -> int:
        wanted = self._under_cursor(before) if selected is None else selected
        places = {line.key: place for place, line in enumerate(self._lines)}
        near = max(0, min(self.cursor_row, len(self._lines) - 1))
        return places.get(wanted or "", near)

    def _under_cursor(self, lines: Sequence[Line]) -> str | None:
        row = self.cursor_row  # -1 in a table without rows
        return lines[row].key if 0 <= row < len(lines) else None

    def _redraw(self, place: int) -> None:
        self._drawn = self._layout()
        columns, rest = self._drawn
        self.clear(columns=True)
        for index in columns:
            column = self._all_columns[index]
            title = Text(column.title, justify="right" if column.right else "left")
            self.add_column(title, width=rest if column.takes_rest else None)
        for line in self._lines:
            self.add_row(*self._cells(line))
        if self._lines:
            self.move_cursor(row=place)

    def _cells(self, line: Line) -> list[Text]:
        assert self._drawn is not None
        columns, rest = self._drawn
        return [self._cell(line, index, rest) for index in columns]

    def _cell(self, line: Line, index: int, rest: int) -> Text:
        column, text = self._all_columns[index], line.cells[index]
        if column.takes_rest and cell_len(text) > rest:
            text = set_cell_size(text, rest - 1).rstrip() + "…"
        justify = "right" if column.right else "left"
        return Text(text, style=line.style, justify=justify, no_wrap=True)  # type: ignore[arg-type]

    def _layout(self) -> tuple[tuple[int, ...], int]:
        """The columns that fit, and the width of the one that takes the rest."""
        widths = {
            index: 2
            + max(cell_len(column.title), *(cell_len(x.cells[index]) for x in self._lines), 0)
            for index, column in enumerate(self._all_columns)
        }
        rest = next((i for i, column in enumerate(self._all_columns) if column.takes_rest), None)
        if rest is not None:
            widths[rest] = 2 + _LEAST
        room = self.scrollable_content_region.width
        going = sorted(
            (i for i in widths if self._all_columns[i].goes),
            key=lambda i: -self._all_columns[i].goes,
        )
        while sum(widths.values()) > room and going:
            del widths[going.pop(0)]
        left = room - sum(widths.values()) + _LEAST
        return tuple(widths), max(_LEAST, left)
