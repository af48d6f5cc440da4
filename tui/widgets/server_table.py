"""What a server serves: a row for each version that a name means, with what was asked of it. Columns that don't fit go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import DataTable

from adapterhub.cli.output import clean
from adapterhub.words import human_count

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Column:
    key: str
    say: Callable[[Row], str]
    right: bool = True


def _loaded(row: Row) -> str:
    if row["loaded"]:
        return "loaded"
    return "evicted" if row["evictions"] else "not yet"


def _rate(row: Row) -> str:
    return "–" if row["rate"] is None else f"{row['rate']:.1f}"


COLUMNS = (
    _Column("name", lambda row: clean(row["name"]), right=False),
    _Column("version", lambda row: clean(row["version"]), right=False),
    _Column("share", lambda row: clean(row["share"])),
    _Column("state", _loaded, right=False),
    _Column("now", lambda row: str(row["requests"])),
    _Column("answers", lambda row: str(row["answered"])),
    _Column("/s", _rate),
    _Column("in", lambda row: human_count(row["tokens_in"])),
    _Column("out", lambda row: human_count(row["tokens_out"])),
    _Column("failed", lambda row: str(row["failed"])),
    _Column("pinned", lambda row: "pinned" if row["pinned"] else "", right=False),
)
DROPPED_FIRST = ("in", "pinned", "now", "share", "failed", "out", "version", "/s")
"""Where room is short these go, in this order."""


class ServerTable(DataTable[Text]):
    """Rows of names and versions, with a row cursor."""

    HELP: ClassVar[str | None] = (
        "Each row is a version that a name means. now: requests under way. answers, in, out and failed: requests and tokens"
        " through the door since it opened. evicted: it was put out for another, and is loaded again when it is asked for."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False, id="server.down", tooltip="Next name"),
        Binding("k", "cursor_up", "Up", show=False, id="server.up", tooltip="Previous name"),
        Binding("g", "scroll_top", "Top", show=False, id="server.top", tooltip="First name"),
        Binding("G", "scroll_bottom", "Bottom", show=False, id="server.bottom", tooltip="Last name"),
    ]  # fmt: skip

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - as in every widget
        super().__init__(cursor_type="row", id=id, classes="panel")
        self.border_title = Content("Served")
        self._shown: Sequence[Row] = ()

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self._shown[self.cursor_row] if self.cursor_row < len(self._shown) else None

    def show(self, rows: Sequence[Row]) -> None:
        """Draws these rows; the cursor stays on its version, or its name."""
        if rows != self._shown:
            before, at = _identity(self.current), self.cursor_row
            self._shown = rows
            self._draw(before, at)

    def on_resize(self, event: events.Resize) -> None:
        self._draw(_identity(self.current), self.cursor_row)

    def _draw(self, before: tuple[str, str] | None, at: int) -> None:
        self.clear(columns=True)
        columns = self._fitting()
        for column in columns:
            self.add_column(Text(column.key, justify="right" if column.right else "left"))
        for row in self._shown:
            self.add_row(*(_cell(row, column) for column in columns))
        if self._shown:
            self.move_cursor(row=self._place_of(before, at))

    def _place_of(self, before: tuple[str, str] | None, at: int) -> int:
        """Where that version is now, else its name, else what took its place."""
        known = [_identity(row) for row in self._shown]
        if before in known:
            return known.index(before)
        names = [one[0] for one in known if one is not None]
        if before is not None and before[0] in names:
            return names.index(before[0])
        return min(at, len(known) - 1)

    def _fitting(self) -> list[_Column]:
        widths = {
            column.key: 2 + max(cell_len(column.key), *(cell_len(column.say(row)) for row in self._shown), 0)
            for column in COLUMNS
        }  # fmt: skip
        for key in DROPPED_FIRST:
            if sum(widths.values()) <= self.scrollable_content_region.width:
                break
            del widths[key]
        return [column for column in COLUMNS if column.key in widths]


def _cell(row: Row, column: _Column) -> Text:
    style = "bold" if column.key == "failed" and row["failed"] else ""
    return Text(
        column.say(row), style=style, justify="right" if column.right else "left", no_wrap=True
    )


def _identity(row: Row | None) -> tuple[str, str] | None:
    return None if row is None else (str(row["name"]), str(row["version"]))
