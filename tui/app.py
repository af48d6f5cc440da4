"""The application: opens the screens, and has the keys that work everywhere."""

from __future__ import annotations

from textual.app import App
from textual.binding import Binding
from textual.screen import Screen

from adapterhub.store import Store
from adapterhub.tui.screens.help import HelpScreen
from adapterhub.tui.screens.library import LibraryScreen


class AdapterHubApp(App[None]):
    """The terminal UI on one store."""

    TITLE = "adapterhub"
    CSS_PATH = "app.tcss"
    BINDINGS = [
        Binding(
            "question_mark",
            "help",
            "Help",
            key_display="?",
            id="app.help",
            tooltip="What is on screen, and all keys",
        ),
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Leave; the store stays as it is"),
    ]

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def get_default_screen(self) -> Screen[None]:
        return LibraryScreen(self._store)

    def action_help(self) -> None:
        """Explains the screen and the focused widget's keys."""
        self.push_screen(
            HelpScreen(list(self.screen.active_bindings.values()), str(self._store.home))
        )
