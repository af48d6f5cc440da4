"""A dialog that picks one of many names: type a part of it, choose, enter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from adapterhub.cli.output import clean


class PickScreen(ModalScreen[str | None]):
    """The name that was picked, or None."""

    AUTO_FOCUS = "Input"
    CSS_PATH = "../styles/pick.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave", id="pick.leave", tooltip="Pick nothing"),
        Binding("down", "move(1)", "Next", show=False, id="pick.next", tooltip="Next name"),
        Binding("up", "move(-1)", "Previous", show=False, id="pick.previous", tooltip="Name before"),
    ]  # fmt: skip

    def __init__(self, question: str, names: Sequence[str], empty: str) -> None:
        """`empty` is said where there is nothing to pick."""
        super().__init__()
        self._question, self._names, self._empty = question, names, empty
        self._visible: list[str] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content(clean(self._question))
            frame.border_subtitle = Content("enter picks it   esc leaves")
            yield Input(placeholder="a part of the name", compact=True)
            choices = OptionList(compact=True)
            choices.can_focus = False
            yield choices
            yield Static(markup=False, classes="quiet")

    def on_mount(self) -> None:
        self._show("")

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def on_input_submitted(self) -> None:
        place = self.query_one(OptionList).highlighted
        if place is not None:
            self.dismiss(self._visible[place])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._visible[event.option_index])

    def action_move(self, steps: int) -> None:
        choices = self.query_one(OptionList)
        (choices.action_cursor_down if steps > 0 else choices.action_cursor_up)()

    def action_leave(self) -> None:
        self.dismiss(None)

    def _show(self, typed: str) -> None:
        words = typed.lower().split()
        self._visible = [
            name for name in self._names if all(word in name.lower() for word in words)
        ]
        choices = self.query_one(OptionList)
        choices.clear_options()
        choices.add_options([Option(Content(clean(name))) for name in self._visible])
        choices.highlighted = 0 if self._visible else None
        empty = "" if self._visible else "No name matches." if self._names else self._empty
        self.query_one(Static).update(empty)
