"""Dialogs: a question with its consequence, and a line to type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from adapterhub.cli.output import clean

ATTENTION_SECONDS = 0.3
"""Whoever answers a question sooner after it appeared was typing something else."""


class ConfirmScreen(ModalScreen[bool]):
    """Yes or no, told what follows. No is where the cursor is, so that enter alone destroys nothing."""

    AUTO_FOCUS = "#no"
    BINDINGS = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes", tooltip="Do it"),
        Binding("n,escape,q", "answer(False)", "No", id="confirm.no", tooltip="Leave it as it is"),
        Binding("left,right,h,l", "app.focus_next", "Choose", show=False),
        Binding("c", "copy", "Copy the line", show=False, id="confirm.copy"),
    ]

    def __init__(self, question: str, consequences: Sequence[str], line: str, yes: str) -> None:
        super().__init__()
        self._question, self._consequences, self._line, self._yes = (
            question,
            consequences,
            line,
            yes,
        )
        self._seen = monotonic()

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content("Sure?")
            frame.border_subtitle = Content("y yes   n no" + ("   c copies" if self._line else ""))
            with VerticalScroll(classes="text", can_focus=False):
                yield Static(clean(self._question, keep_newlines=True), markup=False)
                for consequence in self._consequences:
                    text = Content.assemble(("• ", "dim"), clean(consequence))
                    yield Static(text, classes="consequence")
                if self._line:
                    yield Static(clean(self._line), markup=False, classes="line")
            with Horizontal(classes="buttons"):
                yield Button(self._yes, id="yes", variant="error", compact=True)
                yield Button("No", id="no", compact=True)

    def on_mount(self) -> None:
        self.call_after_refresh(self._note_seen)

    def _note_seen(self) -> None:
        self._seen = monotonic()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        if monotonic() - self._seen >= ATTENTION_SECONDS:
            self.dismiss(yes)

    def action_copy(self) -> None:
        if self._line:
            self.app.copy_to_clipboard(self._line)
            self.notify(self._line, title="Copied", markup=False)


class TextScreen(ModalScreen[str | None]):
    """A line to type; what is wrong with it is said while it is typed."""

    AUTO_FOCUS = "Input"
    BINDINGS = [Binding("escape", "leave", "Leave", id="text.leave", tooltip="Leave it as it is")]

    def __init__(
        self, question: str, value: str, hint: str, check: Callable[[str], str] | None
    ) -> None:
        super().__init__()
        self._question, self._value, self._hint = question, value, hint
        self._check = check or (lambda _: "")

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content(clean(self._question))
            frame.border_subtitle = Content("enter takes it   esc leaves")
            yield Input(self._value, placeholder=self._hint, compact=True, select_on_focus=False)
            yield Static("", markup=False, classes="problem")

    def on_input_changed(self, event: Input.Changed) -> None:
        said = self._check(event.value) if event.value else ""
        self.query_one(".problem", Static).update(clean(said))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value and not self._check(event.value):
            self.dismiss(event.value)

    def action_leave(self) -> None:
        self.dismiss(None)
