"""Training: the curves of one or several runs, live or as they were, and everything that was measured.

The events of the runs are all it reads, so a training that runs, one that is done and one that somebody killed look the
same. They are followed in a thread, about once a second; the curves are made there too.
"""

from __future__ import annotations

import shlex
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static, TabbedContent, TabPane

from adapterhub.tui.hub import Hub
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.screens.pick import PickScreen
from adapterhub.tui.trainings import model, words
from adapterhub.tui.trainings.model import AXES, METRICS, SMALL, Axis, Curve, Watched
from adapterhub.tui.trainings.reading import follow, others
from adapterhub.tui.widgets.curve_chart import CurveChart
from adapterhub.tui.widgets.sheet import Sheet

_PANES = {"now": "Now", "samples": "Samples", "findings": "Findings", "recipe": "Recipe"}


class TrainingScreen(HubScreen):
    """Opens on top of Train, Jobs, or wherever a training was chosen."""

    CSS_PATH = "../styles/training.tcss"
    AUTO_FOCUS = "#plot"
    CHANGES = frozenset({"stop", "resume"})
    ABOUT = (
        "The loss of every step, with the scores of the held-out rows as marks on it; v shows other measurements, o puts "
        "tokens or time on the axis, w smooths. Several runs lie over each other, each with its letter; a adds one. x stops a training "
        "after the step it is in and keeps a checkpoint, R goes on from there. Closing this screen changes nothing."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "stop", "Stop", id="training.stop", tooltip="Stop the training; it can be resumed"),
        Binding("R", "resume", "Resume", id="training.resume", tooltip="Go on from the newest checkpoint"),
        Binding("enter", "adapter", "Adapter", id="training.adapter", tooltip="Show the result in the library"),
        Binding("v", "metric(1)", "View", id="training.view", tooltip="The next measurement: loss, learning rate ..."),
        Binding("V", "metric(-1)", "", show=False, id="training.view_back", tooltip="The measurement before"),
        Binding("o", "axis", "Axis", id="training.axis", tooltip="Over steps, tokens or time"),
        Binding("w", "smooth", "Smooth", id="training.smooth", tooltip="Smoothed curves, or every step as it was"),
        Binding("a", "add", "Add", show=False, id="training.add", tooltip="Lay another training over it"),
        Binding("n", "current(1)", "Next run", id="training.next", tooltip="The next of several runs"),
        Binding("N", "current(-1)", "", show=False, id="training.previous", tooltip="The run before"),
        Binding("l", "log", "Log", show=False, id="training.log", tooltip="The run's events and log"),
        *(
            Binding(f"f{number}", f"pane('{pane}')", title, show=False, id=f"training.{pane}", tooltip=f"{title}, beside the plot")
            for number, (pane, title) in enumerate(_PANES.items(), 2)
        ),
    ]  # fmt: skip

    watched: reactive[tuple[Watched, ...]] = reactive(())
    current: reactive[int] = reactive(0)
    metric: reactive[int] = reactive(0)
    axis: reactive[Axis] = reactive("steps")
    smooth: reactive[bool] = reactive(False)
    cursor: reactive[float | None] = reactive(None)
    stopping: reactive[frozenset[str]] = reactive(frozenset())
    """Runs that were asked to stop from here."""

    def __init__(self, hub: Hub, runs: tuple[str, ...]) -> None:
        super().__init__(hub)
        self._following = follow(hub.store.runs_dir, tuple(runs))
        self._found: tuple[Watched, ...] = ()

    def body(self) -> ComposeResult:
        yield Static("", id="runs")
        with Container(id="training"):
            with Container(id="plots"):
                yield CurveChart("plot")
                yield Static("", id="readout")
                with Horizontal(id="small"):
                    for key in SMALL:
                        yield CurveChart(key, small=True)
            with TabbedContent(id="panes"):
                for pane, title in _PANES.items():
                    with TabPane(title, id=pane):
                        yield Sheet(f"{pane}-sheet")

    def on_mount(self) -> None:
        super().on_mount()
        self.call_after_refresh(self._look)

    # What is known

    def stamp(self) -> object:
        """Follows the events; each look gives the same object where nothing has happened."""
        self._found = tuple(one.look() for one in self._following)
        return tuple(map(id, self._found))

    def changed(self) -> None:
        self.watched = self._found

    @property
    def one(self) -> Watched | None:
        """The run that keys and panes are about."""
        return self.watched[min(self.current, len(self.watched) - 1)] if self.watched else None

    def command_line(self) -> str:
        one = self.one
        if one is None:
            return ""
        if one.runs:
            return f"adapterhub logs {one.run} -f"
        return f"adapterhub doctor {shlex.quote(one.run)}"

    # Drawing

    def watch_watched(self) -> None:
        self.refresh_bindings()
        self._tell()
        self.draw_curves()

    def watch_current(self) -> None:
        self.refresh_bindings()
        self._tell()
        self.draw_curves()

    def watch_metric(self) -> None:
        self.draw_curves()

    def watch_axis(self) -> None:
        if self.is_mounted:
            self.query_one("#plot", CurveChart).cursor = None
        self.draw_curves()

    def watch_smooth(self) -> None:
        self.draw_curves()

    def watch_stopping(self) -> None:
        self._tell()

    def watch_cursor(self) -> None:
        self._tell()

    def on_curve_chart_pointed(self, event: CurveChart.Pointed) -> None:
        self.cursor = event.x

    @work(exclusive=True, group="draw")
    async def draw_curves(self) -> None:
        """Makes the curves in a thread, as a training may have many thousand steps, and draws them."""
        watched, axis, metric = self.watched, self.axis, METRICS[self.metric]
        if not watched:
            return
        wanted = [metric, *(one for one in METRICS if one.key in SMALL)]
        current = min(self.current, len(watched) - 1)
        made = await self.ask(_make, watched, current, wanted, axis, self.smooth)
        right = model.end_of(watched, axis)

        def say_x(x: float) -> str:
            return words.on_axis(axis, x)

        for one, found in zip(wanted, made, strict=True):
            chart = self.query_one(
                "#plot" if one is metric and found is made[0] else f"#{one.key}", CurveChart
            )
            how = f" over {axis}{', smoothed' if self.smooth else ''}" if chart.id == "plot" else ""
            chart.show(f"{one.title}{how}", found, right, say_x, one.say)

    def _tell(self) -> None:
        """Everything that is said of the runs, beside the curves."""
        one, watched = self.one, self.watched
        if one is None:
            return
        several = len(watched) > 1
        lines = [
            words.headline(run, stopping=run.run in self.stopping, several=several)
            for run in watched
        ]
        if several:
            lines = [
                Content("▸ " if run is one else "  ") + line
                for run, line in zip(watched, lines, strict=True)
            ]
        self.query_one("#runs", Static).update(Content("\n").join(lines))
        cursor, history = self.cursor, one.history
        step = model.nearest(history, cursor, self.axis) if cursor is not None else None
        self.query_one("#readout", Static).update(
            words.readout(watched, cursor, self.axis) if cursor is not None else ""
        )
        self.query_one("#now-sheet", Sheet).show(words.now(one, step))
        self.query_one("#samples-sheet", Sheet).show(words.samples(history))
        self.query_one("#findings-sheet", Sheet).show(words.findings(one))
        self.query_one("#recipe-sheet", Sheet).show(words.recipe(history))
        tabs = self.query_one("#panes", TabbedContent)
        tabs.get_tab("findings").label = Content(f"Findings {len(one.findings) or ''}".strip())
        tabs.get_tab("samples").label = Content(f"Samples {len(history.samples) or ''}".strip())

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        one = self.one
        if action == "stop" and not (one and one.runs):
            return False
        if action == "resume" and not (one and one.resumes):
            return False
        if action == "adapter" and not (one and one.history.result):
            return False
        if action == "current" and len(self.watched) < 2:
            return False
        return super().check_action(action, parameters)

    def action_metric(self, by: int) -> None:
        self.metric = (self.metric + by) % len(METRICS)

    def action_axis(self) -> None:
        self.axis = AXES[(AXES.index(self.axis) + 1) % len(AXES)]

    def action_smooth(self) -> None:
        self.smooth = not self.smooth

    def action_current(self, by: int) -> None:
        self.current = (self.current + by) % len(self.watched)

    def action_pane(self, pane: str) -> None:
        """Reads a pane; from there, back to the plot."""
        sheet = self.query_one(f"#{pane}-sheet")
        if sheet.has_focus:
            self.query_one("#plot").focus()
        else:
            self.query_one("#panes", TabbedContent).active = pane
            self.call_after_refresh(sheet.focus)

    @work(exclusive=True, group="add")
    async def action_add(self) -> None:
        """Lays another training over those that are shown."""
        shown = {one.run for one in self.watched}
        found = await self.ask(others, self.hub.store, shown)
        dialog = PickScreen("Lay over it", list(found), "No other training is recorded here.")
        picked = await self.app.push_screen_wait(dialog)
        if picked is not None:
            more = follow(self.hub.store.runs_dir, (found[picked],), len(self._following))
            self._following = (*self._following, *more)
            self._look()

    def action_log(self) -> None:
        if self.one is not None:
            self.the_app.visit("run", run=self.one.run)

    async def action_adapter(self) -> None:
        if self.one is not None and self.one.history.result:
            await self.the_app.go("library", name=self.one.history.result)

    @work(exclusive=True, group="stop")
    async def action_stop(self) -> None:
        """Asks, and tells the training to stop after its step; a second time, at once."""
        from adapterhub.jobs import stop

        one = self.one
        if one is None or one.record is None:
            return
        again = one.run in self.stopping
        question = f"Stop {one.name} at once?" if again else f"Stop training {one.name}?"
        if await self.confirm(
            question, words.stopping(one, again=again), f"adapterhub stop {one.run}", yes="Stop"
        ):
            try:
                await self.ask(stop, one.record)
            except Exception as error:  # noqa: BLE001 - it may have ended while the question stood there
                self.refuse(error, "Not stopped")
            else:
                self.stopping |= {one.run}

    @work(exclusive=True, group="resume")
    async def action_resume(self) -> None:
        """Goes on with the run; its events go on in the same place."""
        from adapterhub.trainer.resuming import resumption

        one = self.one
        if one is None:
            return
        command = one.record.command if one.record else ()
        try:
            found = await self.ask(resumption, self.hub.store.runs_dir / one.run, command)
            await self.the_app.start(found.words, title=f"Train {one.name}, from step {found.step}")
        except Exception as error:  # noqa: BLE001 - no checkpoint, or what it needs is gone: said in words
            self.refuse(error, "Not resumed")
            return
        self.stopping -= {one.run}
        text = "\n".join([f"Going on after step {found.step}.", *found.remarks])
        self.notify(
            text,
            title=one.name,
            severity="warning" if found.remarks else "information",
            markup=False,
        )


def _make(
    watched: tuple[Watched, ...], current: int, wanted: list[model.Metric], axis: Axis, smooth: bool
) -> list[tuple[Curve, ...]]:
    return [model.curves(watched, current, one, axis, smooth) for one in wanted]
