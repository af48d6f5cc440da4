"""Choosing one of several things from a short list: a base, a saved filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from adapterhub.cli.output import clean


@dataclass(frozen=True)
class Choosable:
    """Something to choose: what it is called, and what it is."""

    id: str
    label: str
    about: str = ""


@dataclass(frozen=True)
class Chosen:
    """What was chosen, and whether it is to be forgotten instead of used."""

    id: str
    forget: bool = False


class ChooseScreen(ModalScreen[Chosen | None]):
    """A list; enter takes one, escape none. With `forgettable`, d asks to forget one."""

    CSS_PATH = "../styles/library.tcss"
    AUTO_FOCUS = "OptionList"
    BINDINGS = [
        Binding(
            "escape,q",
            "leave",
            "Leave",
            key_display="esc",
            id="choose.leave",
            tooltip="Choose none",
        ),
        Binding("j", "move('down')", "Down", show=False),
        Binding("k", "move('up')", "Up", show=False),
        Binding(
            "d", "forget", "Forget", id="choose.forget", tooltip="Forget the one under the cursor"
        ),
    ]

    def __init__(
        self, title: str, things: Sequence[Choosable], *, forgettable: bool = False
    ) -> None:
        super().__init__()
        self._title, self._things, self._forgettable = title, things, forgettable

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content(clean(self._title))
            frame.border_subtitle = Content(
                "enter takes it   d forgets it   esc leaves"
                if self._forgettable
                else "enter takes it   esc leaves"
            )
            yield OptionList(*(Option(_said(thing)) for thing in self._things), compact=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action != "forget" or self._forgettable

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(Chosen(self._things[event.option_index].id))

    def action_move(self, way: str) -> None:
        options = self.query_one(OptionList)
        options.action_cursor_down() if way == "down" else options.action_cursor_up()

    def action_forget(self) -> None:
        place = self.query_one(OptionList).highlighted
        if place is not None:
            self.dismiss(Chosen(self._things[place].id, forget=True))

    def action_leave(self) -> None:
        self.dismiss(None)


def _said(thing: Choosable) -> Content:
    about = f"  {clean(thing.about)}" if thing.about else ""
    return Content.assemble((clean(thing.label), "bold"), (about, "dim"))
