"""Evaluations: adapters and the base by the numbers that are attested of them, on what they were all evaluated on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.css.query import NoMatches
from textual.reactive import reactive

from adapterhub.cli.output import clean
from adapterhub.tui.evaluations.reading import Seen, look
from adapterhub.tui.evaluations.words import LEGEND, about, in_words, title, what
from adapterhub.tui.hub import Hub
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.watching import stamp_of
from adapterhub.tui.widgets.evaluation_table import EvaluationTable
from adapterhub.tui.widgets.sheet import Sheet
from adapterhub.words import some

if TYPE_CHECKING:  # numpy comes with it
    from adapterhub.evaluate.side_by_side import Column, Line, Table


@dataclass(frozen=True)
class State:
    """What the screen knows, and where in it the reader is."""

    seen: Seen | None = None
    problem: Problem | None = None
    place: int = 0
    """Of the table."""
    by: Column | None = None
    """What the lines are ordered by; by nothing they are as they were marked."""
    reverse: bool = False
    row: int = 1
    """Of the cursor; first on what stands below the base."""
    column: int = 0

    @property
    def table(self) -> Table | None:
        """The one that is shown."""
        return self.seen.tables[self.place] if self.seen and self.seen.tables else None

    @property
    def command(self) -> str:
        """What would fill its gaps."""
        return self.seen.commands[self.place] if self.seen and self.table is not None else ""

    @property
    def lines(self) -> tuple[Line, ...]:
        """The base, and the adapters in their order."""
        table = self.table
        if table is None:
            return ()
        ordered = table.lines if self.by is None else table.ordered(self.by, reverse=self.reverse)
        return (*table.base, *ordered)

    @property
    def here(self) -> tuple[Line | None, Column | None]:
        """What is under the cursor."""
        table, lines = self.table, self.lines
        if table is None or self.row >= len(lines) or self.column >= len(table.columns):
            return None, None
        return lines[self.row], table.columns[self.column]


class EvaluationsScreen(HubScreen):
    """Opened with the names of the adapters."""

    ABOUT = (
        "What the adapters were evaluated on, side by side with the base: perplexity, every measure, every part of a suite."
        " One table holds what may be compared: the same rows, base and settings; ] and [ go to the next, o chooses. s sorts"
        " by the column under the cursor. y copies the command that evaluates those who have no numbers yet."
    )
    AUTO_FOCUS = "EvaluationTable"
    CSS_PATH = "../styles/evaluations.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket,n", "turn(1)", "Next", key_display="]", id="evaluations.next", tooltip="What else they were evaluated on"),
        Binding("left_square_bracket,N", "turn(-1)", "Previous", key_display="[", show=False, id="evaluations.previous", tooltip="The table before"),
        Binding("o", "choose", "Choose", id="evaluations.choose", tooltip="Choose what they were evaluated on"),
        Binding("s", "sort", "Sort", id="evaluations.sort", tooltip="Sort by the column under the cursor; again, the other way round"),
        Binding("r", "reload", "Again", show=False, id="evaluations.reload", tooltip="Read the evaluations again"),
    ]  # fmt: skip

    state: reactive[State] = reactive(State())

    def __init__(self, hub: Hub, names: Sequence[str]) -> None:
        super().__init__(hub)
        self._names = tuple(names)

    def body(self) -> ComposeResult:
        with Container(id="evaluating"):
            yield EvaluationTable()
            yield Sheet("words")

    def on_mount(self) -> None:
        super().on_mount()
        self.read()

    def command_line(self) -> str:
        if self.state.table is not None:
            return self.state.command
        return shlex.join(["adapterhub", "eval", "base", *self._names, "--suite", "forgetting"])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        several = self.state.seen is not None and len(self.state.seen.tables) > 1
        if action in ("turn", "choose") and not several:
            return False
        if action == "sort" and self.state.table is None:
            return False
        return super().check_action(action, parameters)

    # What the user does

    def action_turn(self, steps: int) -> None:
        if self.state.seen and self.state.seen.tables:
            self._go_to((self.state.place + steps) % len(self.state.seen.tables))

    @work(exclusive=True, group="dialog")
    async def action_choose(self) -> None:
        from adapterhub.tui.screens.choose import Choosable, ChooseScreen

        seen = self.state.seen
        if seen is None:
            return
        things = [
            Choosable(str(place), what(table), about(table))
            for place, table in enumerate(seen.tables)
        ]
        chosen = await self.app.push_screen_wait(ChooseScreen("Evaluated on", things))
        if chosen is not None and seen is self.state.seen:
            self._go_to(int(chosen.id))

    def action_sort(self) -> None:
        self._sort(self.state.here[1])

    def action_reload(self) -> None:
        self.read()

    def on_evaluation_table_moved(self, event: EvaluationTable.Moved) -> None:
        self.state = replace(self.state, row=event.row, column=event.column)

    def on_evaluation_table_sorted(self, event: EvaluationTable.Sorted) -> None:
        if self.state.table is not None:
            self._sort(self.state.table.columns[event.column])

    def _sort(self, column: Column | None) -> None:
        """By this column; where it is that already, the other way round."""
        if column is not None:
            again = column == self.state.by
            self.state = replace(self.state, by=column, reverse=again and not self.state.reverse)

    def _go_to(self, place: int) -> None:
        self.state = replace(self.state, place=place, by=None, reverse=False, row=1, column=0)

    # What the hub says

    @work(exclusive=True, group="evaluations")
    async def read(self) -> None:
        """Reads what is attested; stays with the table that was shown, where it is still there."""
        before = self.state.table
        try:
            seen = await self.ask(look, self.hub.store, self._names)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            self.state = replace(self.state, problem=Problem.of(error))
            return
        key = before.condition.key if before else ""
        places = [at for at, one in enumerate(seen.tables) if one.condition.key == key]
        place = places[0] if places else 0
        self.state = replace(self.state, seen=seen, problem=None, place=place)
        self.refresh_bindings()

    def stamp(self) -> object:
        """Names, and what is known about adapters."""
        return super().stamp(), stamp_of(self.hub.store.layout.attested)

    def changed(self) -> None:
        self.read()

    # What is drawn

    def watch_state(self, before: State, state: State) -> None:
        if self.is_mounted:
            with suppress(NoMatches):
                self._draw(before, state)

    def _draw(self, before: State, state: State) -> None:
        words, numbers = self.query_one("#words", Sheet), self.query_one(EvaluationTable)
        table, seen = state.table, state.seen
        self.set_class(table is None, "-nothing")
        words.border_title = Content(clean(some(self._names, 4)))
        if state.problem is not None:
            words.say(Content.styled(clean(str(state.problem), keep_newlines=True), "$text-error"))
            return
        if seen is None:
            words.say(Content("Reading …"))
            return
        if table is None:
            words.say(self._nothing(seen))
            return
        drawn = (before.table, before.lines, before.by, before.reverse)
        if drawn != (table, state.lines, state.by, state.reverse):
            numbers.border_title = Content(title(seen, state.place))
            numbers.border_subtitle = Content(LEGEND)
            by = (state.by, state.reverse) if state.by is not None else None
            numbers.show(table.columns, state.lines, by, (state.row, state.column))
            if self.focused is None and self.is_current:
                self.call_after_refresh(numbers.focus)
        words.show(in_words(seen, table, *state.here, state.command))

    def _nothing(self, seen: Seen) -> Content:
        told = [
            Content.styled(f"{clean(name)}: {clean(str(problem), keep_newlines=True)}\n\n", "$text-error")
            for name, problem in seen.problems
        ]  # fmt: skip
        return Content.assemble(
            *told,
            ("Nothing with numbers is known of them.", "bold $text-accent"),
            "\n\n",
            ("y", "bold"),
            " copies what evaluates them beside the base, on what they knew before they were trained:\n\n    ",
            (clean(self.command_line()), "bold"),
        )
