"""The table of adapters. It shows as many columns as fit, so nothing has to be scrolled sideways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.widgets import DataTable

from adapterhub.cli.output import clean
from adapterhub.tui.facts import said
from adapterhub.tui.model import Row
from adapterhub.words import human_size

_PADDING = 1
_USUAL = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Column:
    """A column: what it says of a row, and between which widths (in cells) it may be."""

    key: str
    say: Callable[[Row], str]
    least: int
    most: int
    right: bool = False


def _targets(row: Row) -> str:
    """`q_proj` and `v_proj` as `q v`, in the order in which a block uses them; the detail pane has the full names."""
    names = [target.removesuffix("_proj") for target in row.targets]
    return clean(
        " ".join(
            sorted(names, key=lambda name: _USUAL.index(name) if name in _USUAL else len(_USUAL))
        )
    )


def _kind(row: Row) -> str:
    if row.problem is None:
        return clean(row.kind)
    return "damaged" if row.problem.damage else "unknown"


def _size(row: Row) -> str:
    return "–" if row.size is None else human_size(row.size)


COLUMNS = (
    Column("name", lambda row: clean(row.name), 15, 48),
    Column("kind", _kind, 7, 8),
    Column("base", lambda row: clean(row.base) or "–", 12, 40),
    Column("rank", lambda row: said(row.rank), 4, 5, right=True),
    Column("alpha", lambda row: said(row.alpha), 5, 6, right=True),
    Column("targets", lambda row: _targets(row) or "–", 8, 24),
    Column("size", _size, 7, 8, right=True),
    Column("added", lambda row: row.added[:10] or "–", 10, 10),
)
# Where room is short these go, in this order; the name stays.
DROPPED_FIRST = ("targets", "alpha", "kind", "added", "size", "base", "rank")
# ... and these get the room that is left over.
WIDENED = ("kind", "alpha", "rank", "size", "added", "name", "base", "targets")


def fit(width: int, rows: Sequence[Row]) -> dict[Column, int]:
    """The columns that fit into `width` cells, and how wide each is."""
    wanted = {
        column: min(
            column.most, max(len(column.key), *(cell_len(column.say(row)) for row in rows), 0)
        )
        for column in COLUMNS
    }
    widths = {column: min(column.least, wanted[column]) for column in COLUMNS}
    for key in DROPPED_FIRST:
        if _total(widths) <= width:
            break
        widths = {column: least for column, least in widths.items() if column.key != key}
    for column in sorted(widths, key=lambda column: WIDENED.index(column.key)):
        widths[column] += max(0, min(width - _total(widths), wanted[column] - widths[column]))
    return widths


def _total(widths: Mapping[Column, int]) -> int:
    return sum(width + 2 * _PADDING for width in widths.values())


def shorten_repo(repo: str, width: int) -> str:
    """A repository id in `width` cells: the model's name says more than the owner's."""
    return repo if cell_len(repo) <= width else repo.rpartition("/")[2]


class AdapterTable(DataTable[Text]):
    """Rows of adapters with a row cursor."""

    BINDINGS = [
        Binding(
            "enter",
            "select_cursor",
            "Details",
            key_display="enter",
            id="table.open",
            tooltip="Go to the detail pane to scroll it",
        ),
        Binding("j", "cursor_down", "Down", show=False, id="table.down", tooltip="Next adapter"),
        Binding("k", "cursor_up", "Up", show=False, id="table.up", tooltip="Previous adapter"),
        Binding("g", "scroll_top", "Top", show=False, id="table.top", tooltip="First adapter"),
        Binding(
            "G", "scroll_bottom", "Bottom", show=False, id="table.bottom", tooltip="Last adapter"
        ),
    ]

    class Moved(Message):
        """The cursor is on another adapter."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    class Opened(Message):
        """Enter was pressed on an adapter, or it was clicked twice."""

    def __init__(self) -> None:
        super().__init__(cursor_type="row", cell_padding=_PADDING)
        self._all: Sequence[Row] = ()
        self._visible: Sequence[Row] = ()

    def show(self, rows: Sequence[Row], visible: Sequence[Row], position: int) -> None:
        """Draws `visible`, with the cursor at `position`; `rows` (all of them) decide how wide the columns are."""
        if (rows, visible) != (self._all, self._visible):
            self._all, self._visible = rows, visible
            self._draw(position)
        elif self.row_count and position != self.cursor_row:
            self.move_cursor(row=position)

    def on_resize(self, event: events.Resize) -> None:
        self._draw(self.cursor_row)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        if self.cursor_row < len(
            self._visible
        ):  # of several events in the queue, the cursor itself is the news
            self.post_message(self.Moved(self._visible[self.cursor_row].name))

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        self.post_message(self.Opened())

    def _draw(self, position: int) -> None:
        self.clear(columns=True)
        widths = fit(self.scrollable_content_region.width, self._all)
        for column, width in widths.items():
            self.add_column(
                Text(column.key, justify="right" if column.right else "left"),
                width=width,
                key=column.key,
            )
        for row in self._visible:
            cells = (_cell(row, column, width) for column, width in widths.items())
            self.add_row(*cells, key=row.name)
        if self._visible:
            self.move_cursor(row=position)


def _cell(row: Row, column: Column, width: int) -> Text:
    text = column.say(row)
    if column.key == "base":
        text = shorten_repo(text, width)
    style = "bold red" if row.problem and column.key == "kind" else ""
    return Text(
        text,
        style=style,
        justify="right" if column.right else "left",
        no_wrap=True,
        overflow="ellipsis",
    )
