"""The detail pane: one adapter in words, scrollable, with long values wrapped under themselves."""

from __future__ import annotations

from collections.abc import Iterator

from textual.app import ComposeResult, RenderResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from adapterhub.tui.facts import Section

_STYLES = {"": "", "strong": "bold", "warning": "$text-warning", "error": "bold $text-error"}
_LEAST_LABEL = 11  # as long as `fingerprint`, so that most sections share a column
_MOST_LABEL = 16


class DetailPane(VerticalScroll):
    """A titled, scrolling frame around the sections."""

    BINDINGS = [
        Binding(
            "escape,h",
            "leave",
            "Back",
            key_display="esc",
            id="detail.leave",
            tooltip="Back to the list",
        ),
        Binding("j", "scroll_down", "Down", show=False, id="detail.down", tooltip="Scroll down"),
        Binding("k", "scroll_up", "Up", show=False, id="detail.up", tooltip="Scroll up"),
        Binding(
            "g", "scroll_home", "Top", show=False, id="detail.top", tooltip="Scroll to the top"
        ),
        Binding(
            "G", "scroll_end", "Bottom", show=False, id="detail.bottom", tooltip="Scroll to the end"
        ),
    ]

    class Left(Message):
        """The reader wants the list back."""

    def compose(self) -> ComposeResult:
        yield Sections()

    def show(self, title: str, sections: tuple[Section, ...]) -> None:
        """Shows another adapter from its top, or the same one where the reader is."""
        if self.border_title != Content(title).markup:
            self.scroll_home(animate=False)
        self.border_title = Content(title)
        self.query_one(Sections).sections = sections

    def action_leave(self) -> None:
        self.post_message(self.Left())


class Sections(Widget):
    """The text itself. It is laid out for the width it gets, so labels keep a column of their own."""

    sections: reactive[tuple[Section, ...]] = reactive((), layout=True)

    def render(self) -> RenderResult:
        return Content("\n").join(lay_out(self.sections, self.content_size.width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return sum(1 for _ in lay_out(self.sections, width))


def lay_out(sections: tuple[Section, ...], width: int) -> Iterator[Content]:
    """The lines of `sections`, none wider than `width` cells; the values of a section begin in one column."""
    for number, section in enumerate(sections):
        if number:
            yield Content("")
        if section.title:
            yield from Content.styled(section.title, "bold $text-accent").wrap(max(width, 1))
        labels = max((Content(fact.label).cell_length for fact in section.facts), default=0)
        column = min(max(labels, _LEAST_LABEL), _MOST_LABEL) + 2 if labels else 0
        for fact in section.facts:
            label = _label(fact.label, column)
            lines = Content.styled(fact.text, _STYLES[fact.tone]).wrap(max(width - column, 8))
            for place, line in enumerate(lines):
                yield Content.assemble(label if place == 0 else " " * column, line)


def _label(text: str, column: int) -> Content:
    """A label and the gap after it, `column` cells in all."""
    if column == 0:
        return Content("")
    return Content.styled(text, "dim").truncate(column - 2, ellipsis=True, pad=True).pad_right(2)
