"""Help: what the focused part and the screen are for, and every key that works there, read from the bindings themselves."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from adapterhub.cli.output import clean


class HelpScreen(ModalScreen[None]):
    """Shown over the screen it explains; any of the usual keys closes it."""

    BINDINGS = [
        Binding("escape,question_mark,q,enter", "dismiss", "Close", key_display="esc"),
        Binding("j", "scroll(1)", "Down", show=False),
        Binding("k", "scroll(-1)", "Up", show=False),
    ]

    def __init__(self, abouts: tuple[str, ...], bindings: list[ActiveBinding], store: str) -> None:
        super().__init__()
        self._abouts, self._explained, self._store = abouts, bindings, store

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help") as frame:
            frame.border_title = "Help"
            frame.border_subtitle = "esc closes"
            for about in self._abouts:
                yield Static(about, markup=False, classes="about")
            yield Static(self._keys(), id="keys")
            yield Static(Content.assemble(("Store  ", "dim"), clean(self._store)))

    def action_scroll(self, lines: int) -> None:
        self.query_one("#help").scroll_relative(y=lines, animate=False)

    def _keys(self) -> Content:
        """A line for each action of ours (they have an id): all its keys, then what it does."""
        keys: dict[str, list[str]] = {}
        words: dict[str, str] = {}
        for _, binding, _, tooltip in self._explained:
            keys.setdefault(binding.action, []).append(self.app.get_key_display(binding))
            if binding.id is not None:
                words.setdefault(binding.action, tooltip or binding.description)
        shown = {action: " ".join(dict.fromkeys(keys[action])) for action in words}
        width = max(map(len, shown.values()), default=0)
        return Content("\n").join(
            Content.assemble((shown[action].ljust(width), "bold $text-accent"), "  ", word)
            for action, word in words.items()
        )
