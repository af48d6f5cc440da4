"""Export: adapters baked into their base as a model of its own. Asked for in a form, written as a run, checked at the end."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.css.query import NoMatches
from textual.reactive import reactive
from textual.timer import Timer
from textual.widgets import Static

from adapterhub.cli.output import clean
from adapterhub.export.options import QUANTISED, VIEWS
from adapterhub.merge.specs import methods
from adapterhub.runs import RunRecord
from adapterhub.tui.exporting.model import PLAIN, State, Wanted, first_folder
from adapterhub.tui.exporting.reading import Watch, look, result_of
from adapterhub.tui.exporting.words import sections
from adapterhub.tui.hub import Hub
from adapterhub.tui.problem import Problem
from adapterhub.tui.running.stopping import stop
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.form import Choice, Form, FormChanged, FormRow, Text, Toggle
from adapterhub.tui.widgets.sheet import Sheet

LOOK_SECONDS = 0.5
_PAUSE = 0.2
"""After a key, before the hub is asked."""
_VERIFY = [
    ("weights; logits up to 1B", "sized"),
    ("every row and the logits", "all"),
    ("nothing", "none"),
]


class ExportScreen(HubScreen):
    """Opened with the names of the adapters; several are merged on the way, untruncated."""

    ABOUT = (
        "Writes base + adapter as a full model, at the speed of the disk. The right side says what would be written and"
        " whether there is room; the last line is the command that does the same. What is written is read again and"
        " compared before it gets its name. An export that was stopped keeps its finished shards: resume goes on with them."
    )
    CHANGES = frozenset({"export", "stop"})
    CSS_PATH = "../styles/export.tcss"
    AUTO_FOCUS = "#folder"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "export", "Export", id="export.start", tooltip="Write the model, as a run that outlives this screen"),
        Binding("x", "stop", "Stop", id="export.stop", tooltip="Stop the export; finished shards are kept"),
        Binding("l", "logs", "Log", id="export.logs", tooltip="The run with its events and its log"),
    ]  # fmt: skip

    state: reactive[State] = reactive(State(Wanted(())), init=False)

    def __init__(self, hub: Hub, names: Sequence[str]) -> None:
        super().__init__(hub)
        names = tuple(names)
        self.set_reactive(ExportScreen.state, State(Wanted(names, first_folder(names))))
        self._watch: Watch | None = None
        self._timer: Timer | None = None

    def body(self) -> ComposeResult:
        wanted = self.state.wanted
        with Container(id="exporting"):
            with Form(classes="panel") as form:
                form.border_title = Content(f"Export {', '.join(map(clean, wanted.names))}")
                yield FormRow("folder", Text(wanted.folder, name="folder", id="folder"))
                yield FormRow("base", Text(name="base", placeholder="the adapters' own"))
                yield FormRow(
                    "base view", Choice([(v, v) for v in VIEWS], wanted.view, name="view")
                )
                quantised = [(one, one) for one in (PLAIN, *QUANTISED)]
                yield FormRow("quantise", Choice(quantised, wanted.quantize, name="quantize"))
                yield FormRow(
                    "calibration",
                    Text(name="calibration", placeholder="rows.jsonl"),
                    id="calibration",
                )
                if wanted.merges:
                    known = [(spec.title, name) for name, spec in methods().items()]
                    yield FormRow("method", Choice(known, wanted.method, name="method"))
                    yield FormRow("weights", Text(name="weights", placeholder="0.7,0.3"))
                yield FormRow("verify", Choice(_VERIFY, wanted.verify, name="verify"))
                yield FormRow("overwrite", Toggle(False, name="overwrite"))
                yield FormRow("resume", Toggle(False, name="resume"))
            yield Sheet("found")
        yield Static(id="line", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#found", Sheet).border_title = Content("What is written")
        self._draw(self.state)
        self.estimate()

    def command_line(self) -> str:
        return shlex.join(["adapterhub", *self.state.wanted.words()])

    # What the user does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is one export at a time, and nothing to stop or look at before."""
        if action == "export" and self.state.running:
            return False
        if action == "stop" and not self.state.running:
            return False
        if action == "logs" and self.state.run is None:
            return False
        return super().check_action(action, parameters)

    def on_form_changed(self, event: FormChanged) -> None:
        event.stop()
        wanted = replace(self.state.wanted, **{event.field: event.value})
        if wanted == self.state.wanted or self.state.running:
            return
        # What was exported before is no longer what the form says.
        self.state = State(wanted, self.state.estimate)
        self.estimate()

    def action_logs(self) -> None:
        if self.state.run is not None:
            self.the_app.visit("run", run=self.state.run.id)

    @work(exclusive=True, group="export")
    async def action_export(self) -> None:
        wanted = self.state.wanted
        try:
            await self.ask(look, self.hub.store, wanted)
            names = " + ".join(wanted.names)
            run = await self.the_app.start(wanted.words(), title=f"Export {names}")
        except Exception as error:  # noqa: BLE001 - said in the command line's words
            self.state = replace(self.state, problem=Problem.of(error))
            self.refuse(error, "Not exported")
            return
        self._watch = Watch(self.hub.store, run)
        self.query_one("#found").focus()  # a field would take x and l for letters
        self.follow()
        self._timer = self.set_interval(LOOK_SECONDS, self.follow)

    @work(group="stop")
    async def action_stop(self) -> None:
        if self.state.run is not None:
            await stop(self, self.state.run)

    # What the hub says

    @work(exclusive=True, group="estimate")
    async def estimate(self) -> None:
        """Asks what would be written; typing goes on meanwhile, and the last question is the one that counts."""
        import asyncio

        await asyncio.sleep(_PAUSE)
        wanted = self.state.wanted
        try:
            found = await self.ask(look, self.hub.store, wanted)
        except Exception as error:  # noqa: BLE001 - said beside the form
            self.state = replace(self.state, estimate=None, problem=Problem.of(error))
            return
        self.state = replace(self.state, estimate=found, problem=None)

    @work(exclusive=True, group="follow")
    async def follow(self) -> None:
        """Looks how far the run is."""
        if self._watch is None:
            return
        try:
            record, speed, left = await self.ask(self._watch.look)
            result = await self.ask(result_of, record) if record.state == "done" else {}
        except Exception:  # noqa: BLE001 - looked at again in a moment
            return
        if record.state != "running" and self._timer is not None:
            self._timer.stop()
        self.state = replace(self.state, run=record, speed=speed, left=left, result=result)
        self.refresh_bindings()

    def job_ended(self, record: RunRecord) -> None:
        if self.state.run is not None and record.id == self.state.run.id:
            self.follow()

    # What is drawn

    def watch_state(self, state: State) -> None:
        with suppress(NoMatches):  # the screen is being left
            self._draw(state)

    def _draw(self, state: State) -> None:
        self.query_one("#line", Static).update(clean(self.command_line()))
        self.query_one("#calibration").set_class(not state.wanted.calibrates, "-absent")
        self.query_one("#found", Sheet).show(sections(state))
