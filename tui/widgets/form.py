"""Forms: rows of a label, a control, and what is wrong with it; and the controls, which all speak alike.

Every control has a `name` (the field), a `value`, and posts `FormChanged`. A control takes any value and says it; whether it
is allowed is for the screen to ask, which puts the answer into the row's `problem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Input, Label, Select, Static

from adapterhub.tui.widgets.slider import Slider


class FormChanged(Message):
    """A field has another value."""

    def __init__(self, widget: Widget, field: str, value: Any) -> None:
        super().__init__()
        self.widget, self.field, self.value = widget, field, value

    @property
    def control(self) -> Widget:
        return self.widget


class FormRow(Vertical):
    """A label, a control, and under them what is wrong, if anything is. `hint` is said beside the control where it helps."""

    DEFAULT_CSS = """
    FormRow {
        height: auto;

        .field {
            height: 1;
        }

        .label {
            width: 16;
            padding-right: 1;
            color: $text-muted;
        }

        &:focus-within .label {
            color: $text-accent;
            text-style: bold;
        }

        .problem {
            display: none;
            padding-left: 16;
            height: auto;
        }

        &.-wrong .problem {
            display: block;
        }
    }
    """

    problem: reactive[str] = reactive("")
    """What is wrong with the value, in words; empty where nothing is."""

    def __init__(
        self,
        label: str,
        control: Widget,
        *,
        problem: str = "",
        id: str | None = None,  # noqa: A002 - as in every widget
    ) -> None:
        super().__init__(id=id)
        self._label, self.field = label, control
        self.set_reactive(FormRow.problem, problem)

    @property
    def control_name(self) -> str:
        """The field that the row is about."""
        return self.field.name or ""

    def compose(self) -> ComposeResult:
        with Horizontal(classes="field"):
            yield Label(self._label, classes="label", markup=False)
            yield self.field
        yield Static(classes="problem", markup=False)

    def on_mount(self) -> None:
        self.watch_problem(self.problem)

    def watch_problem(self, problem: str) -> None:
        if self.is_mounted:
            self.query_one(".problem", Static).update(f"! {problem}" if problem else "")
        self.set_class(bool(problem), "-wrong")

    def on_slider_changed(self, event: Slider.Changed) -> None:
        event.stop()
        self.post_message(FormChanged(event.slider, event.slider.name or "", event.value))


class Form(VerticalScroll, can_focus=False):
    """Rows below each other; up and down go from one control to the next."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "down,j", "app.focus_next", "Next field", show=False, id="form.next", tooltip="Next field"
        ),
        Binding(
            "up,k", "app.focus_previous", "Previous field", show=False, id="form.previous", tooltip="Previous field"
        ),
    ]  # fmt: skip

    def row(self, field: str) -> FormRow | None:
        """The row of a field."""
        return next((row for row in self.query(FormRow) if row.control_name == field), None)


class Choice(Select[str]):
    """One of several words. Left and right go through them without opening the list."""

    HELP: ClassVar[str | None] = (
        "A choice. Left and right go through what there is; enter opens the list, where typing finds an entry."
    )
    DEFAULT_CSS = """
    Choice {
        width: 1fr;
        height: 1;

        SelectCurrent {
            background: transparent;
        }

        &:focus SelectCurrent {
            background: $boost;
            color: $foreground;
            text-style: bold;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,space", "show_overlay", "Open", show=False, id="choice.open", tooltip="All there is to choose from"),
        Binding("right,l", "turn(1)", "Next", show=False, id="choice.next", tooltip="The next of the choices"),
        Binding("left,h", "turn(-1)", "Previous", show=False, id="choice.previous", tooltip="The one before"),
        Binding("down", "app.focus_next", "Next field", show=False, id="choice.down", tooltip="Next field"),
        Binding("up", "app.focus_previous", "Previous field", show=False, id="choice.up", tooltip="Previous field"),
    ]  # fmt: skip

    def __init__(
        self,
        options: Sequence[tuple[str, str]],
        value: str,
        *,
        name: str,
        id: str | None = None,  # noqa: A002 - as in every widget
    ) -> None:
        """`options` are (what is shown, the value)."""
        self._values = [one for _, one in options]
        shown = [(Content(text), one) for text, one in options]
        super().__init__(shown, value=value, allow_blank=False, compact=True, name=name, id=id)

    def action_turn(self, steps: int) -> None:
        place = self._values.index(str(self.value))
        self.value = self._values[(place + steps) % len(self._values)]

    def on_select_changed(self, event: Select.Changed) -> None:
        event.stop()
        self.post_message(FormChanged(self, self.name or "", event.value))


class Toggle(Widget, can_focus=True):
    """Yes or no."""

    HELP: ClassVar[str | None] = "A switch: space or enter turns it."
    DEFAULT_CSS = """
    Toggle {
        width: 1fr;
        height: 1;

        &:focus {
            background: $boost;
            text-style: bold;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter,left,right,h,l", "turn", "Turn", show=False, id="toggle.turn", tooltip="Yes or no")
    ]  # fmt: skip

    value: reactive[bool] = reactive(False)

    def __init__(
        self,
        value: bool,
        *,
        name: str,
        text: str = "",
        id: str | None = None,  # noqa: A002 - as in every widget
    ) -> None:
        """`text` is said beside the box in place of yes and no."""
        super().__init__(name=name, id=id)
        self._text = text
        self.set_reactive(Toggle.value, value)

    def watch_value(self, value: bool) -> None:
        self.post_message(FormChanged(self, self.name or "", value))

    def action_turn(self) -> None:
        self.value = not self.value

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.action_turn()

    def render(self) -> RenderResult:
        text = self._text or ("yes" if self.value else "no")
        return Content.assemble(("[x] " if self.value else "[ ] "), text)


class Text(Input):
    """A line of text."""

    DEFAULT_CSS = """
    Text {
        width: 1fr;
        height: 1;
        background: transparent;

        &:focus {
            background: $boost;
        }
    }
    """

    def __init__(
        self,
        value: str = "",
        *,
        name: str,
        placeholder: str = "",
        id: str | None = None,  # noqa: A002 - as in every widget
    ) -> None:
        super().__init__(
            value, placeholder=placeholder, compact=True, select_on_focus=False, name=name, id=id
        )

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(FormChanged(self, self.name or "", event.value))


class Number(Text):
    """A number typed as text: what isn't one is told, not refused. Its `value` is the text."""

    HELP: ClassVar[str | None] = "Type a number."
