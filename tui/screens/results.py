"""What became of each of several things that one key was meant for: done, or why not."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from adapterhub.cli.output import clean
from adapterhub.tui.outcome import Result


class ResultsScreen(ModalScreen[None]):
    """A line or two each, those that failed first."""

    CSS_PATH = "../styles/library.tcss"
    BINDINGS = [
        Binding(
            "escape,q,enter",
            "leave",
            "Close",
            key_display="esc",
            id="results.leave",
            tooltip="Close this",
        ),
        Binding("j", "scroll(1)", "Down", show=False),
        Binding("k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, title: str, results: Sequence[Result], hint: str = "") -> None:
        super().__init__()
        self._title, self._hint = title, hint
        self._results = sorted(results, key=lambda result: result.problem is None)

    def compose(self) -> ComposeResult:
        failed = sum(result.problem is not None for result in self._results)
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content(clean(self._title))
            frame.border_subtitle = Content("esc closes")
            yield Static(f"{len(self._results) - failed} done, {failed} failed", classes="quiet")
            with VerticalScroll(classes="text"):
                yield Static(Content("\n").join(map(_line, self._results)), id="results")
            if self._hint:
                yield Static(clean(self._hint), markup=False, classes="line")

    def action_scroll(self, lines: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_leave(self) -> None:
        self.dismiss(None)


def _line(result: Result) -> Content:
    if result.problem is None:
        return Content.assemble(
            ("done    ", "$text-success"), (clean(result.name), "bold"), f"  {clean(result.done)}"
        )
    why = clean(str(result.problem), keep_newlines=True).replace("\n", "\n          ")
    return Content.assemble(
        ("failed  ", "bold $text-error"), (clean(result.name), "bold"), f"\n          {why}"
    )
