"""A scrolling frame that has one of: facts in sections, drawn text, or words on why there is nothing (yet)."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from adapterhub.tui.facts import Section
from adapterhub.tui.widgets.detail_pane import Sections


class Sheet(VerticalScroll):
    """Scrolls with arrows and j, k, g, G."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="sheet.down", tooltip="Scroll down"),
        Binding("k", "scroll_up", "Up", show=False, id="sheet.up", tooltip="Scroll up"),
        Binding("g", "scroll_home", "Top", show=False, id="sheet.top", tooltip="Scroll to the top"),
        Binding("G", "scroll_end", "Bottom", show=False, id="sheet.bottom", tooltip="Scroll to the end"),
    ]  # fmt: skip

    def __init__(self, name: str) -> None:
        super().__init__(id=name, classes="panel sheet")

    def compose(self) -> ComposeResult:
        yield Static("", markup=False)
        yield Sections()

    def say(self, words: Content) -> None:
        """Shows drawn text, or why there is nothing."""
        self.query_one(Static).update(words)
        self._swap(facts=False)

    def show(self, sections: tuple[Section, ...]) -> None:
        """Shows facts."""
        self.query_one(Sections).sections = sections
        self._swap(facts=True)

    def _swap(self, *, facts: bool) -> None:
        self.query_one(Static).display = not facts
        self.query_one(Sections).display = facts
