"""The library: the list of adapters, the filter above it, their namespaces, and everything known about one of them.

`state` is all there is to know; whatever happens makes a new `Library`, and `watch_state` draws the difference. The store
is read in threads; a result that comes after a newer question was asked is dropped.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar, TypeVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from adapterhub.tui.facts import Section
from adapterhub.tui.hub import Hub
from adapterhub.tui.library.known import Known
from adapterhub.tui.library.model import Library
from adapterhub.tui.library.reading import (
    answer,
    leases_stamp,
    read_details,
    read_rows,
)
from adapterhub.tui.library.rows import Row, spaces
from adapterhub.tui.library.words import count, instead_of_list, show_command, title, told
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.library_actions import LibraryActions
from adapterhub.tui.watching import stamp_of
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.detail_pane import DetailPane
from adapterhub.tui.widgets.filter_bar import FilterBar
from adapterhub.tui.widgets.space_tree import SpaceTree

Panel = TypeVar("Panel", bound=Widget)

MOVING_SECONDS = 0.05
"""Who goes on within this time wants no details of where he was."""
RESTING_SECONDS = 0.2
"""Who stays longer wants to know more."""
TYPING_SECONDS = 0.2


class LibraryScreen(LibraryActions):
    """What the application opens on."""

    PLACE = "library"
    ABOUT = (
        "The list holds every name in the store; the pane beside or below it says everything known about the one under"
        " the cursor. Type / and a few letters to narrow the list. What a key does is done to the marked adapters, else to"
        " the one under the cursor. What the commands add or remove while this is open appears by itself."
    )
    CSS_PATH = "../styles/library.tcss"
    AUTO_FOCUS = "AdapterTable"
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (16, "-low"), (30, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="library.filter", tooltip="Narrow the list with every key"),
        Binding("escape", "clear", "Clear", show=False, id="library.clear", tooltip="Show all again; then, take marks away"),
        Binding("r", "reload", "Reload", show=False, id="library.reload", tooltip="Read the store again"),
        Binding("n", "spaces", "Namespaces", show=False, id="library.spaces", tooltip="Go to the namespaces, or hide them"),
    ]  # fmt: skip

    class Reading(Message):
        """How far the reading of the store is."""

        def __init__(self, said: str) -> None:
            super().__init__()
            self.said = said

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._known = Known(hub.store)
        self._further: tuple[tuple[str, str], tuple[Section, ...]] = (("", ""), ())
        self._reading = ""
        self._flat = False
        """Whether there are no namespaces to choose from."""
        # Classes are set where it costs nothing yet: on a screen that stands, each styles everything anew.
        self.add_class("-nothing", "-unlisted", update=False)

    def body(self) -> ComposeResult:
        with Horizontal(id="bar"):
            yield FilterBar()
            yield Static(count(self.state), id="count", markup=False)
        yield Static(id="told", markup=False)
        with Horizontal(id="body"):
            yield _panel(SpaceTree(), "Namespaces")
            with Container(id="middle"):
                yield _panel(AdapterTable(), title(self.state))
                yield _panel(Static(instead_of_list(self.state), id="instead", markup=False))
                yield _panel(DetailPane())

    def on_mount(self) -> None:
        self.reload()

    # What the user does

    def arrive(self, **given: object) -> None:
        if isinstance(name := given.get("name"), str):
            self.select(name)

    def command_line(self) -> str:
        return show_command(self.state.current) if self.state.current else "adapterhub ls"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "filter" and isinstance(self.focused, FilterBar):
            return False
        return super().check_action(action, parameters)

    def filter_by(self, query: str) -> None:
        self.query_one(FilterBar).value = query
        self.query_one(AdapterTable).focus()

    def read_again(self) -> None:
        self.reload()

    def select(self, name: str) -> None:
        """Goes to `name`, which may only just have come."""
        self.query_one(FilterBar).value = ""
        self.state = replace(self.state, query="", space="", selected=name, seeking=False)
        self.reload()

    def on_input_changed(self, event: Input.Changed) -> None:
        typed = replace(self.state, query=event.value)
        self.state = replace(typed, seeking=bool(typed.terms.words))

    def on_filter_bar_left(self) -> None:
        self.query_one(AdapterTable).focus()

    def on_filter_bar_saved(self) -> None:
        self.save_filter()

    def on_adapter_table_moved(self) -> None:
        # Of several moves in the queue the last is the news: the table itself says where it is.
        here = self.query_one(AdapterTable).name_here
        self.state = replace(self.state, selected=here, seeking=False)

    def on_adapter_table_marked(self, event: AdapterTable.Marked) -> None:
        self.state = self.state.marking(event.name)

    def on_adapter_table_sorted(self, event: AdapterTable.Sorted) -> None:
        self.sort_by(event.key)

    def on_adapter_table_opened(self) -> None:
        self.add_class("-reading")
        # where there is little room it appears only now
        self.call_after_refresh(self.query_one(DetailPane).focus)

    def on_detail_pane_left(self) -> None:
        self.remove_class("-reading")
        self.call_after_refresh(self.query_one(AdapterTable).focus)

    def on_space_tree_chosen(self, event: SpaceTree.Chosen) -> None:
        self.state = replace(self.state, space=event.space)

    def on_space_tree_left(self) -> None:
        self.remove_class("-spaces")
        self.query_one(AdapterTable).focus()

    def action_filter(self) -> None:
        self.query_one(FilterBar).focus()

    def action_clear(self) -> None:
        if self.state.narrowed:
            self.query_one(FilterBar).value = ""
            self.state = replace(self.state, query="", space="")
        else:
            self.state = replace(self.state, marked=frozenset())

    def action_reload(self) -> None:
        self.reload(asked=True)

    def action_spaces(self) -> None:
        """Shows the namespaces and goes there; from there, hides them."""
        tree = self.query_one(SpaceTree)
        if self._flat:
            self.notify("All adapters are in one namespace.", timeout=3)
        elif tree.has_focus:
            self.add_class("-no-spaces")
            self.on_space_tree_left()
        else:
            self.remove_class("-no-spaces")
            self.add_class("-spaces")
            self.call_after_refresh(tree.focus)

    # What the store says

    @work(exclusive=True, group="rows")
    async def reload(self, *, asked: bool = False) -> None:
        """Reads the list again. `asked`: the user wants to know that it was done."""
        try:
            listing = await self.ask(read_rows, self.hub.store, self._tell_reading)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            problem = Problem.of(error)
            if asked or problem != self.state.problem:
                self.notify(str(problem), title="Not read", severity="error", markup=False)
            self.state = replace(self.state, problem=problem, loaded=True)
            return
        self.state = self.state.read(listing)
        self.read_current()
        self.ask_the_hub()
        if asked:
            self.notify(count(self.state), title="Read again", markup=False, timeout=2)
        await self.hold_against_base()

    def _tell_reading(self, said: str) -> None:
        self.post_message(self.Reading(said))  # from the thread that reads

    def on_library_screen_reading(self, event: Reading) -> None:
        self._reading = event.said
        if not self.state.loaded:
            self.query_one("#instead", Static).update(instead_of_list(self.state, event.said))

    @work(exclusive=True, group="details")
    async def read_current(self) -> None:
        """Reads everything about the current adapter and shows it; what takes long, when the user stays on it."""
        pane, row = self.query_one(DetailPane), self.state.current
        if row is None:
            pane.show("", ())
            return
        await asyncio.sleep(MOVING_SECONDS)
        sections = await self.ask(read_details, self.hub.store, row, self.state.names)
        whose, further = (
            self._further
        )  # of the same adapter it stays, so that nothing jumps when it is read again
        pane.show(row.name, (*sections, *(further if whose == _identity(row) else ())))
        await asyncio.sleep(RESTING_SECONDS)
        self._further = _identity(row), await self.ask(self._known.sections, row)
        pane.show(row.name, (*sections, *self._further[1]))

    @work(exclusive=True, group="answers")
    async def ask_the_hub(self) -> None:
        """Asks what the filter's words ask that rows can't answer, when the typing pauses."""
        missing = [asked for asked in self.state.terms.asked if asked not in self.state.answers]
        if not missing:
            return
        await asyncio.sleep(TYPING_SECONDS)
        for asked in missing:
            found = await self.ask(answer, self.hub.store, asked)
            self.state = replace(self.state, answers={**self.state.answers, asked: found})

    def stamp(self) -> object:
        """Names, what is known about adapters, and who uses which."""
        store = self.hub.store
        return super().stamp(), stamp_of(store.layout.attested), leases_stamp(store)

    def changed(self) -> None:
        self.reload()

    # How it is drawn

    def watch_state(self, before: Library, now: Library) -> None:
        if not self.is_mounted:
            return
        listed = bool(now.visible)
        table = self.query_one(AdapterTable)
        self.query_one("#count", Static).update(count(now), layout=False)
        if told(before) != told(now):
            self._tell_filter(now)
        if title(before) != title(now):
            table.border_title = Content(title(now))
        if before.rows is not now.rows or before.space != now.space:
            self._show_spaces(now)
        # All at once: each change of a screen's classes styles everything on it anew.
        self.update_classes(
            {"-nothing": not now.rows, "-unlisted": not listed, "-flat": self._flat}
        )
        if bool(before.rows) != bool(now.rows):
            self.refresh_bindings()
        if listed:
            table.show(now)
            if self.focused is None and self.is_current:  # the list has only now come, or come back
                self.call_after_refresh(table.focus)
        else:
            self.query_one("#instead", Static).update(instead_of_list(now, self._reading))
        if before.terms.asked != now.terms.asked:
            self.ask_the_hub()
        if _identity(before.current) != _identity(now.current):
            self.read_current()

    def _tell_filter(self, now: Library) -> None:
        said, problem = told(now)
        line = self.query_one("#told", Static)
        line.display = bool(said)
        line.set_class(problem, "problem")
        line.update(said)

    def _show_spaces(self, now: Library) -> None:
        found = spaces(now.rows)
        self._flat = len(found) < 2
        self.query_one(SpaceTree).show(found, len(now.rows), now.space)


def _panel(widget: Panel, title: str = "") -> Panel:
    """In a frame. Told before it is mounted, when nothing has been styled yet."""
    widget.add_class("panel", update=False)
    widget.border_title = Content(title)
    return widget


def _identity(row: Row | None) -> tuple[str, str]:
    return (row.name, row.digest) if row else ("", "")
