"""One column of the playground: what somebody was asked, and answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from adapterhub.cli.output import clean
from adapterhub.tui.chatting.state import Turn, Voice, differing

_ENDS = {"halted": "stopped", "length": "cut off: max tokens", "failed": "failed"}


class VoiceColumn(VerticalScroll, can_focus=True):
    """A frame with a conversation that grows at its end."""

    HELP: ClassVar[str | None] = (
        "What one of them was asked, and what it answers: its last answer can be copied. With marks on, words that the"
        " first column's last answer hasn't got are underlined."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="voice.down", tooltip="Scroll down"),
        Binding("k", "scroll_up", "Up", show=False, id="voice.up", tooltip="Scroll up"),
        Binding("g", "scroll_home", "Top", show=False, id="voice.top", tooltip="To its beginning"),
        Binding("G", "scroll_end", "End", show=False, id="voice.end", tooltip="To its end"),
    ]

    def __init__(self, voice: Voice) -> None:
        super().__init__(classes="panel")
        self.voice = voice
        self.border_title = Content(clean(voice.name))

    def compose(self) -> ComposeResult:
        yield Static(markup=False)

    def on_mount(self) -> None:
        self.show(self.voice, None)

    def show(self, voice: Voice, other: str | None) -> None:
        """Draws the conversation. `other`: the answer to compare the last one with, where marks are on."""
        self.voice = voice
        self.query_one(Static).update(Content("\n").join(_lines(voice, other)))
        self.border_subtitle = Content(told_of(voice.last))
        if voice.last is not None and not voice.last.ended:
            self.scroll_end(animate=False)


def told_of(turn: Turn | None) -> str:
    """How long an answer took, and what ended it."""
    if turn is None:
        return ""
    if not turn.ended:
        return "writing …"
    told = [] if turn.tokens is None else [f"{turn.tokens} tokens"]
    if turn.problem is None:
        told.append(f"{turn.seconds:.1f} s")
    if turn.tokens and turn.seconds > 0:
        told.append(f"{turn.tokens / turn.seconds:.1f}/s")
    return ", ".join([*told, *([_ENDS[turn.ended]] if turn.ended in _ENDS else [])])


def _lines(voice: Voice, other: str | None) -> Iterator[Content]:
    if not voice.turns:
        yield Content.styled("Nothing asked yet.", "$text-muted")
    for place, turn in enumerate(voice.turns):
        yield Content.styled(f"> {clean(turn.question, keep_newlines=True)}", "bold $text-accent")
        answer = clean(turn.answer, keep_newlines=True)
        shown = Content(answer)
        if other is not None and place == len(voice.turns) - 1:
            for begin, end in differing(answer, clean(other, keep_newlines=True)):
                shown = shown.stylize("bold underline", begin, end)
        yield shown
        if turn.problem is not None:
            for part in (turn.problem.what, turn.problem.why, turn.problem.hint):
                if part:
                    yield Content.styled(clean(part, keep_newlines=True), "$text-error")
        yield Content("")
