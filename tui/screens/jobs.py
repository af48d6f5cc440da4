"""The Jobs place: every run of this store, live, wherever it was started.

`state` is all there is to know; whatever happens makes a new one, and `watch_state` draws the difference.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from adapterhub.runs import runs_stamp
from adapterhub.tui.problem import Problem
from adapterhub.tui.running import look, words
from adapterhub.tui.running.state import Jobs
from adapterhub.tui.running.stopping import stop
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.line_table import LineTable

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord

TICK_SECONDS = 1.0


class JobsScreen(HubScreen):
    """All runs, newest first."""

    PLACE = "jobs"
    ABOUT = (
        "Every training, merge, export and server of this store: those that run, with how far they are, and those"
        " that have ended, with what came of them. It doesn't matter where they were started, and nothing that is closed here"
        " ends them. Enter opens one; trainings open with their curves, and those that are marked are drawn over each other."
    )
    CHANGES = frozenset({"stop"})
    CSS_PATH = "../styles/jobs.tcss"
    AUTO_FOCUS = "LineTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "logs", "Log", id="jobs.logs", tooltip="What it said, in words, and its log"),
        Binding("space", "mark", "Mark", id="jobs.mark", tooltip="Mark a run; marked trainings are shown together"),
        Binding("v", "view", "Running/all", id="jobs.view", tooltip="Only those that run, or all"),
        Binding("x", "stop", "Stop", id="jobs.stop", tooltip="Stop the run; what follows is said first"),
        Binding("r", "reload", "Reload", show=False, id="jobs.reload", tooltip="Read the runs again"),
    ]  # fmt: skip

    state: reactive[Jobs] = reactive(Jobs())

    def body(self) -> ComposeResult:
        with Horizontal(id="jobs"):
            yield LineTable("Jobs", words.COLUMNS, id="runs")
            yield Static(id="instead", classes="panel", markup=False)
            with VerticalScroll(id="about", classes="panel"):
                yield Sections()

    def on_mount(self) -> None:
        self.query_one("#about").border_title = Content("Run")
        self.query_one("#instead").border_title = Content("Jobs")
        self.reload()
        self.set_interval(TICK_SECONDS, self._tick)

    # What the hub says

    def stamp(self) -> object:
        return runs_stamp(self.hub.store.runs_dir)

    def changed(self) -> None:
        self.reload()

    def job_ended(self, record: RunRecord) -> None:
        self.reload()

    @work(exclusive=True, group="runs")
    async def reload(self) -> None:
        try:
            runs = await self.ask(look.runs_of, self.hub.store)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            self.state = replace(self.state, problem=Problem.of(error), loaded=True)
            return
        self.state = self.state.read(runs)

    def arrive(self, **given: object) -> None:
        if isinstance(run := given.get("run"), str):
            self.state = replace(self.state, selected=run, only_running=False)

    def _tick(self) -> None:
        """Time goes by, also where a run says nothing."""
        if self.state.running and self.is_current:
            self._draw(self.state)

    # What the user does

    def command_line(self) -> str:
        return "adapterhub ps" if self.state.only_running else "adapterhub ps --all"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        current = self.state.current
        if action in ("mark", "logs") and current is None:
            return False
        if action == "stop" and (current is None or current.state != "running"):
            return False
        return super().check_action(action, parameters)

    def on_line_table_moved(self, event: LineTable.Moved) -> None:
        event.stop()
        if event.key != self.state.selected:
            self.state = replace(self.state, selected=event.key)

    def on_line_table_opened(self, event: LineTable.Opened) -> None:
        event.stop()
        self.open_run()

    def open_run(self) -> None:
        """Opens the run under the cursor; a training with its curves, and with those that are marked."""
        run = self.state.current
        if run is None:
            return
        if run.kind == "train":
            self.the_app.visit("training", runs=self.state.trainings(run))
        else:
            self.the_app.visit("run", run=run.id)

    def action_logs(self) -> None:
        if run := self.state.current:
            self.the_app.visit("run", run=run.id)

    def action_mark(self) -> None:
        if run := self.state.current:
            self.state = self.state.mark(run.id)
            self.query_one(LineTable).action_cursor_down()

    def action_view(self) -> None:
        self.state = replace(self.state, only_running=not self.state.only_running)

    def action_reload(self) -> None:
        self.reload()

    @work(group="stop")
    async def action_stop(self) -> None:
        if run := self.state.current:
            await stop(self, run)
            self.reload()

    # How it is drawn

    def watch_state(self, before: Jobs, now: Jobs) -> None:
        if self.is_mounted:
            self._draw(now)

    def _draw(self, state: Jobs) -> None:
        now = look.now()
        listed = state.visible
        table, instead = self.query_one(LineTable), self.query_one("#instead", Static)
        lost_focus = not table.display and bool(listed)
        table.display, instead.display = bool(listed), not listed
        self.query_one("#about").display = bool(listed)
        table.border_subtitle = Content(words.count(state))
        if listed:
            table.show([words.line_of(run, state, now) for run in listed], state.selected)
        else:
            instead.update(self._instead(state))
        if listed and (lost_focus or self.focused is None):
            self.call_after_refresh(table.focus)
        if state.current is not None:
            self.query_one("#about Sections", Sections).sections = words.about(state.current, now)
        self.refresh_bindings()

    @staticmethod
    def _instead(state: Jobs) -> str:
        if state.problem is not None:
            return str(state.problem)
        if not state.loaded:
            return "reading …"
        return words.NOTHING_RUNS if state.runs else words.NOTHING
