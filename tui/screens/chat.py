"""The chat playground: one prompt to the base, adapters and merges side by side, answers as they are written.

`playground` is all there is to know. Answers come in threads, piece by piece; a timer draws what has come.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, HorizontalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Input, Label, Static

from adapterhub.cli.output import clean
from adapterhub.tui.chatting import sources
from adapterhub.tui.chatting.state import BASE, Options, Playground, Turn, Voice
from adapterhub.tui.hub import Hub, in_thread
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.voice_column import VoiceColumn

if TYPE_CHECKING:
    from adapterhub.tui.chatting.sources import Source

DRAW_SECONDS = 0.1
LEAST_WIDTH = 34
"""Of a column, in cells."""
MOST_TOKENS = 100_000


class ChatScreen(HubScreen):
    """Several are asked the same, and answer beside each other."""

    ABOUT = (
        "What you type is asked of every column at once, and each keeps a conversation of its own. They are asked through a"
        " running server where one serves them all; else transformers loads their base, once for all, in a process that ends,"
        " and frees its memory, when you leave. `base` is the base alone."
    )
    CSS_PATH = "../styles/chat.tcss"
    AUTO_FOCUS = "#prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Stop, back", key_display="esc", id="chat.stop", tooltip="Stop the answers; where none is written, go back"),
        Binding("ctrl+n", "forget", "New", id="chat.new", tooltip="Begin all conversations anew"),
        Binding("ctrl+g", "mark", "Differences", id="chat.mark", tooltip="Mark words that the first column's answer hasn't got"),
        Binding("ctrl+y", "copy_answer", "Copy", id="chat.copy", tooltip="Copy the last answer of this column, or of the first"),
        Binding("ctrl+t", "switch", "Server/here", show=False, id="chat.source", tooltip="Ask transformers here although a server could be asked, or the server again"),
        Binding("a", "add", "Add", show=False, id="chat.add", tooltip="One more column"),
        Binding("b", "base", "Base", show=False, id="chat.base", tooltip="Name the base, where the adapters don't say it"),
        Binding("d", "remove", "Remove", show=False, id="chat.remove", tooltip="Take this column away"),
    ]  # fmt: skip

    playground: reactive[Playground] = reactive(Playground())
    about: reactive[str] = reactive("")

    def __init__(self, hub: Hub, names: Sequence[str] = ()) -> None:
        super().__init__(hub)
        voices = tuple(Voice(name) for name in dict.fromkeys(names or (BASE,)))
        self.set_reactive(ChatScreen.playground, Playground(voices))
        self._source: Source | None = None
        self._here = False
        self._base: str | None = None
        self._halted = Event()
        self._heard: dict[str, list[str]] = {}

    def body(self) -> ComposeResult:
        yield Static(id="about", markup=False)
        with HorizontalScroll(id="voices") as voices:
            voices.can_focus = False
            for voice in self.playground.voices:
                yield VoiceColumn(voice)
        with Horizontal(id="options"):
            yield Label("system")
            yield Input(id="system", placeholder="said first, to all", compact=True)
            yield Label("max tokens")
            yield Input("256", id="max_tokens", compact=True)
            yield Label("temperature")
            yield Input("0", id="temperature", compact=True)
        with Horizontal(id="asking", classes="panel") as asking:
            asking.border_title = Content("Ask all of them")
            yield Input(id="prompt", placeholder="enter asks, escape stops", compact=True)

    def on_mount(self) -> None:
        self.set_interval(DRAW_SECONDS, self._draw_heard)
        self.find_source()

    async def on_unmount(self) -> None:
        self._halted.set()
        if self._source is not None:
            await in_thread(self._source.close)

    def command_line(self) -> str:
        try:
            options = self._options()
        except ValueError:
            options = Options()
        turns = [turn for voice in self.playground.voices for turn in voice.turns]
        words = ["--prompt", turns[-1].question if turns else "..."]
        words += ["--system", options.system] if options.system else []
        words += [] if options.max_tokens == Options().max_tokens else ["--max-tokens", str(options.max_tokens)]  # fmt: skip
        words += ["--temperature", f"{options.temperature:g}"] if options.temperature else []
        if isinstance(self._source, sources.ServerSource):
            server = self._source.speakers.server
            name = self._here_or_first().name
            return shlex.join(["adapterhub", "server", "chat", name, *words, "--server", server.port])  # fmt: skip
        words = ["--base", self._base, *words] if self._base else words
        return shlex.join(["adapterhub", "chat", *self.playground.names, *words])

    # Who answers

    @work(exclusive=True, group="source")
    async def find_source(self) -> None:
        """Looks for a server that serves everybody; says what it takes where there is none."""
        self.about = "Looking for a server …"
        await self._found()

    async def _found(self) -> Source | None:
        names = self.playground.names
        if self._source is not None:
            await self.ask(self._source.close)
            self._source = None
        try:
            source = await self.ask(
                sources.find,
                self.hub.store,
                names,
                self._tell,
                here=self._here,
                base=self._base,
            )
        except Exception as error:  # noqa: BLE001 - told, and the screen goes on
            self.about = f"! {Problem.of(error)}"
            return None
        if names != self.playground.names:
            return None
        self._source = source
        self.about = source.about
        return source

    def _tell(self, text: str) -> None:
        """Called in the thread that loads."""
        if self.app.is_running:
            self.app.call_later(setattr, self, "about", text)

    # Asking

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if event.input.id != "prompt":
            self.query_one("#prompt").focus()
            return
        question = event.value
        if not question.strip() or self.playground.busy:
            return
        try:
            options = self._options()
        except ValueError as error:
            self.notify(str(error), title="Not asked", severity="warning", markup=False)
            return
        event.input.value = ""
        self._halted.clear()
        self._heard = {name: [] for name in self.playground.names}
        self.playground = self.playground.asked(question)
        self.answer_all(options)

    def _options(self) -> Options:
        """As they are typed. ValueError, in words, where one is no number."""
        length, warmth = (self.query_one(f"#{field}", Input).value.strip() for field in ("max_tokens", "temperature"))  # fmt: skip
        if not length.isdecimal() or not 1 <= int(length[:9]) <= MOST_TOKENS:
            raise ValueError(f"max tokens: '{length}' is no whole number from 1 to {MOST_TOKENS}.")
        try:
            temperature = float(warmth or "0")
        except ValueError:
            temperature = -1.0
        if not 0 <= temperature <= 10:
            raise ValueError(f"temperature: '{warmth}' is no number from 0 to 10.")
        return Options(self.query_one("#system", Input).value.strip(), int(length), temperature)

    @work(exclusive=True, group="answers")
    async def answer_all(self, options: Options) -> None:
        """Asks everybody: all at once where the source can, else one after the other."""
        source = self._source or await self._found()
        names = self.playground.names
        if source is None:
            for name in names:
                self._finish(name, problem=Problem(self.about.removeprefix("! ")))
        elif source.together:
            await asyncio.gather(*(self._answer(source, name, options) for name in names))
        else:
            for name in names:
                await self._answer(source, name, options)

    async def _answer(self, source: Source, name: str, options: Options) -> None:
        if self._halted.is_set():
            self._finish(name, ended="halted")
            return
        turns, heard = self.playground.by_name[name].said(options.system), self._heard[name]
        try:
            found = await self.ask(source.answer, name, turns, options, heard.append, self._halted)
        except Exception as error:  # noqa: BLE001 - told in the column, and the others go on
            ended = "halted" if self._halted.is_set() else "failed"
            self._finish(name, ended=ended, problem=None if self._halted.is_set() else Problem.of(error))  # fmt: skip
            return
        self._finish(name, ended=found.ended, seconds=found.seconds, tokens=found.tokens)

    def _finish(
        self,
        name: str,
        *,
        ended: str = "failed",
        seconds: float = 0.0,
        tokens: int | None = None,
        problem: Problem | None = None,
    ) -> None:
        """An answer is over, however it ended."""
        voice = self.playground.by_name.get(name)
        if voice is not None and voice.last is not None:
            text = "".join(self._heard.get(name, ()))
            turn = Turn(voice.last.question, text, ended, seconds, tokens, problem)
            self.playground = self.playground.told(name, turn)

    def _draw_heard(self) -> None:
        """Takes over what was heard since the last time."""
        for voice in self.playground.voices:
            last = voice.last
            if last is not None and not last.ended:
                text = "".join(self._heard.get(voice.name, ()))
                if text != last.answer:
                    self.playground = self.playground.told(voice.name, replace(last, answer=text))

    # What the user does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Columns are changed while nobody answers."""
        if action in ("add", "remove", "base", "switch", "forget") and self.playground.busy:
            return False
        if action == "remove":
            return isinstance(self.focused, VoiceColumn) and len(self.playground.voices) > 1
        return super().check_action(action, parameters)

    def action_back(self) -> None:
        if self.playground.busy and not self._halted.is_set():
            self._halted.set()
            if self._source is not None:
                self._source.halt()
        else:
            self.dismiss()

    def action_forget(self) -> None:
        self.playground = self.playground.forgotten()

    def action_mark(self) -> None:
        self.playground = replace(self.playground, marked=not self.playground.marked)

    def action_switch(self) -> None:
        self._here = not self._here
        self.find_source()

    def action_copy_answer(self) -> None:
        voice = self._here_or_first()
        if voice.last is not None and voice.last.answer:
            self.app.copy_to_clipboard(voice.last.answer)
            self.notify(f"The answer of {clean(voice.name)}", title="Copied", markup=False)

    @work(group="columns")
    async def action_add(self) -> None:
        from adapterhub.tui.serving.changing import pick

        name = await pick(self, self.playground.names, more=(BASE,))
        if name is not None and name not in self.playground.names:
            voice = Voice(name)
            self.playground = replace(self.playground, voices=(*self.playground.voices, voice))
            await self.query_one("#voices").mount(VoiceColumn(voice))
            self._lay_out()
            self._columns_changed()

    @work(group="columns")
    async def action_base(self) -> None:
        said = await self.ask_text(
            "Which base?", value=self._base or "", hint="folder or repository"
        )
        if said:
            self._base = said.strip()
            self.find_source()

    @work(group="columns")
    async def action_remove(self) -> None:
        column = self.focused
        if isinstance(column, VoiceColumn):
            left = tuple(
                voice for voice in self.playground.voices if voice.name != column.voice.name
            )
            await column.remove()
            self._lay_out()
            self.playground = replace(self.playground, voices=left)
            self._columns_changed()

    def _columns_changed(self) -> None:
        """Others are asked from now on. A base that is loaded already answers for them too."""
        if not (isinstance(self._source, sources.LocalSource) and self._source.started):
            self.find_source()

    def _here_or_first(self) -> Voice:
        column = self.focused
        name = column.voice.name if isinstance(column, VoiceColumn) else self.playground.names[0]
        return self.playground.by_name[name]

    # How it is drawn

    def on_resize(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        """As many columns side by side as can be read; to the others one scrolls, or goes with tab."""
        columns = list(self.query(VoiceColumn))
        width = self.size.width
        fitting = max(1, min(len(columns), width // LEAST_WIDTH))
        for place, column in enumerate(columns):
            spare = width % fitting if (place + 1) % fitting == 0 else 0
            column.styles.width = width // fitting + spare

    def watch_about(self, about: str) -> None:
        if self.is_mounted:
            self.query_one("#about", Static).update(clean(about, keep_newlines=True))

    def watch_playground(self, before: Playground, now: Playground) -> None:
        if not self.is_mounted:
            return
        first = now.voices[0].last if now.voices else None
        for column in self.query(VoiceColumn):
            voice = now.by_name.get(column.voice.name)
            if voice is None:
                continue
            marked = now.marked and first is not None and voice.name != now.names[0]
            other = first.answer if marked and first is not None else None
            if voice is not before.by_name.get(voice.name) or now.marked or before.marked:
                column.show(voice, other)
        self.refresh_bindings()
