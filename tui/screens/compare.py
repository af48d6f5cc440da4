"""Compare: how two or more adapters lie to each other, layer by layer, and what that means for a merge."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.reactive import reactive
from textual.widgets import Static

from adapterhub.cli.output import clean
from adapterhub.tui.comparing import MEASURES, Found, in_words, look, meaning
from adapterhub.tui.hub import Hub
from adapterhub.tui.problem import Problem
from adapterhub.tui.progress import Far, Watched
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.heat_map import HeatMap, legend
from adapterhub.tui.widgets.sheet import Sheet


@dataclass(frozen=True)
class State:
    """What the screen knows."""

    found: Found | None = None
    far: Far | None = None
    problem: Problem | None = None
    measure: str = MEASURES[0]
    exact: bool = False
    row: int = 0
    column: int = 0


class CompareScreen(HubScreen):
    """Opened with the names of the adapters."""

    ABOUT = (
        "Adapters compared on what they change, before they are merged. Each cell is one kind of module in one layer; ]"
        " and [ switch what it shows: cosine, sign conflict, norm ratio, overlap. The text says what that means, and m"
        " opens the merge that is recommended. Of more than two adapters a cell shows the worst pair."
    )
    AUTO_FOCUS = "HeatMap"
    CSS_PATH = "../styles/compare.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket,n", "measure(1)", "Measure", key_display="]", id="compare.next", tooltip="The next measure: cosine, sign conflict, norm ratio, overlap"),
        Binding("left_square_bracket,N", "measure(-1)", "Previous", key_display="[", show=False, id="compare.previous", tooltip="The measure before"),
        Binding("m", "merge", "Merge", id="compare.merge", tooltip="Open the recommended merge"),
        Binding("v", "evaluations", "Evaluations", show=False, id="compare.evaluations", tooltip="What they were evaluated on, side by side"),
        Binding("f", "exact", "All rows", id="compare.exact", tooltip="Count sign conflicts in all rows, not in a sample"),
        Binding("r", "reload", "Again", show=False, id="compare.reload", tooltip="Compare again"),
    ]  # fmt: skip

    state: reactive[State] = reactive(State())

    def __init__(self, hub: Hub, names: Sequence[str]) -> None:
        super().__init__(hub)
        self._names = tuple(names)

    def body(self) -> ComposeResult:
        with Container(id="comparing"):
            with Vertical(id="map", classes="panel") as frame:
                frame.border_title = Content("Comparing")
                yield HeatMap()
                yield Static(id="legend", classes="quiet", markup=False)
            yield Sheet("words")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#words", Sheet).border_title = Content(
            " and ".join(map(clean, self._names))
        )
        self.compare()

    def command_line(self) -> str:
        given = [] if self.state.measure == MEASURES[0] else ["--measure", self.state.measure]
        given += ["--exact"] if self.state.exact else []
        return shlex.join(["adapterhub", "diff", *self._names, *given])

    # What the user does

    def action_measure(self, steps: int) -> None:
        place = MEASURES.index(self.state.measure) + steps
        self.state = replace(self.state, measure=MEASURES[place % len(MEASURES)])

    def action_exact(self) -> None:
        self.state = replace(self.state, exact=not self.state.exact)
        self.compare()

    def action_reload(self) -> None:
        self.compare()

    def action_merge(self) -> None:
        """The recommended merge; the plain form where there is none."""
        advice = self.state.found.advice if self.state.found else None
        given = {"method": advice.method, "weights": advice.weights} if advice else None
        self.the_app.visit("merge", names=self._names, given=given)

    def action_evaluations(self) -> None:
        self.the_app.visit("evaluations", names=self._names)

    def on_heat_map_moved(self, event: HeatMap.Moved) -> None:
        self.state = replace(self.state, row=event.row, column=event.column)

    # What the hub says

    @work(exclusive=True, group="compare")
    async def compare(self) -> None:
        """Compares in a thread, which ends when somebody leaves."""
        exact = self.state.exact
        watched = Watched(self._hear)
        try:
            found = await self.ask(look, self.hub.store, self._names, watched, exact=exact)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            self.state = replace(self.state, problem=Problem.of(error), far=None)
            return
        finally:
            watched.stop()
        self.state = replace(self.state, found=found, problem=None, far=None)

    def _hear(self, far: Far) -> None:
        self.state = replace(self.state, far=far)

    # What is drawn

    def watch_state(self, before: State, state: State) -> None:
        if not self.is_mounted:
            return
        with suppress(NoMatches):
            self._draw(before, state)

    def _draw(self, before: State, state: State) -> None:
        words, frame = self.query_one("#words", Sheet), self.query_one("#map", Vertical)
        heat = self.query_one(HeatMap)
        if state.problem is not None:
            frame.border_title = Content("Not compared")
            words.say(Content.styled(clean(str(state.problem), keep_newlines=True), "$text-error"))
            return
        if state.found is None:
            words.say(Content(str(state.far or "Reading …")))
            return
        if (before.found, before.measure) != (state.found, state.measure):
            heat.show(state.found.columns, state.found.rows(state.measure), state.measure)
            heat.tooltip = None
            self.query_one("#legend", Static).update(
                f"{meaning(state.found, state.measure)}\n{legend(state.measure)}"
            )
        far = f"   {state.far}" if state.far else ""
        frame.border_title = Content(f"{state.measure}  ] next{far}")
        row, column = heat.cursor
        words.show(in_words(state.found, row, column))
