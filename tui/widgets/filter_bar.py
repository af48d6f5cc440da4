"""The filter: one line that narrows the list with every key."""

from __future__ import annotations

from textual.binding import Binding
from textual.message import Message
from textual.widgets import Input


class FilterBar(Input):
    """Words that an adapter's name, kind, base or targets must contain. Escape clears and leaves, enter keeps and leaves."""

    BINDINGS = [
        Binding(
            "escape",
            "clear",
            "Clear",
            key_display="esc",
            id="filter.clear",
            tooltip="Show all adapters again",
        ),
        Binding(
            "enter,down",
            "keep",
            "List",
            key_display="enter",
            id="filter.keep",
            tooltip="Keep the filter",
        ),
    ]

    class Left(Message):
        """The user is done with the filter."""

    def __init__(self) -> None:
        super().__init__(
            placeholder="/ to filter: name, base, kind, target", compact=True, select_on_focus=False
        )

    def action_clear(self) -> None:
        self.value = ""
        self.post_message(self.Left())

    def action_keep(self) -> None:
        self.post_message(self.Left())
