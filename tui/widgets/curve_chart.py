"""A plot: curves in braille dots, with axes, a legend, and a cursor that says where it is.

Curves are told apart by how they are drawn (a line, dashes, dots) and by the letter at their end; colour only helps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from textual import events
from textual.app import RenderResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from adapterhub.cli.output import clean
from adapterhub.trainer.plot import EMPTY, Frame, drawable, traced
from adapterhub.tui.trainings.model import Curve

_DASHES = ((1, 0), (6, 2), (2, 1), (12, 3), (1, 1), (4, 4), (1, 2))
"""Columns of dots that are drawn and left out, in turn."""
_COLOURS = (
    "$text-accent",
    "$text-success",
    "$text-warning",
    "$text-primary",
    "$text-secondary",
    "$text-error",
)
_CURSOR = "│"
Say = Callable[[float], str]
Cell = tuple[str, str]


class CurveChart(Widget, can_focus=True):
    """Curves that grow to the right. The arrows move a cursor along them."""

    HELP = (
        "The curves. Left and right move the cursor (with shift ten columns), home goes to the beginning, end lets it go; "
        "the line below says what was measured there. An o, or a small letter, marks a score of the held-out rows."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Left", show=False, id="chart.left", tooltip="Cursor to the left"),
        Binding("right", "move(1)", "Right", show=False, id="chart.right", tooltip="Cursor to the right"),
        Binding("shift+left", "move(-10)", "", show=False, id="chart.left_far", tooltip="Ten columns left"),
        Binding("shift+right", "move(10)", "", show=False, id="chart.right_far", tooltip="Ten columns right"),
        Binding("home,0", "move(-100000)", "", show=False, id="chart.begin", tooltip="Cursor to the beginning"),
        Binding("end", "release", "", show=False, id="chart.release", tooltip="Let the cursor go: the newest values"),
    ]  # fmt: skip

    curves: reactive[tuple[Curve, ...]] = reactive(())
    right: reactive[float] = reactive(1.0)
    cursor: reactive[float | None] = reactive(None)
    """Where the cursor is on the axis; None where it isn't."""

    class Pointed(Message):
        """The cursor has moved."""

        def __init__(self, x: float | None) -> None:
            super().__init__()
            self.x = x

    def __init__(self, name: str, *, small: bool = False) -> None:
        super().__init__(id=name, classes="panel small" if small else "panel")
        self.can_focus = not small
        self._small = small
        self._say_x: Say = str
        self._say_y: Say = str

    def show(
        self, title: str, curves: tuple[Curve, ...], right: float, say_x: Say, say_y: Say
    ) -> None:
        """Draws other curves; the cursor stays where it is."""
        self._say_x, self._say_y = say_x, say_y
        self.border_title = Content(title)
        self.border_subtitle = Content("") if self._small else legend(curves)
        self.curves, self.right = curves, right if drawable(right) else 1.0
        self.refresh()

    def action_move(self, by: int) -> None:
        frame = self._frame()
        if frame is None:
            return
        here = (
            frame.columns - 1 if self.cursor is None else frame.column(self.cursor, frame.columns)
        )
        self._point(frame, max(0, min(frame.columns - 1, here + by)))

    def action_release(self) -> None:
        self.cursor = None

    def on_click(self, event: events.Click) -> None:
        frame = self._frame()
        offset = event.get_content_offset(self)
        if frame is not None and offset is not None and not self._small:
            self._point(frame, max(0, min(frame.columns - 1, offset.x - self._gutter(frame))))

    def _point(self, frame: Frame, column: int) -> None:
        share = (column + 0.5) / frame.columns
        self.cursor = frame.left + share * (frame.right - frame.left)

    def watch_cursor(self, x: float | None) -> None:
        self.post_message(self.Pointed(x))

    # Drawing

    def _frame(self) -> Frame | None:
        """What is shown of the plane; None where there is nothing, or no room."""
        points = [
            y for curve in self.curves for _, y in (*curve.points, *curve.marks) if drawable(y)
        ]
        width, height = self.content_size
        if not points or width < 12 or height < 2:
            return None
        low, high = min(points), max(points)
        if high - low <= 1e-6 * abs(high):  # what is level is drawn so, whatever its last digits do
            low, high = low - 0.05 * abs(low), high + 0.05 * abs(high)
        frame = Frame(0.0, self.right or 1.0, low, high, width, height - (0 if self._small else 1))
        gutter = self._gutter(frame)
        return Frame(0.0, self.right or 1.0, low, high, max(1, width - gutter), frame.lines)

    def _gutter(self, frame: Frame) -> int:
        return max(len(self._say_y(frame.low)), len(self._say_y(frame.high))) + 2

    def render(self) -> RenderResult:
        frame = self._frame()
        if frame is None:
            return (
                Content.styled("nothing measured yet", "$text-muted")
                if self.content_size.height
                else ""
            )
        cells = self._cells(frame)
        gutter = self._gutter(frame) - 2
        labels = {0: self._say_y(frame.high), frame.lines - 1: self._say_y(frame.low)}
        if frame.lines > 6:
            labels[frame.lines // 2] = self._say_y((frame.low + frame.high) / 2)
        lines = [
            Content.assemble(
                (f"{labels.get(number, ''):>{gutter}} ", "$text-muted"),
                ("┤", "$text-muted"),
                *_runs(line),
            )
            for number, line in enumerate(cells)
        ]
        if not self._small:
            lines.append(self._axis(frame, gutter + 2))
        return Content("\n").join(lines)

    def _cells(self, frame: Frame) -> list[list[Cell]]:
        cells: list[list[Cell]] = [[(" ", "")] * frame.columns for _ in range(frame.lines)]
        bits = [[0] * frame.columns for _ in range(frame.lines)]
        for number, curve in enumerate(self.curves):
            on, off = _DASHES[number % len(_DASHES)]
            for y, dots in enumerate(traced(curve.points, frame, on=on, off=off)):
                for x, found in enumerate(dots):
                    if found:
                        bits[y][x] |= found
                        cells[y][x] = (chr(EMPTY + bits[y][x]), _colour(number))
        if self.cursor is not None:
            column = frame.column(self.cursor, frame.columns)
            for line in cells:
                if line[column][0] == " ":
                    line[column] = (_CURSOR, "$text-muted")
        several = len(self.curves) > 1
        for number, curve in enumerate(self.curves):
            style = f"bold {_colour(number)}"
            for point in curve.marks:
                self._put(cells, frame, point, curve.letter.lower() if several else "o", style)
            if several and curve.points:
                self._put(cells, frame, curve.points[-1], curve.letter, f"{style} reverse")
        return cells

    @staticmethod
    def _put(
        cells: list[list[Cell]], frame: Frame, point: tuple[float, float], sign: str, style: str
    ) -> None:
        if drawable(point[1]):
            column, line = frame.place(*point)
            cells[line][column] = (sign, style)

    def _axis(self, frame: Frame, gutter: int) -> Content:
        """The line below: both ends, and where the cursor is."""
        left, right = self._say_x(0.0), self._say_x(frame.right)
        text = left + " " * max(1, frame.columns - len(left) - len(right)) + right
        if self.cursor is not None:
            here = self._say_x(self.cursor)
            at = max(
                0,
                min(
                    frame.columns - len(here),
                    frame.column(self.cursor, frame.columns) - len(here) // 2,
                ),
            )
            text = f"{text[:at]}{here}{text[at + len(here) :]}"
        return Content.styled(" " * gutter + text, "$text-muted")


def legend(curves: tuple[Curve, ...]) -> Content:
    """Which letter is which curve, and how it is drawn; empty where there is but one."""
    if len(curves) < 2:
        return Content("")
    parts = [
        Content.assemble(
            (f"{curve.letter} {_SAMPLES[number % len(_SAMPLES)]}", f"bold {_colour(number)}"),
            f" {clean(curve.name)}",
        )
        for number, curve in enumerate(curves)
    ]
    return Content("  ").join(parts)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _sample(on: int, off: int) -> str:
    """Three characters of a curve drawn so."""
    bits = [0x04 * (column % (on + off) < on) for column in range(8)]
    return "".join(chr(EMPTY + bits[i] + 8 * bits[i + 1]) for i in range(0, 8, 2))


_SAMPLES = tuple(_sample(on, off) for on, off in _DASHES)


def _runs(line: list[Cell]) -> Iterator[Content]:
    """The cells of a line, those of one style together."""
    text, style = "", ""
    for sign, wanted in line:
        if wanted != style:
            if text:
                yield Content.styled(text, style)
            text, style = "", wanted
        text += sign
    if text:
        yield Content.styled(text, style)
