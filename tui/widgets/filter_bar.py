"""The filter: one line that narrows the list with every key."""

from __future__ import annotations

from textual.binding import Binding
from textual.message import Message
from textual.widgets import Input


class FilterBar(Input):
    """Words that an adapter must match. Escape clears and leaves, enter keeps and leaves."""

    HELP = (
        "Free words are looked for in the names, letter by letter, and in bases, kinds and targets. Words of the command"
        " line narrow further: base:qwen rank:>=16 kind:dora target:q_proj method:ties parent:NAME fits:BASE unused:30d,"
        " and damaged, marked, running."
    )
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
        Binding(
            "ctrl+s",
            "save",
            "Save",
            id="filter.save",
            tooltip="Keep the filter under a name; F brings it back",
        ),
    ]

    class Left(Message):
        """The user is done with the filter."""

    class Saved(Message):
        """The filter is to be kept under a name."""

    def __init__(self) -> None:
        super().__init__(
            placeholder="/ to filter: name, base:qwen rank:>=16 target:q_proj",
            compact=True,
            select_on_focus=False,
        )

    def action_clear(self) -> None:
        self.value = ""
        self.post_message(self.Left())

    def action_keep(self) -> None:
        self.post_message(self.Left())

    def action_save(self) -> None:
        self.post_message(self.Saved())
