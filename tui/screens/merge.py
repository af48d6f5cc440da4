"""Merge: the form of a merge with what it would keep beside it, told while sliders move; then the run itself.

`state` is all there is to know. One worker answers questions about the plan, the latest first in line; another follows the
run.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.css.query import NoMatches
from textual.reactive import reactive
from textual.widgets import Button, Static

from adapterhub.cli.output import clean
from adapterhub.tui.hub import Hub
from adapterhub.tui.merging import reading
from adapterhub.tui.merging.plan import Plan, problems
from adapterhub.tui.merging.reading import Outlook
from adapterhub.tui.merging.words import estimate_in_words
from adapterhub.tui.problem import Problem
from adapterhub.tui.progress import Far, Watched
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.screens.pick import PickScreen
from adapterhub.tui.widgets.form import FormChanged
from adapterhub.tui.widgets.merge_form import PARAMETER, WEIGHT, MergeForm

if TYPE_CHECKING:
    from adapterhub.merge.estimate import Estimate, Estimator
    from adapterhub.runs import RunRecord

_LOOK_SECONDS = 0.3
"""How often the run is asked how far it is."""


@dataclass(frozen=True)
class State:
    """What the screen knows. `outlook` and `estimate` may still be those of an earlier plan: `outlook.plan` says which."""

    plan: Plan
    outlook: Outlook | None = None
    estimate: Estimate | None = None
    estimated: Plan | None = None
    """What `estimate` is of."""
    no_estimate: Problem | None = None
    far: Far | None = None
    run: str | None = None
    running: Far | None = None
    failed: Problem | None = None

    @property
    def problems(self) -> Mapping[str, str]:
        """By field."""
        found = problems(self.plan)
        outlook = self.outlook
        if outlook is not None and outlook.plan == self.plan:
            if outlook.taken is not None:
                found.setdefault("name", outlook.taken.what)
            if outlook.differ is not None:
                found["allow_mismatch"] = f"{outlook.differ.what} {outlook.differ.why}"
        return found


class MergeScreen(HubScreen):
    """Opened with the names of the adapters, and with what is given already."""

    ABOUT = (
        "A merge before it is done: choose how, and see what would be kept of the energy and of each adapter while you"
        " move the sliders. Sums are told exactly; element-wise methods are estimated from a sample of rows. The line at"
        " the bottom is what you would type. ctrl+r merges; the result is then selected in the library."
    )
    CHANGES = frozenset({"run"})
    AUTO_FOCUS = "Choice"
    CSS_PATH = "../styles/merge.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "run", "Merge", id="merge.run", tooltip="Run the merge"),
        Binding("a", "add", "Add", id="merge.add", tooltip="Take another adapter in"),
        Binding("d", "remove", "Remove", id="merge.remove", tooltip="Take the adapter under the cursor out"),
        Binding("shift+up,K", "shift(-1)", "Up", show=False, id="merge.up", tooltip="Move the adapter up: where the order counts"),
        Binding("shift+down,J", "shift(1)", "Down", show=False, id="merge.down", tooltip="Move the adapter down"),
        Binding("c", "compare", "Compare", show=False, id="merge.compare", tooltip="Compare these adapters"),
        Binding("x", "stop", "Stop", id="merge.stop", tooltip="Stop the merge; the store stays as it was"),
    ]  # fmt: skip

    state: reactive[State] = reactive(State(Plan(())), init=False)

    def __init__(
        self, hub: Hub, names: Sequence[str], given: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(hub)
        self.set_reactive(
            MergeScreen.state, State(Plan.of(list(dict.fromkeys(names)), dict(given or {})))
        )
        self._estimator: Estimator | None = None
        self._prepared: frozenset[str] = frozenset()
        self._asked: Plan | None = None
        self._answering = False

    def body(self) -> ComposeResult:
        with Container(id="merging"):
            yield MergeForm(self.state.plan)
            with Vertical(id="beside"):
                with VerticalScroll(id="estimate", classes="panel") as frame:
                    frame.border_title = Content("What it keeps")
                    yield Static(id="stops", classes="problem", markup=False)
                    yield Static(id="kept", markup=False)
                    yield Static(id="remarks", markup=False)
                with Vertical(id="line", classes="panel") as frame:
                    frame.border_title = Content("The same on the command line")
                    yield Static(id="words", markup=False)
        yield Static(id="running", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self._draw()
        self._ask_again()

    def command_line(self) -> str:
        return shlex.join(["adapterhub", *self.state.plan.words()])

    # What the user does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.state.run is not None
        if action == "run" and self.state.run is not None:
            return False
        return super().check_action(action, parameters)

    def on_form_changed(self, event: FormChanged) -> None:
        event.stop()
        plan, field, value = self.state.plan, event.field, event.value
        if field.startswith(WEIGHT):
            plan = plan.with_weight(field.removeprefix(WEIGHT), value)
        elif field.startswith(PARAMETER):
            name = field.removeprefix(PARAMETER)
            plan = plan.with_parameter(name, _typed(value))
        elif field == "method":
            plan = plan.with_method(value)
        else:
            given: dict[str, Any] = {field: value.strip() if isinstance(value, str) else value}
            plan = replace(plan, **given)
        self._plan(plan)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.action_run()

    @work(exclusive=True, group="pick")
    async def action_add(self) -> None:
        known = await self.ask(reading.all_names, self.hub.store)
        mine = set(self.state.plan.names)
        rest = [name for name in known if name not in mine]
        found = await self.app.push_screen_wait(
            PickScreen("Take in which adapter?", rest, "All of them are in it already.")
        )
        if found is not None:
            self._plan(self.state.plan.with_names([*self.state.plan.names, found]))

    def action_remove(self) -> None:
        form, names = self.query_one(MergeForm), self.state.plan.names
        name = form.adapter
        if name is None:
            self.notify("Go to the adapter that is to be taken out first.", markup=False)
        elif len(names) > 1:
            rest = [one for one in names if one != name]
            self._plan(self.state.plan.with_names(rest))
            self.call_after_refresh(form.focus_adapter, rest[min(names.index(name), len(rest) - 1)])

    def action_shift(self, steps: int) -> None:
        form = self.query_one(MergeForm)
        name = form.adapter
        if name is not None:
            self._plan(self.state.plan.moved(name, steps))
            self.call_after_refresh(form.focus_adapter, name)

    def action_compare(self) -> None:
        if len(self.state.plan.names) > 1:
            self.the_app.visit("compare", names=self.state.plan.names)

    @work(exclusive=True, group="run")
    async def action_run(self) -> None:
        """Starts the merge, unless something is wrong with it."""
        if self.hub.readonly or self.state.run is not None:
            return
        plan = self.state.plan
        self.state = replace(self.state, failed=None)
        if told := next(iter(problems(plan).values()), ""):  # nothing to ask the store for
            self.notify(told, title="Not merged", severity="error", markup=False)
            return
        found = await self.ask(reading.outlook, self.hub.store, plan)
        self.state = replace(self.state, outlook=found)
        wrong = next(iter(self.state.problems.values()), "") or found.problem
        if wrong:
            self.notify(str(wrong), title="Not merged", severity="error", markup=False)
            return
        try:
            run = await self.the_app.start(plan.words(), title=f"Merge into {found.name}")
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever can't be started
            self.refuse(error, "Not merged")
            return
        self.state = replace(self.state, run=run, running=Far("Starting"))
        self.refresh_bindings()
        self.follow(run)

    @work(exclusive=True, group="stop")
    async def action_stop(self) -> None:
        if self.state.run is not None:
            try:
                await self.ask(reading.stop, self.hub.store, self.state.run)
            except Exception as error:  # noqa: BLE001 - it may have ended just now
                self.refuse(error, "Not stopped")

    def _plan(self, plan: Plan) -> None:
        if plan != self.state.plan:
            self.state = replace(self.state, plan=plan, failed=None)
            self._ask_again()

    # The run

    @work(exclusive=True, group="follow")
    async def follow(self, run: str) -> None:
        """Says how far the run is, until it ends."""
        while self.state.run == run:
            try:
                record = await self.ask(reading.progress_of, self.hub.store, run)
            except Exception:  # noqa: BLE001 - it is asked again; its end is told by the application
                record = None
            if record is not None and record.progress is not None and self.state.run == run:
                far = Far(record.progress.what, record.progress.done, record.progress.total)
                self.state = replace(self.state, running=far)
            await asyncio.sleep(_LOOK_SECONDS)

    def job_ended(self, record: RunRecord) -> None:
        if record.id != self.state.run:
            return
        self.state = replace(self.state, run=None, running=None, failed=_failure(record))
        self.refresh_bindings()
        self._ask_again()
        name = record.result.get("name")
        if record.state == "done" and isinstance(name, str) and self.is_current:
            # Not within this screen, which can't wait for its own end.
            self.app.call_later(self.the_app.go, "library", name=name)

    # What the hub says

    def changed(self) -> None:
        self._ask_again()

    def _ask_again(self) -> None:
        self._asked = self.state.plan
        if not self._answering:
            self._answering = True
            self.answer()

    @work(group="answers")
    async def answer(self) -> None:
        """Answers the latest question, as long as there is another. One at a time: sliders move faster than answers come."""
        try:
            while (plan := self._asked) is not None:
                self._asked = None
                await self._answer(plan)
        finally:
            self._answering = False

    async def _answer(self, plan: Plan) -> None:
        wrong = problems(plan)
        if wrong:
            self.state = replace(self.state, outlook=None, estimate=None, no_estimate=None)
            return
        watched = Watched(self._hear)
        try:
            found = await self.ask(reading.outlook, self.hub.store, plan)
            self.state = replace(self.state, outlook=found)
            if found.problem is not None:
                self.state = replace(self.state, estimate=None, no_estimate=found.problem)
                return
            if self._estimator is None or self._prepared != reading.digests(found.parents):
                self._estimator = None
                self._estimator = await self.ask(
                    reading.prepare, self.hub.store, found.parents, watched
                )
                self._prepared = reading.digests(found.parents)
            estimate = await self.ask(reading.ask, self.hub.store, self._estimator, plan, watched)
            self.state = replace(
                self.state, estimate=estimate, estimated=plan, no_estimate=None, far=None
            )
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            self.state = replace(self.state, estimate=None, no_estimate=Problem.of(error), far=None)
        finally:
            watched.stop()

    def _hear(self, far: Far) -> None:
        self.state = replace(self.state, far=far)

    # What is drawn

    def watch_state(self) -> None:
        if self.is_mounted:
            with suppress(NoMatches):
                self._draw()

    def _draw(self) -> None:
        state = self.state
        form = self.query_one(MergeForm)
        wrong = state.problems
        form.show(state.plan, wrong)
        outlook = state.outlook
        form.expect(
            outlook.name if outlook is not None and outlook.names(state.plan) else "",
            taken=outlook is not None and outlook.taken is not None,
            differ=outlook is not None and outlook.differ is not None,
        )
        kept = self.query_one("#kept", Static)
        kept.update(self._kept(max(20, self.query_one("#estimate").content_size.width)))
        kept.set_class(state.estimate is not None and state.estimated != state.plan, "-old")
        # What is wrong with the plan itself stands in place of the estimate already.
        asked = outlook is not None and not problems(state.plan)
        stops = list(wrong.values()) if asked else []
        self._say("#stops", [f"! {clean(text)}" for text in stops])
        self._say("#remarks", [f"! {clean(text)}" for text in outlook.remarks] if outlook else [])
        self.query_one("#words", Static).update(Content(clean(self.command_line())))
        running = self.query_one("#running", Static)
        running.display = state.running is not None
        if state.running is not None:
            running.update(Content.assemble((f" {state.running}", "bold"), "   x stops it"))

    def _say(self, where: str, lines: Sequence[str]) -> None:
        """Lines that take no room where there are none."""
        static = self.query_one(where, Static)
        static.display = bool(lines)
        static.update(Content("\n".join(lines)))

    def _kept(self, width: int) -> Content:
        state = self.state
        if state.failed is not None:
            return Content.styled(clean(str(state.failed), keep_newlines=True), "$text-error")
        if state.estimate is not None and state.outlook is not None:
            labels = [one.label for one in state.outlook.parents]
            if len(labels) == len(state.estimate.retained):
                return estimate_in_words(state.estimate, labels, width)
        if state.far is not None:
            return Content(str(state.far))
        if state.no_estimate is not None:
            told = clean(str(state.no_estimate), keep_newlines=True)
            return Content.assemble(("No estimate.\n", "bold"), told)
        wrong = next(iter(problems(state.plan).values()), "")
        return Content(wrong or "Reading …")


def _failure(record: RunRecord) -> Problem | None:
    """Why a run didn't end well."""
    if record.state == "done":
        return None
    if record.state == "interrupted":
        return Problem("Stopped. The store is as it was.")
    told = record.error or {}
    what, why, hint = (str(told.get(part) or "") for part in ("what", "why", "hint"))
    return Problem(what or "The merge's process ended without a word.", why, hint)


def _typed(value: Any) -> Any:
    """A number that was typed, as one; what isn't one stays as it is, and is refused in words."""
    if not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return value
