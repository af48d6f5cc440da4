"""The library: the list of adapters, the filter above it and everything known about one of them beside it.

`state` is all there is to know; whatever happens makes a new `Library`, and `watch_state` draws the difference. The store
is read in threads; a result that comes after a newer question was asked is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container, Horizontal
from textual.reactive import reactive
from textual.screen import Screen
from textual.widgets import Footer, Input, Label, Static

from adapterhub.store import Store
from adapterhub.tui.model import Library, Problem, Row
from adapterhub.tui.reading import Stamp, knowledge_stamp, names_stamp, read_details, read_rows
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.detail_pane import DetailPane
from adapterhub.tui.widgets.filter_bar import FilterBar
from adapterhub.tui.words import count, instead_of_list, show_command

POLL_SECONDS = 1.0

Answer = TypeVar("Answer")


class LibraryScreen(Screen[None]):
    """What the application opens on."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (16, "-high")]
    AUTO_FOCUS = "AdapterTable"
    BINDINGS = [
        Binding(
            "slash",
            "filter",
            "Filter",
            key_display="/",
            id="library.filter",
            tooltip="Type words to narrow the list",
        ),
        Binding(
            "escape",
            "clear_filter",
            "Clear filter",
            show=False,
            id="library.clear_filter",
            tooltip="Show all again",
        ),
        Binding("r", "reload", "Reload", id="library.reload", tooltip="Read the store again"),
        Binding(
            "y",
            "copy_command",
            "Copy",
            id="library.copy",
            tooltip="Copy the command that shows this adapter",
        ),
    ]

    state: reactive[Library] = reactive(Library())

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._names: Stamp = None
        self._known: tuple[str, Stamp] | None = None
        self._settling = False
        self._looking = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="bar"):
            yield Label("adapterhub", id="brand")
            yield FilterBar()
            yield Label(id="count", markup=False)
        with Container(id="body"):
            yield AdapterTable()
            yield Static(id="instead", markup=False)
            yield DetailPane()
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(AdapterTable).border_title = "Adapters"
        self.reload()
        self.set_interval(POLL_SECONDS, self._look)

    # What the user does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing where the user is are not offered."""
        return not (action == "filter" and isinstance(self.focused, FilterBar))

    def on_input_changed(self, event: Input.Changed) -> None:
        self.state = replace(self.state, query=event.value)

    def on_filter_bar_left(self) -> None:
        self.query_one(AdapterTable).focus()

    def on_adapter_table_moved(self, event: AdapterTable.Moved) -> None:
        if self.state.current and self.state.current.name != event.name:
            self.state = replace(self.state, selected=event.name)

    def on_adapter_table_opened(self) -> None:
        self.add_class("-reading")
        self.call_after_refresh(
            self.query_one(DetailPane).focus
        )  # where there is little room it appears only now

    def on_detail_pane_left(self) -> None:
        self.remove_class("-reading")
        self.call_after_refresh(self.query_one(AdapterTable).focus)

    def action_filter(self) -> None:
        self.query_one(FilterBar).focus()

    def action_clear_filter(self) -> None:
        self.query_one(FilterBar).value = ""

    def action_reload(self) -> None:
        self.reload(asked=True)

    def action_copy_command(self) -> None:
        if self.state.current:
            line = show_command(self.state.current)
            self.app.copy_to_clipboard(line)
            self.notify(line, title="Copied", markup=False)

    # What the store says

    async def _ask(self, question: Callable[..., Answer], *arguments: object) -> Answer:
        """Asks the store in a thread. Where the answer finds the application leaving, nobody hears it."""
        try:
            return await asyncio.to_thread(question, self._store, *arguments)
        finally:
            if not self.app.is_running:
                raise asyncio.CancelledError

    @work(exclusive=True, group="rows")
    async def reload(self, *, asked: bool = False) -> None:
        """Reads the list again. `asked`: the user wants to know that it was done."""
        try:
            rows = await self._ask(read_rows)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            problem = Problem.of(error)
            if asked or problem != self.state.problem:
                self.notify(str(problem), title="Not read", severity="error", markup=False)
            self.state = replace(self.state, problem=problem, loaded=True)
            return
        self.state = self.state.read(rows)
        self.read_current()
        if asked:
            self.notify(count(self.state), title="Read again", markup=False, timeout=2)

    @work(exclusive=True, group="details")
    async def read_current(self) -> None:
        """Reads everything about the current adapter and shows it."""
        row = self.state.current
        if row is None:
            self.query_one(DetailPane).show("", ())
        else:
            sections = await self._ask(read_details, row, self.state.names)
            self.query_one(DetailPane).show(row.name, sections)

    def _look(self) -> None:
        if not self._looking:  # a store that answers slowly is asked once, not once a second
            self._looking = True
            self.look_for_changes()

    @work(group="poll")
    async def look_for_changes(self) -> None:
        """Reads again what another process has changed: names, or what is known about the current adapter.

        The journal is written just before the ref it speaks of, so a change of names is looked at twice: at once, and
        at the next look, when the ref is sure to be there.
        """
        try:
            names = await self._ask(names_stamp)
            row = self.state.current
            known = (row.digest, await self._ask(knowledge_stamp, row.digest)) if row else None
        finally:
            self._looking = False
        renamed = names != self._names
        learned = (
            known is not None
            and self._known is not None
            and known[0] == self._known[0]
            and known != self._known
        )
        if renamed or self._settling:
            self.reload()
        elif learned:
            self.read_current()
        self._names, self._known, self._settling = names, known, renamed

    # How it is drawn

    def watch_state(self, before: Library, now: Library) -> None:
        listed = bool(now.visible)
        table, instead = self.query_one(AdapterTable), self.query_one("#instead", Static)
        self.set_class(not now.rows, "-nothing")
        self.set_class(not listed, "-unlisted")
        self.query_one("#count", Label).update(count(now))
        if listed:
            table.show(now.rows, now.visible, now.position)
            if self.focused is None:  # the list has only now come, or come back
                self.call_after_refresh(table.focus)
        else:
            instead.update(instead_of_list(now))
        if _identity(before.current) != _identity(now.current):
            self.read_current()


def _identity(row: Row | None) -> tuple[str, str]:
    return (row.name, row.digest) if row else ("", "")
