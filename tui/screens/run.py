"""One run of any kind, live: what happened in words, how far it is, what its work writes, and what came of it."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Log, Static

from adapterhub.cli.output import clean
from adapterhub.runs import RunRecord
from adapterhub.tui.hub import Hub
from adapterhub.tui.problem import Problem
from adapterhub.tui.running import look, words
from adapterhub.tui.running.look import MOST_LINES, Look
from adapterhub.tui.running.stopping import stop
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.detail_pane import Sections

LOOK_SECONDS = 0.5


class RunScreen(HubScreen):
    """A run, from its first event to its outcome."""

    ABOUT = (
        "One run: what it is, how far it has come, what happened in words, and what its work writes to its log. It goes on"
        " when this screen is closed. Of a run that has ended it says what came of it, or why it failed in the words of the"
        " command line, with what to type next."
    )
    CHANGES = frozenset({"stop"})
    CSS_PATH = "../styles/jobs.tcss"
    AUTO_FOCUS = "#events"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "logs", "Events/log", id="run.logs", tooltip="What happened, or what its work writes"),
        Binding("o", "result", "Result", id="run.result", tooltip="Show the adapter that came of it; copy the folder's path"),
        Binding("c", "curves", "Curves", id="run.curves", tooltip="The curves of a training"),
        Binding("x", "stop", "Stop", id="run.stop", tooltip="Stop the run; what follows is said first"),
    ]  # fmt: skip

    record: reactive[RunRecord | None] = reactive(None)
    problem: reactive[Problem | None] = reactive(None)

    def __init__(self, hub: Hub, run: str) -> None:
        super().__init__(hub)
        self._run = run
        self._look_at = Look(hub.store, run)
        self._reading = False

    def body(self) -> ComposeResult:
        with VerticalScroll(id="about", classes="panel"):
            yield Sections()
        yield Static(id="instead", classes="panel", markup=False)
        with Horizontal(id="said"):
            yield Log(id="events", classes="panel", max_lines=MOST_LINES)
            yield Log(id="log", classes="panel", max_lines=MOST_LINES)

    def on_mount(self) -> None:
        self.query_one("#instead").display = False
        for selector, title in (
            ("#about", self._run),
            ("#events", "What happened"),
            ("#log", "Log"),
        ):
            self.query_one(selector).border_title = Content(clean(title))
        self._follow()
        self.set_interval(LOOK_SECONDS, self._follow)

    def _follow(self) -> None:
        if not self._reading and (self.record is None or self.is_current):
            self._reading = True
            self.read_new()

    @work(group="look")
    async def read_new(self) -> None:
        """Writes what has come since the last look."""
        try:
            seen = await self.ask(self._look_at.new)
        finally:
            self._reading = False
        self.query_one("#events", Log).write_lines(seen.events)
        self.query_one("#log", Log).write_lines(seen.log)
        if seen.record is not None:
            self.record = seen.record
            if seen.record.state == "running":  # time goes by, also where nothing is told
                self._draw(seen.record)
        self.problem = seen.problem

    def command_line(self) -> str:
        return f"adapterhub logs {self.record.id if self.record else self._run} -f"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        run = self.record
        if action == "stop" and (run is None or run.state != "running"):
            return False
        if action == "result" and (run is None or not (_adapter(run) or _folder(run))):
            return False
        if action == "curves" and (run is None or run.kind != "train"):
            return False
        return super().check_action(action, parameters)

    def action_logs(self) -> None:
        self.toggle_class("-log")
        self.query_one("#log" if self.has_class("-log") else "#events", Log).focus()

    def action_curves(self) -> None:
        if self.record is not None:
            self.the_app.visit("training", runs=(self.record.id,))

    async def action_result(self) -> None:
        if self.record is None:
            return
        if name := _adapter(self.record):
            await self.the_app.go("library", name=name)
        else:
            self.copy(_folder(self.record))

    @work(group="stop")
    async def action_stop(self) -> None:
        if self.record is not None:
            await stop(self, self.record)

    def watch_record(self, before: RunRecord | None, now: RunRecord | None) -> None:
        if now is not None:
            self._draw(now)
            self.refresh_bindings()

    def watch_problem(self, before: Problem | None, now: Problem | None) -> None:
        if not self.is_mounted:
            return
        instead = self.query_one("#instead", Static)
        instead.display = now is not None
        self.query_one("#about").display = now is None
        if now is not None:
            instead.update(clean(now, keep_newlines=True))

    def _draw(self, run: RunRecord) -> None:
        about = self.query_one("#about")
        about.border_title = Content(clean(run.title or run.id))
        about.query_one(Sections).sections = words.about(run, look.now())


def _adapter(run: RunRecord) -> str:
    """The name of the adapter that came of it."""
    made = run.kind in ("merge", "train", "add", "convert") and run.state == "done"
    return str(run.result.get("name") or "") if made else ""


def _folder(run: RunRecord) -> str:
    return str(run.result.get("folder") or "") if run.state == "done" else ""
