"""The table of adapters. It draws only the lines that are seen, so ten thousand rows cost no more than fifty.

It shows as many columns as fit, so nothing has to be scrolled sideways. Before each name stand its marks, a character each:
`*` marked, `!` damaged, `?` of a newer version, `x` doesn't fit the current base, `>` used by somebody right now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import Reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from adapterhub.tui.library.fuzzy import spans
from adapterhub.tui.library.model import Library
from adapterhub.tui.library.rows import Row
from adapterhub.tui.widgets.adapter_columns import GAP, OTHER, Column, Seen, fit, shorten_repo

_MARKS = 4
"""Cells before the name: three marks and a gap."""
_HEADER = 1


class AdapterTable(ScrollView, can_focus=True):
    """Rows of adapters with a row cursor."""

    HELP = (
        "One line a name. Before it: * marked, ! damaged, ? of a newer version of adapterhub, x doesn't fit the base chosen"
        " with b, > used by a server or a running command. ~ before a score: measured on other rows than most. What a key does is done to the marked names, else to the one under"
        " the cursor."
    )
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "adapter-table--header",
        "adapter-table--cursor",
        "adapter-table--match",
        "adapter-table--marked",
        "adapter-table--problem",
        "adapter-table--misfit",
        "adapter-table--running",
        "adapter-table--quiet",
    }
    DEFAULT_CSS = """
    AdapterTable {
        overflow-x: hidden;
        overflow-y: scroll;

        & > .adapter-table--header {
            color: $text-muted;
            text-style: bold;
            background: $panel;
        }
        & > .adapter-table--cursor {
            color: $block-cursor-blurred-foreground;
            background: $block-cursor-blurred-background;
        }
        &:focus > .adapter-table--cursor {
            color: $block-cursor-foreground;
            background: $block-cursor-background;
            text-style: bold;
        }
        & > .adapter-table--match {
            color: $text-accent;
            text-style: bold underline;
        }
        & > .adapter-table--marked {
            color: $text-accent;
            text-style: bold;
        }
        & > .adapter-table--problem {
            color: $text-error;
            text-style: bold;
        }
        & > .adapter-table--misfit {
            color: $text-warning;
        }
        & > .adapter-table--running {
            color: $text-success;
        }
        & > .adapter-table--quiet {
            color: $text-muted;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter",
            "open",
            "Details",
            show=False,
            id="table.open",
            tooltip="Go to the details to scroll them",
        ),
        Binding("j,down", "move(1)", "Down", show=False, id="table.down", tooltip="Next adapter"),
        Binding("k,up", "move(-1)", "Up", show=False, id="table.up", tooltip="Previous adapter"),
        Binding(
            "ctrl+f,pagedown",
            "page(1)",
            "Page down",
            show=False,
            id="table.page_down",
            tooltip="A page down",
        ),
        Binding(
            "ctrl+b,pageup",
            "page(-1)",
            "Page up",
            show=False,
            id="table.page_up",
            tooltip="A page up",
        ),
        Binding("g,home", "top", "Top", show=False, id="table.top", tooltip="First adapter"),
        Binding("G,end", "bottom", "Bottom", show=False, id="table.bottom", tooltip="Last adapter"),
        Binding("space", "mark", "Mark", id="table.mark", tooltip="Mark it, and go on to the next"),
    ]

    # Only what is scrolled changes with it, never the layout of the screen, which would be made anew with every key.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), layout=False)

    class Moved(Message):
        """The cursor is on another adapter: `AdapterTable.name_here` says on which."""

    class Opened(Message):
        """Enter was pressed on an adapter, or it was clicked twice."""

    class Marked(Message):
        """The mark of this name is to change."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    class Sorted(Message):
        """The title of this column was clicked."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self) -> None:
        self._styles: dict[str, Style] = {}
        super().__init__()
        self._state = Library()
        self._cursor = 0
        self._columns: dict[Column, int] = {}
        self._width = 0

    # What it is given, and what it says

    def show(self, state: Library) -> None:
        """Draws `state`, with the cursor on its current row."""
        before, self._state = self._state, state
        self._cursor = state.position
        if before.widths is not state.widths or before.visible is not state.visible:
            self._lay_out()
        self._follow()
        self.refresh()

    @property
    def name_here(self) -> str:
        """The name under the cursor; empty where there is none."""
        return self._state.visible[self._cursor].name if self._state.visible else ""

    @property
    def listed(self) -> Sequence[Row]:
        """The rows, seen or scrolled away."""
        return self._state.visible

    def texts(self) -> list[dict[str, str]]:
        """The texts of all rows as they are drawn, by column, and the marks under `marks`. For tests of what is shown."""
        return [
            {
                "marks": self._marks(row),
                **{column.key: self._text(row, column).strip() for column in self._columns},
            }
            for row in self._state.visible
        ]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action not in ("mark", "open") or bool(self._state.visible)

    def action_move(self, by: int) -> None:
        self._go(self._cursor + by)

    def action_page(self, by: int) -> None:
        self._go(self._cursor + by * max(1, self._height - 1))

    def action_top(self) -> None:
        self._go(0)

    def action_bottom(self) -> None:
        self._go(len(self._state.visible) - 1)

    def action_open(self) -> None:
        self.post_message(self.Opened())

    def action_mark(self) -> None:
        if self._state.visible:
            marked = self.name_here
            self._go(self._cursor + 1)  # first, or what draws the mark would bring the cursor back
            self.post_message(self.Marked(marked))

    def _go(self, place: int) -> None:
        last = len(self._state.visible) - 1
        place = min(max(place, 0), last)
        if last >= 0 and place != self._cursor:
            self._cursor = place
            self._follow()
            self.refresh()
            self.post_message(self.Moved())

    # The mouse

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y < _HEADER:
            key = self._column_at(offset.x)
            if key:
                self.post_message(self.Sorted(key))
            return
        place = round(self.scroll_y) + offset.y - _HEADER
        if place < len(self._state.visible):
            self._go(place)
            if offset.x < _MARKS:
                self.post_message(self.Marked(self._state.visible[place].name))
            elif event.chain == 2:
                self.post_message(self.Opened())

    def _column_at(self, x: int) -> str:
        left = _MARKS
        for column, width in self._columns.items():
            if left <= x < left + width + GAP:
                return column.key
            left += width + GAP
        return ""

    # How it is drawn

    @property
    def _height(self) -> int:
        """Lines for rows."""
        return max(1, self.scrollable_content_region.height - _HEADER)

    def watch_virtual_size(self, size: Size) -> None:
        self._scroll_update(size)

    def on_resize(self) -> None:
        self._lay_out()
        self._follow()

    def _lay_out(self) -> None:
        self._width = self.scrollable_content_region.width
        self._columns = fit(self._width - _MARKS, self._state.widths)
        self.virtual_size = Size(self._width, len(self._state.visible) + _HEADER)

    def _follow(self) -> None:
        """Scrolls so that the cursor is seen."""
        top = round(self.scroll_target_y)
        if self._cursor < top:
            top = self._cursor
        elif self._cursor >= top + self._height:
            top = self._cursor - self._height + 1
        else:
            return
        self.scroll_to(y=top, animate=False, immediate=True)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles.clear()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, style = self._width, self.rich_style
        if y < _HEADER:
            return self._header().adjust_cell_length(width, style + self._style("header"))
        place = round(self.scroll_y) + y - _HEADER
        if place >= len(self._state.visible):
            return Strip.blank(width, style)
        row = self._state.visible[place]
        segments = [Segment(text, style + own) for text, own in self._line(row)]
        strip = Strip(segments).adjust_cell_length(width, style)
        if place == self._cursor:
            return Strip(
                [Segment(one.text, _over(one.style, self._style("cursor"))) for one in strip], width
            )
        return strip

    def _header(self) -> Strip:
        style = self.rich_style + self._style("header")
        parts = [" " * _MARKS]
        for column, width in self._columns.items():
            text = column.title
            if column.key == self._state.sort:  # the arrow stays, whatever the room
                arrow = "▼" if self._state.reverse else "▲"
                text = text[: max(width - 1, 0)] + arrow
            parts.append(_cell(text, width, right=column.right) + " " * GAP)
        return Strip([Segment("".join(parts), style)])

    def _line(self, row: Row) -> Iterator[tuple[str, Style]]:
        """The pieces of a row's line, each with a style of its own."""
        nothing = Style()
        kinds = ("marked", "problem" if row.problem else "misfit", "running")
        for mark, kind in zip(self._marks(row), kinds, strict=True):
            yield mark, self._style(kind) if mark != " " else nothing
        yield " ", nothing
        for column, width in self._columns.items():
            text = self._text(row, column)
            if column.key == "name":
                yield from self._name_pieces(row, text, width)
            else:
                yield _cell(text, width, right=column.right), self._cell_style(row, column, text)
            yield " " * GAP, nothing

    def _name_pieces(self, row: Row, text: str, width: int) -> Iterator[tuple[str, Style]]:
        """The name with what the filter matched in it."""
        plain = self._style("marked") if row.name in self._state.marked else Style()
        matched = {
            place
            for word in self._state.terms.words
            for first, end in spans(word, row.lowered)
            for place in range(first, end)
        }
        cell = _cell(text, width)
        if not matched:
            yield cell, plain
            return
        match = plain + self._style("match")
        first = 0
        for place in range(1, len(cell) + 1):
            if place == len(cell) or (place in matched) != (first in matched):
                yield cell[first:place], match if first in matched else plain
                first = place

    def _text(self, row: Row, column: Column) -> str:
        if column.key == "name" and self._has("tag"):
            return row.path
        text = column.say(row, Seen(self._state.uses, self._state.now, self._state.scored_on))
        return shorten_repo(text, self._columns[column]) if column.key == "base" else text

    def _cell_style(self, row: Row, column: Column, text: str) -> Style:
        if row.problem is not None and column.key == "base":
            return self._style("problem")
        if column.key == "served" and text:
            return self._style("running")
        return self._style("quiet") if text == "–" or text.startswith(OTHER) else Style()

    def _marks(self, row: Row) -> str:
        """Three characters: marked; damaged, unknown or unfit; in use."""
        state = " "
        if row.problem is not None:
            state = "!" if row.problem.damage else "?"
        elif self._state.fits(row) is False:
            state = "x"
        used = row.digest in self._state.uses
        return ("*" if row.name in self._state.marked else " ") + state + (">" if used else " ")

    def _has(self, key: str) -> bool:
        return any(column.key == key for column in self._columns)

    def _style(self, kind: str) -> Style:
        """The colours of a kind of text; all but header and cursor leave the background as it is."""
        if kind not in self._styles:
            style = self.get_component_rich_style(f"adapter-table--{kind}")
            if kind not in ("header", "cursor"):
                style = Style(
                    color=style.color, bold=style.bold or None, underline=style.underline or None
                )
            self._styles[kind] = style
        return self._styles[kind]


def _over(style: Style | None, above: Style) -> Style:
    """The cursor's colours over a piece's own, which keeps its bold and underline."""
    return (style or Style()) + above


def _cell(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` cells, with an ellipsis where it is cut."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    return " " * (width - length) + text if right else text + " " * (width - length)
