"""The question at a gate: what a name asks for, what is known, and whether the adapter gets it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Literal

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from adapterhub.cli.output import clean
from adapterhub.store.gating import Standing
from adapterhub.tui.library.gated import demands, refusing, state, without_gates
from adapterhub.tui.screens import confirm
from adapterhub.words import counted, short

Answer = Literal["open", "all"]
"""Only what the gates let through, or all without gates."""


class GateScreen(ModalScreen[Answer | None]):
    """Every gate with its demands. Nothing is where the cursor is; going without gates is a button and a key of its own."""

    CSS_PATH = "../styles/evaluations.tcss"
    AUTO_FOCUS = "#none"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-high")]
    BINDINGS = [
        Binding("y", "answer('open')", "Yes", id="gate.open", tooltip="Give the names whose gates are open"),
        Binding("W", "answer('all')", "Without gates", id="gate.without", tooltip="Give the names although gates are shut; that is recorded"),
        Binding("n,escape,q", "answer('none')", "No", id="gate.none", tooltip="Give no name"),
        Binding("left,right,h,l", "app.focus_next", "Choose", show=False),
        Binding("j,down", "scroll(1)", "Down", show=False),
        Binding("k,up", "scroll(-1)", "Up", show=False),
    ]  # fmt: skip

    def __init__(
        self, standings: Sequence[Standing], subjects: Mapping[str, str], others: int
    ) -> None:
        """Args:
        subjects: by the name that is asked for, the adapter that would get it.
        others: how many names more are given that no gate is on.
        """
        super().__init__()
        self._standings, self._subjects, self._others = standings, subjects, others
        self._shut = [one for one in standings if not one.open]
        self._seen = monotonic()

    @property
    def _passing(self) -> int:
        return len(self._standings) - len(self._shut) + self._others

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content("A gate")
            yes = "y yes   " if self._passing else ""
            without = "W without gates   " if self._shut else ""
            frame.border_subtitle = Content(f"{yes}{without}n no")
            with VerticalScroll(classes="text", can_focus=False):
                for one in self._standings:
                    yield from self._told(one)
            for line in self._consequences():
                yield Static(clean(line), markup=False, classes="line")
            with Horizontal(classes="buttons"):
                if self._passing:
                    yield Button(self._yes(), id="open", variant="primary", compact=True)
                if self._shut:
                    yield Button("Without gates", id="all", variant="error", compact=True)
                yield Button("No", id="none", compact=True)

    def _told(self, one: Standing) -> Iterator[Static]:
        head = f"{one.name} for {clean(self._subjects[str(one.name)])}: the gate is {state(one)}"
        yield Static(Content.styled(head, "bold" if one.open else "bold $text-warning"))
        if one.now is not None:
            told = f"It means @{short(one.now)} now, and would mean this one."
            yield Static(told, markup=False, classes="demand")
        for line in demands(one):
            yield Static(line, markup=False, classes="demand")

    def _yes(self) -> str:
        if not self._shut:
            return "Give it" if self._passing == 1 else f"Give all {self._passing}"
        return f"Only {counted(self._passing, 'open one')}"

    def _consequences(self) -> list[str]:
        if not self._shut:
            return ["u takes it back."]
        first = refusing(self._shut[0]) if len(self._shut) == 1 else (
            f"Left alone, {len(self._shut)} names stay as they are."
        )  # fmt: skip
        return [first, without_gates(self._shut)]

    def on_mount(self) -> None:
        self.call_after_refresh(self._note_seen)

    def _note_seen(self) -> None:
        self._seen = monotonic()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Nothing is offered that there is nothing for."""
        if action == "answer" and parameters == ("open",):
            return bool(self._passing)
        if action == "answer" and parameters == ("all",):
            return bool(self._shut)
        return True

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id or "none")

    def action_answer(self, answer: str) -> None:
        if monotonic() - self._seen < confirm.ATTENTION_SECONDS:
            return
        self.dismiss("all" if answer == "all" else "open" if answer == "open" else None)

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)
