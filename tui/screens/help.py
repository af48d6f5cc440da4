"""Help: what is on the screen, and every key that works where the user was, read from the bindings themselves."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from adapterhub.cli.output import clean

_ABOUT = """\
The list holds every name in the store; the pane beside or below it says everything known about the one under the cursor. \
Type / and a few words to narrow the list: each must occur in a name, base, kind or target. \
Nothing here changes the store. What the commands add or remove while this is open appears by itself."""


class HelpScreen(ModalScreen[None]):
    """Shown over the screen it explains; any of the usual keys closes it."""

    BINDINGS = [Binding("escape,question_mark,q,enter", "dismiss", "Close", key_display="esc")]

    def __init__(self, bindings: list[ActiveBinding], store: str) -> None:
        super().__init__()
        self._explained = bindings
        self._store = store

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as frame:
            frame.border_title = "Help"
            frame.border_subtitle = "esc closes"
            yield Static(_ABOUT, markup=False)
            yield Static(self._keys(), id="keys")
            yield Static(Content.assemble(("Store  ", "dim"), clean(self._store)))

    def _keys(self) -> Content:
        """A line for each action of ours (they have an id): all its keys, then what it does."""
        keys: dict[str, list[str]] = {}
        words: dict[str, str] = {}
        for _, binding, _, tooltip in self._explained:
            keys.setdefault(binding.action, []).append(self.app.get_key_display(binding))
            if binding.id is not None:
                words.setdefault(binding.action, tooltip)
        shown = {action: " ".join(dict.fromkeys(keys[action])) for action in words}
        width = max(map(len, shown.values()), default=0)
        return Content("\n").join(
            Content.assemble((shown[action].ljust(width), "bold $text-accent"), "  ", word)
            for action, word in words.items()
        )
