"""The command palette: every action that a key does here, and every place, found by a few letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from adapterhub.tui.places import PLACES

if TYPE_CHECKING:
    from adapterhub.tui.app import AdapterHubApp

_MOVES = ("up", "down", "top", "bottom", "page_up", "page_down")
"""How the ids of keys end that move the cursor."""


class Actions(Provider):
    """What can be done on the screen that the palette was opened over, with its key."""

    async def discover(self) -> Hits:
        for name, about, run in self._commands(moves=False):
            yield DiscoveryHit(name, run, help=about)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, about, run in self._commands():
            score = max(matcher.match(name), matcher.match(about) / 2)
            if score > 0:
                yield Hit(score, matcher.highlight(name), run, help=about)

    def _commands(self, *, moves: bool = True) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """Label with its key, what it does, and what does it. Without `moves`, not what only moves the cursor."""
        app = cast("AdapterHubApp", self.app)
        told: set[str] = set()
        for node, binding, enabled, tooltip in self.screen.active_bindings.values():
            if binding.id is None or not enabled or binding.action in told or binding.system:
                continue
            told.add(binding.action)
            if not moves and binding.id.rpartition(".")[2] in _MOVES:
                continue
            key = app.get_key_display(binding)

            async def run(action: str = binding.action, node: Any = node) -> None:
                await app.run_action(action, node)

            yield f"{binding.description} ({key})", tooltip, run
        for place in PLACES:
            yield f"Go to {place.title} ({place.key})", place.about, self._going(app, place.id)

    @staticmethod
    def _going(app: AdapterHubApp, place: str) -> Callable[[], Any]:
        async def go() -> None:
            await app.go(place)

        return go
