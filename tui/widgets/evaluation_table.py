"""A table of evaluations: a line an adapter, the base above them, a cell for each number with its sign and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable

from adapterhub.cli.output import clean
from adapterhub.tui.evaluations.words import SIGNS, heading, interval, number

if TYPE_CHECKING:  # numpy comes with it
    from adapterhub.evaluate.side_by_side import Cell, Column, Line

_MOST_NAME = 28


class EvaluationTable(DataTable[Text]):
    """Numbers with a cursor on one of them. Where there is room, each has its interval beside it."""

    HELP: ClassVar[str | None] = (
        "The evaluations: a line for the base and for each adapter, a column for each number. ▲ is better than the base,"
        " = says that no difference was shown, ▼ is worse. Move with arrows or h j k l; what is said below is about the"
        " cell under the cursor."
    )
    COMPONENT_CLASSES: ClassVar[set[str]] = {"evaluation--better", "evaluation--worse", "evaluation--quiet"}  # fmt: skip
    DEFAULT_CSS = """
    EvaluationTable {
        .evaluation--better { color: $text-success; text-style: bold; }
        .evaluation--worse { color: $text-error; text-style: bold; }
        .evaluation--quiet { color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False, id="numbers.down", tooltip="The next adapter"),
        Binding("k", "cursor_up", "Up", show=False, id="numbers.up", tooltip="The adapter before"),
        Binding("l", "cursor_right", "Right", show=False, id="numbers.right", tooltip="The next number"),
        Binding("h", "cursor_left", "Left", show=False, id="numbers.left", tooltip="The number before"),
        Binding("g", "scroll_top", "Top", show=False, id="numbers.top", tooltip="The first line"),
        Binding("G", "scroll_bottom", "Bottom", show=False, id="numbers.bottom", tooltip="The last line"),
    ]  # fmt: skip

    class Moved(Message):
        """The cursor is on another cell."""

        def __init__(self, row: int, column: int) -> None:
            super().__init__()
            self.row, self.column = row, column

    class Sorted(Message):
        """A click on a column's title."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self) -> None:
        super().__init__(cursor_type="cell", header_height=2, classes="panel")
        self._shown_columns: Sequence[Column] = ()
        self._shown_lines: Sequence[Line] = ()
        self._by: tuple[Column, bool] | None = None
        self._roomy: bool | None = None

    def show(
        self,
        columns: Sequence[Column],
        lines: Sequence[Line],
        by: tuple[Column, bool] | None,
        cursor: tuple[int, int],
    ) -> None:
        """Draws another table.

        Args:
            by: the column that the lines are ordered by, and whether it is turned round.
            cursor: (line, column).
        """
        self._shown_columns, self._shown_lines, self._by = columns, lines, by
        self._redraw(cursor)

    def on_resize(self, event: events.Resize) -> None:
        if self._roomy != self._has_room():
            self._redraw((self.cursor_row, self.cursor_column))

    def on_data_table_cell_highlighted(self, event: DataTable.CellHighlighted) -> None:
        event.stop()
        self.post_message(self.Moved(*event.coordinate))

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        event.stop()
        if 0 <= event.column_index < len(self._shown_columns):
            self.post_message(self.Sorted(event.column_index))

    def texts(self) -> list[list[str]]:
        """The cells as they are drawn, a line for each adapter. For tests of what is shown."""
        return [[cell.plain for cell in self.get_row_at(row)] for row in range(self.row_count)]

    def _redraw(self, cursor: tuple[int, int]) -> None:
        self._roomy = self._has_room()
        with self.app.batch_update():
            self.clear(columns=True)
            for column in self._shown_columns:
                self.add_column(self._title(column))
            for line in self._shown_lines:
                self.add_row(*self._cells(line, roomy=self._roomy), label=_name(line))
            row, column_at = cursor
            self.move_cursor(
                row=max(0, min(row, self.row_count - 1)),
                column=max(0, min(column_at, len(self._shown_columns) - 1)),
            )

    def _title(self, column: Column) -> Text:
        part, measure = heading(column)
        if self._by is not None and self._by[0] == column:
            measure += " ▴" if self._by[1] else " ▾"
        return Text(f"{part}\n{measure}", justify="right", no_wrap=True)

    def _cells(self, line: Line, *, roomy: bool) -> list[Text]:
        return [
            self._cell(line.cells.get(column), column, roomy=roomy)
            for column in self._shown_columns
        ]

    def _cell(self, cell: Cell | None, column: Column, *, roomy: bool) -> Text:
        """Number, sign and interval below those of the other lines, and all of it below the right of the title."""
        value, sign = number(cell, column)
        inner = self._interval_width(column) if roomy else 0
        width = max(self._title_width(column) - 2 - (inner + 1 if inner else 0), self._number_width(column))  # fmt: skip
        text = Text(f"{value:>{width}} ", no_wrap=True)
        text.append(sign, self._style(sign))
        if inner:
            text.append(f" {interval(cell, column):<{inner}}", self._tone("quiet"))
        return text

    def _style(self, sign: str) -> Style:
        verdict = next((word for word, one in SIGNS.items() if one == sign), "same")
        part = "quiet" if verdict == "same" else verdict
        return self._tone(part)

    def _tone(self, part: str) -> Style:
        """Without its background, which is that of the line."""
        found = self.get_component_rich_style(f"evaluation--{part}")
        return Style(color=found.color, bold=found.bold, dim=found.dim)

    def _title_width(self, column: Column) -> int:
        return max(map(cell_len, self._title(column).plain.splitlines()))

    def _number_width(self, column: Column) -> int:
        cells = [line.cells.get(column) for line in self._shown_lines]
        return max((len(number(cell, column)[0]) for cell in cells), default=0)

    def _interval_width(self, column: Column) -> int:
        cells = [line.cells.get(column) for line in self._shown_lines]
        return max((len(interval(cell, column)) for cell in cells), default=0)

    def _has_room(self) -> bool:
        """Whether the whole table fits with its intervals."""
        names = max((cell_len(_name(line).plain) for line in self._shown_lines), default=0)
        total = names + 2 * self.cell_padding
        for column in self._shown_columns:
            width = self._number_width(column) + 3 + self._interval_width(column)
            total += max(width, self._title_width(column)) + 2 * self.cell_padding
        return total <= self.scrollable_content_region.width


def _name(line: Line) -> Text:
    name = clean(line.name)
    if cell_len(name) > _MOST_NAME:
        name = "…" + name[1 - _MOST_NAME :]
    return Text(name, no_wrap=True)
