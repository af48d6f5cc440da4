"""The editor of a recipe: plain YAML with its comments quiet, its keys strong, and the line with a problem marked."""

from __future__ import annotations

import re
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import TextArea

from adapterhub.cli.output import clean

_KEY = re.compile(r"\s*(?:- )?[\w.]+(?=:(?:\s|$))")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


class RecipeEditor(TextArea):
    """A text area. Tab leaves it forwards and escape back to the list, as YAML has no use for tabs."""

    HELP = (
        "The recipe's text. It is checked while you type; the lines below say what is wrong and where, and what the key "
        "under the cursor means. ctrl+z takes back, ctrl+y does again."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "List", show=False, id="editor.leave", tooltip="Back to the list of recipes"),
    ]  # fmt: skip

    problem_line: reactive[int | None] = reactive(None)

    class Left(Message):
        """The user wants the list."""

    def __init__(self) -> None:
        super().__init__(
            "", soft_wrap=False, show_line_numbers=True, tab_behavior="focus", id="editor"
        )
        self.cursor_blink = False

    def get_line(self, line_index: int) -> Text:
        raw = self.document.get_line(line_index)
        # As many characters as before, so that the cursor is where it seems to be.
        line = Text(
            "".join(c if c == "\t" or clean(c) == c else "\ufffd" for c in raw),
            end="",
            no_wrap=True,
        )
        line.highlight_regex(_KEY, "bold")
        comment = _COMMENT.search(raw)
        if comment is not None:
            line.stylize("dim not bold", comment.start())
        if line_index == self.problem_line:
            line.stylize(
                "underline", len(raw) - len(raw.lstrip()), comment.start() if comment else len(raw)
            )
        return line

    def watch_problem_line(self) -> None:
        self.notify_style_update()
        self.refresh()

    def action_leave(self) -> None:
        self.post_message(self.Left())
