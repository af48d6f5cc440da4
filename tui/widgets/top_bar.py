"""The bar at the top: where one is, where one can go with which key, and what goes on meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from adapterhub.tui.places import PLACES, Place

if TYPE_CHECKING:
    from adapterhub.tui.app import AdapterHubApp


class TopBar(Horizontal):
    """One line. `place` is the one that is marked; of a screen on top of a place, that place."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place

    def compose(self) -> ComposeResult:
        here = self._place or self.app.current_mode
        yield Static("adapterhub", classes="brand")
        for place in PLACES:
            yield PlaceLabel(place, here=place.id == here)
        yield Static("", id="flags", markup=False)

    def on_mount(self) -> None:
        app = cast("AdapterHubApp", self.app)
        self.watch(app, "running_jobs", self._tell)

    def _tell(self) -> None:
        app = cast("AdapterHubApp", self.app)
        said = ["read-only"] if app.hub.readonly else []
        if app.running_jobs:
            said.append(f"{app.running_jobs} running")
        self.query_one("#flags", Static).update("  ".join(said))


class PlaceLabel(Static):
    """A place with its key; a click leads there."""

    def __init__(self, place: Place, *, here: bool) -> None:
        super().__init__(
            Content.assemble((place.key, "dim"), " ", place.title),
            classes="-here" if here else "",
        )
        self.place = place
        self.tooltip = place.about

    async def on_click(self) -> None:
        await cast("AdapterHubApp", self.app).go(self.place.id)
