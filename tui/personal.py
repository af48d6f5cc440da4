"""What a person may choose: colours, keys, and whether the terminal gets more than ASCII."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from textual import work
from textual.app import App
from textual.filter import LineFilter
from textual.theme import Theme

from adapterhub.errors import AdapterHubError
from adapterhub.tui.ascii import Ascii, speaks_ascii_only
from adapterhub.tui.hub import Hub, in_thread
from adapterhub.tui.legible import LegibleDim
from adapterhub.tui.problem import Problem
from adapterhub.tui.themes import DEFAULT, HIGH_CONTRAST, THEMES

_REMEMBERED = "theme"


@dataclass(frozen=True)
class Choices:
    """What was chosen, in config.toml, the environment, or the last time."""

    theme: str = DEFAULT
    keys: Mapping[str, str] = field(default_factory=dict)
    ascii_only: bool = False
    problem: str = ""
    """What is wrong with config.toml."""


def read_choices(hub: Hub, environment: Mapping[str, str] = os.environ) -> Choices:
    """The choices for this store and terminal. An error in config.toml is told on the screen; it keeps nobody out."""
    theme, keys, problem = None, {}, ""
    try:
        settings = hub.store.settings.tui
        theme, keys = settings.theme, settings.keys
    except (AdapterHubError, OSError) as error:
        problem = str(Problem.of(error))
    chosen = environment.get("TEXTUAL_THEME") or theme or hub.memory.get(_REMEMBERED, DEFAULT)
    return Choices(chosen, keys, speaks_ascii_only(environment), problem)


class PersonalApp(App[None]):
    """An application in the colours and with the keys that were chosen."""

    def __init__(self, hub: Hub, choices: Choices | None = None) -> None:
        super().__init__()
        self.hub = hub
        self._choices = choices or Choices()
        self._ascii = Ascii(enabled=self._choices.ascii_only)
        self._dims = LegibleDim(4.5), LegibleDim(7)
        self._kept_theme = ""
        for theme in THEMES:
            self.register_theme(theme)
        if self.get_theme(self._choices.theme) is not None:
            self.theme = self._choices.theme
        else:
            self.theme = DEFAULT

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What every drawn line goes through on its way to the terminal."""
        filters = super().get_line_filters()
        last = [self._ascii] if self._ascii.enabled else []
        return [self._dims[self.theme in HIGH_CONTRAST], *filters, *last]

    def on_mount(self) -> None:
        self._kept_theme = self.theme
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        if self._choices.keys:
            self.call_after_refresh(self._use_keys)
        if self._choices.problem:
            self._complain(self._choices.problem)
        if self.get_theme(self._choices.theme) is None:
            self._complain(f"There is no theme called {self._choices.theme}.")

    @work(group="theme")
    async def _keep_theme(self, theme: Theme) -> None:
        """Remembers the theme for the next time."""
        if theme.name != self._kept_theme and not self.hub.readonly:
            self._kept_theme = theme.name
            await in_thread(self.hub.memory.set, _REMEMBERED, theme.name)

    @work(group="keys")
    async def _use_keys(self) -> None:
        """Puts keys where they were wished; what can't be is told. All screens are looked at, so not before the first paint."""
        from adapterhub.tui.keymap import check

        granted, complaints = await in_thread(check, self._choices.keys)
        self.set_keymap(granted)
        if complaints:
            self._complain("\n".join(complaints))

    def _complain(self, text: str) -> None:
        self.notify(text, title="config.toml", severity="warning", markup=False, timeout=10)
