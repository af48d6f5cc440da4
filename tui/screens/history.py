"""The History place: every change of the store, newest first, and the way back.

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
from textual.widgets import Input, Static

from adapterhub.store.history import past
from adapterhub.tui.past import words
from adapterhub.tui.past.state import Past
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.undoing import undo
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.line_table import LineTable

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord


class HistoryScreen(HubScreen):
    """The journal."""

    PLACE = "history"
    ABOUT = (
        "Every change of a name, and every collection: who did what when, newest first. u takes back what was done last, after"
        " saying what that changes; U takes an undo back. b goes back to the line under the cursor: everything from it on is"
        " taken back, all of it or nothing. Nothing is forgotten: going back is written down as one more change."
    )
    CHANGES = frozenset({"back_to"})
    CSS_PATH = "../styles/history.tcss"
    AUTO_FOCUS = "LineTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="history.filter", tooltip="Only changes of names with these letters, of a kind (tag, merge), or by somebody"),
        Binding("u", "undo", "Undo", id="all.undo", tooltip="Take back what was done last"),
        Binding("U", "redo", "Redo", id="all.redo", tooltip="Take the last undo back"),
        Binding("b", "back_to", "Undo to here", id="history.back_to", tooltip="Take back everything from this line on"),
        Binding("c", "collect", "Garbage", id="history.collect", tooltip="What a collection of garbage would take"),
        Binding("f", "check", "Check", id="history.check", tooltip="Whether the store holds what it recorded"),
        Binding("r", "reload", "Reload", show=False, id="history.reload", tooltip="Read the journal again"),
    ]  # fmt: skip

    state: reactive[Past] = reactive(Past())

    def body(self) -> ComposeResult:
        yield Input(placeholder="Filter by name", id="filter", compact=True)
        with Horizontal(id="history"):
            yield LineTable("History", words.COLUMNS, id="operations")
            yield Static(id="instead", classes="panel", markup=False)
            with VerticalScroll(id="about", classes="panel"):
                yield Sections()

    def on_mount(self) -> None:
        self.query_one("#about").border_title = Content("Operation")
        self.query_one("#instead").border_title = Content("History")
        self.query_one("#filter").display = False
        self.reload()

    # What the hub says

    def changed(self) -> None:
        self.reload()

    def job_ended(self, record: RunRecord) -> None:
        self.reload()

    @work(exclusive=True, group="journal")
    async def reload(self) -> None:
        try:
            operations = await self.ask(past, self.hub.store)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            self.state = replace(self.state, problem=Problem.of(error), loaded=True)
            return
        self.state = self.state.read(operations)

    def arrive(self, **given: object) -> None:
        if isinstance(name := given.get("name"), str):
            self.query_one("#filter", Input).value = name
            self.query_one("#filter").display = True

    # What the user does

    def command_line(self) -> str:
        return "adapterhub log" + (f" {self.state.query}" if self.state.query else "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        state = self.state
        if action == "back":
            return bool(state.query) or isinstance(self.focused, Input)
        if action == "redo" and not state.can_redo:
            return False
        if action in ("undo", "back_to") and state.current is None:
            return False
        return super().check_action(action, parameters)

    def on_line_table_moved(self, event: LineTable.Moved) -> None:
        event.stop()
        if int(event.key) != self.state.selected:
            self.state = replace(self.state, selected=int(event.key))

    def on_line_table_opened(self, event: LineTable.Opened) -> None:
        event.stop()
        self.query_one("#about").focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.state = self.state.find(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.query_one(LineTable).focus()

    def action_filter(self) -> None:
        self.query_one("#filter").display = True
        self.query_one("#filter").focus()

    def action_back(self) -> None:
        """All of them again."""
        self.query_one("#filter", Input).value = ""
        self.state = self.state.find("")  # at once, so that the table is there to be focused
        self.query_one("#filter").display = False
        self.query_one(LineTable).focus()

    def action_reload(self) -> None:
        self.reload()

    def action_collect(self) -> None:
        self.the_app.visit("gc")

    def action_check(self) -> None:
        self.the_app.visit("fsck")

    @work(group="undo")
    async def action_back_to(self) -> None:
        await undo(self, self.state.selected + 1)

    # How it is drawn

    def watch_state(self, before: Past, now: Past) -> None:
        if not self.is_mounted:
            return
        table, instead = self.query_one(LineTable), self.query_one("#instead", Static)
        listed = now.visible
        lost_focus = not table.display and bool(listed) and not isinstance(self.focused, Input)
        table.display, instead.display = bool(listed), not listed
        self.query_one("#about").display = bool(listed)
        table.border_subtitle = Content(words.count(now))
        if (before.operations, before.query) != (now.operations, now.query) or not before.loaded:
            table.show([words.line_of(*line) for line in listed], str(now.selected))
        if listed and (lost_focus or self.focused is None):
            self.call_after_refresh(table.focus)
        if not listed:
            instead.update(self._instead(now))
        elif now.current is not None:
            self.query_one("#about Sections", Sections).sections = words.about(
                now.current, now.selected, readonly=self.hub.readonly
            )
        self.refresh_bindings()

    @staticmethod
    def _instead(state: Past) -> str:
        if state.problem is not None:
            return str(state.problem)
        if not state.loaded:
            return "reading …"
        return (
            words.NOTHING
            if not state.operations
            else f"Nothing of {state.query}.\n\nesc shows all."
        )
