"""A number on a line: moved with the arrow keys, or typed."""

from __future__ import annotations

import math
from typing import ClassVar

from textual import events
from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

_TYPED = frozenset("0123456789.-")
_NUMBER_CELLS = 8
_LEAST_LINE = 6
_LONGEST = 12
_ROOM = 36
"""From so many cells on, both ends are written beside the line."""


class Slider(Widget, can_focus=True):
    """A value between `low` and `high`, in steps. What is typed may lie beyond: whoever uses it says what is allowed."""

    HELP: ClassVar[str | None] = (
        "A slider. Left and right move it a little, with shift a lot; delete puts the default back. Or type a number:"
        " enter takes it, escape leaves the value as it was."
    )
    DEFAULT_CSS = """
    Slider {
        height: 1;
        width: 1fr;
        color: $text-muted;

        &:focus {
            color: $foreground;
            background: $boost;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Less", show=False, id="slider.less", tooltip="A little less"),
        Binding("right,l", "move(1)", "More", show=False, id="slider.more", tooltip="A little more"),
        Binding(
            "shift+left,H", "move(-10)", "Much less", show=False, id="slider.much_less", tooltip="Ten steps less"
        ),
        Binding(
            "shift+right,L", "move(10)", "Much more", show=False, id="slider.much_more", tooltip="Ten steps more"
        ),
        Binding("home", "end(-1)", "Least", show=False, id="slider.least", tooltip="The lower end"),
        Binding("end", "end(1)", "Most", show=False, id="slider.most", tooltip="The upper end"),
        Binding("delete", "default", "Default", show=False, id="slider.default", tooltip="The default again"),
    ]  # fmt: skip

    value: reactive[float] = reactive(0.0)
    default: reactive[float] = reactive(0.0)
    typed: reactive[str] = reactive("")
    """What was typed so far; empty while nothing is."""

    class Changed(Message):
        """Another value."""

        def __init__(self, slider: Slider, value: float) -> None:
            super().__init__()
            self.slider, self.value = slider, value

        @property
        def control(self) -> Slider:
            return self.slider

    def __init__(
        self,
        value: float,
        *,
        low: float = 0.0,
        high: float = 1.0,
        step: float = 0.01,
        name: str | None = None,
        id: str | None = None,  # noqa: A002 - as in every widget
    ) -> None:
        super().__init__(name=name, id=id)
        self.low, self.high, self.step = low, high, step
        self.set_reactive(Slider.value, value)
        self.set_reactive(Slider.default, value)

    def watch_value(self, value: float) -> None:
        self.post_message(self.Changed(self, value))

    # Keys and mouse

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """Digits are numbers here, and lead nowhere else."""
        return character is not None and character in _TYPED

    def on_key(self, event: events.Key) -> None:
        if event.character is not None and event.character in _TYPED:
            self.typed = (self.typed + event.character)[:_LONGEST]
        elif self.typed and event.key == "backspace":
            self.typed = self.typed[:-1]
        elif self.typed and event.key == "escape":
            self.typed = ""
        elif self.typed and event.key == "enter":
            self._take()
        else:
            return
        event.stop()
        event.prevent_default()

    def on_blur(self) -> None:
        self._take()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self.capture_mouse()
        self._point(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self.app.mouse_captured is self:
            self._point(event.x)

    def on_mouse_up(self) -> None:
        self.release_mouse()

    def action_move(self, steps: int) -> None:
        self._take()
        moved = round(self.value / self.step + steps) * self.step
        low, high = min(self.low, self.value), max(self.high, self.value)
        self.value = self._tidy(min(high, max(low, moved)))

    def action_end(self, side: int) -> None:
        self.typed = ""
        self.value = self.low if side < 0 else self.high

    def action_default(self) -> None:
        self.typed = ""
        self.value = self.default

    def _take(self) -> None:
        """What was typed is the value, if it is a number."""
        typed, self.typed = self.typed, ""
        try:
            found = float(typed) if typed else math.nan
        except ValueError:
            found = math.nan
        if math.isfinite(found):
            self.value = found
        elif typed:
            self.app.bell()

    def _point(self, x: int) -> None:
        line = self._line
        x -= len(self._ends[0])
        if 0 <= x < line:
            share = x / max(1, line - 1)
            steps = round((self.low + share * (self.high - self.low)) / self.step)
            self.value = self._tidy(min(self.high, max(self.low, steps * self.step)))

    def _tidy(self, value: float) -> float:
        """Without the last bits that adding up steps leaves."""
        digits = max(0, -math.floor(math.log10(self.step))) + 1
        return round(value, digits) + 0.0

    # What is drawn

    @property
    def _ends(self) -> tuple[str, str]:
        """What stands at the left and at the right of the line."""
        roomy = self.content_size.width >= _ROOM
        return (f"{self.low:g} ", f" {self.high:g}") if roomy else ("", "")

    @property
    def _line(self) -> int:
        rest = _NUMBER_CELLS + 1 + sum(map(len, self._ends))
        return max(_LEAST_LINE, self.content_size.width - rest)

    def render(self) -> RenderResult:
        line = self._line
        span = (self.high - self.low) or 1.0
        place = round((self.value - self.low) / span * (line - 1))
        here = min(line - 1, max(0, place))
        zero = round((0 - self.low) / span * (line - 1)) if self.low < 0 < self.high else 0
        first, last = sorted((zero, here))
        cells = ["━" if first <= cell <= last else "─" for cell in range(line)]
        knob = "●" if here == place else ("◀" if place < 0 else "▶")
        number = f"{self.typed}▏" if self.typed else f"{self.value:.4g}"
        left, right = self._ends
        return Content.assemble(
            (left, "dim"),
            "".join(cells[:here]),
            (knob, "$accent bold"),
            "".join(cells[here + 1 :]),
            (right, "dim"),
            " ",
            (number.rjust(_NUMBER_CELLS), "bold $text-accent" if self.typed else "$foreground"),
        )
