"""The dialog that puts an adapter into the store: where it lies, what it is to be called, which base it belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester, SuggestFromList
from textual.widgets import Button, Input, Label, Static

from adapterhub.cli.output import clean
from adapterhub.errors import UsageError
from adapterhub.names import parse_name
from adapterhub.tui.hub import in_thread
from adapterhub.tui.widgets.form import Toggle


class FolderSuggester(Suggester):
    """Completes the path of a folder that is there."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        if not value or "://" in value:
            return None
        return await in_thread(complete, value)


def complete(text: str) -> str | None:
    """`text` with the rest of the first folder's or .safetensors file's name that begins so."""
    stem, slash, beginning = text.rpartition("/")
    folder = Path(f"{stem}{slash}" or ".").expanduser()
    try:
        entries = sorted(
            entry.name + ("/" if entry.is_dir() else "")
            for entry in folder.iterdir()
            if entry.name.startswith(beginning)
            and (entry.is_dir() or entry.suffix == ".safetensors")
        )
    except (OSError, RuntimeError):  # RuntimeError: no home for ~
        return None
    there = [entry for entry in entries if beginning or not entry.startswith(".")]
    return f"{stem}{slash}{there[0]}" if there else None


class AddScreen(ModalScreen[tuple[str, ...] | None]):
    """Answers with the words behind `adapterhub`, or None."""

    CSS_PATH = "../styles/library.tcss"
    AUTO_FOCUS = "#source"
    BINDINGS = [
        Binding("escape", "leave", "Leave", id="add.leave", tooltip="Add nothing"),
        Binding("ctrl+r", "add", "Add", id="add.add", tooltip="Add it"),
    ]

    def __init__(self, bases: Sequence[str]) -> None:
        super().__init__()
        self._bases = bases

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as frame:
            frame.border_title = Content("Add an adapter")
            frame.border_subtitle = Content(
                "enter or ctrl+r adds   tab next   → completes   esc leaves"
            )
            yield Label("From")
            yield Input(
                id="source",
                placeholder="a folder, a .safetensors file, or hf://org/repo[@revision][/folder]",
                suggester=FolderSuggester(),
                compact=True,
            )
            yield Label("Name")
            yield Input(
                id="name",
                placeholder="[namespace/]name[:tag]; else the folder's name",
                compact=True,
            )
            yield Label("Base")
            yield Input(
                id="base",
                placeholder="a folder or repository to check it against; may be empty",
                suggester=SuggestFromList(self._bases),
                compact=True,
            )
            yield Toggle(
                False, name="allow", text="add it although it doesn't fit (recorded)", id="allow"
            )
            yield Toggle(
                False, name="move", text="move the name if another adapter has it", id="move"
            )
            yield Static("", markup=False, classes="problem")
            yield Static("", markup=False, classes="line")
            with Horizontal(classes="buttons"):
                yield Button("Add", id="add", variant="primary", compact=True)
                yield Button("Leave", id="leave", compact=True)

    def on_mount(self) -> None:
        self._say()

    def on_input_changed(self) -> None:
        self._say()

    def on_form_changed(self) -> None:
        self._say()

    def on_input_submitted(self) -> None:
        self.action_add()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.action_add() if event.button.id == "add" else self.action_leave()

    def action_add(self) -> None:
        if self._text("source") and not self._problem():
            self.dismiss(self._words())
        elif not self._text("source"):
            self.query_one("#source").focus()

    def action_leave(self) -> None:
        self.dismiss(None)

    def _say(self) -> None:
        self.query_one(".problem", Static).update(clean(self._problem()))
        line = shlex.join(["adapterhub", *self._words()])
        self.query_one(".line", Static).update(clean(line))

    def _problem(self) -> str:
        """What is wrong with what was typed so far."""
        name = self._text("name")
        try:
            if name:
                parse_name(name)
        except UsageError as error:
            return error.what
        return ""

    def _words(self) -> tuple[str, ...]:
        source = self._text("source")
        if source.startswith("~"):  # a shell would have done it
            source = str(Path(source).expanduser())
        if source.startswith("-"):  # a folder, no option
            source = f"./{source}"
        words = ["add", source or "FOLDER"]
        for option in ("name", "base"):
            if text := self._text(option):
                words += [f"--{option}", text]
        for box, flag in (("allow", "--allow-mismatch"), ("move", "--move")):
            if self.query_one(f"#{box}", Toggle).value:
                words.append(flag)
        return tuple(words)

    def _text(self, field: str) -> str:
        return self.query_one(f"#{field}", Input).value.strip()
