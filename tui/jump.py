"""Jump mode: a letter on everything that can have the focus, a number on the places; the key leads there."""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_uppercase
from typing import TYPE_CHECKING, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.geometry import Offset, Region
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Static

from adapterhub.tui.widgets.top_bar import PlaceLabel

if TYPE_CHECKING:
    from adapterhub.tui.app import AdapterHubApp

LETTERS = "asdfghjklqwertyuiopzxcvbnm" + ascii_uppercase
"""In the order in which they are given: where the fingers are, first."""


class JumpScreen(ModalScreen[None]):
    """Over the screen it was opened on, which stays visible."""

    CSS_PATH = "styles/jump.tcss"
    AUTO_FOCUS = ""
    BINDINGS = [
        Binding("escape,ctrl+o", "dismiss", "Leave", id="jump.leave", tooltip="Stay where you are")
    ]

    def __init__(self) -> None:
        super().__init__()
        self._targets: dict[str, Widget] = {}
        self._drawn_for = (0, 0)

    def compose(self) -> ComposeResult:
        below = self._below()
        self._drawn_for = self.app.size
        taken: set[Offset] = set()
        for key, widget, region in targets(below):
            where = _free(region, taken)
            taken.add(where)
            self._targets[key] = widget
            label = Static(key, markup=False, classes="jump")
            label.styles.offset = where
            yield label

    def on_resize(self, event: events.Resize) -> None:
        if (
            event.size != self._drawn_for and self.is_current
        ):  # the letters aren't where the widgets are any more
            self.dismiss()

    def on_key(self, event: events.Key) -> None:
        target = self._targets.get(event.character or "")
        if target is not None:
            event.stop()
            below = self._below()
            self.dismiss()
            self.app.call_later(_lead_to, target, below)

    def _below(self) -> Screen[object]:
        stack = self.app.screen_stack
        return stack[stack.index(self) - 1] if self in stack else stack[-1]


async def _lead_to(target: Widget, screen: Screen[object]) -> None:
    if isinstance(target, PlaceLabel):
        await cast("AdapterHubApp", target.app).go(target.place.id)
    elif target.is_attached and target.focusable:
        screen.set_focus(target, scroll_visible=False)


def targets(screen: Screen[object]) -> Iterator[tuple[str, Widget, Region]]:
    """What can be jumped to on `screen`: key, widget, and the part of it that is seen."""
    for label in screen.query(PlaceLabel):
        if seen := _seen(screen, label):
            yield label.place.key, label, seen
    visible = [(widget, _seen(screen, widget)) for widget in screen.focus_chain]
    for letter, (widget, region) in zip(LETTERS, [one for one in visible if one[1]], strict=False):
        yield letter, widget, region


def _seen(screen: Screen[object], widget: Widget) -> Region:
    """The part of the widget that is on the screen; nothing where it is scrolled away."""
    geometry = screen.find_widget(widget)
    return geometry.region.intersection(geometry.clip).intersection(screen.region)


def _free(region: Region, taken: set[Offset]) -> Offset:
    """A place for a letter: on the frame's corner, and further right where another one stands."""
    where = region.offset
    while where in taken:
        where += Offset(3, 0)
    return where
