"""How Compare and Merge look, as SVG, at the two sizes that count and in light and dark.

After an intended change: pytest tests/tui/test_snapshots_merge.py --snapshot-update, then look at the pictures.
"""

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens.compare import CompareScreen
from adapterhub.tui.screens.merge import MergeScreen
from tests.support.screen import USUAL, WIDE, settled, until

pytest.importorskip("torch")

LOOKS = [
    pytest.param(size, f"textual-{theme}", id=f"{size[0]}x{size[1]}-{theme}")
    for size in (USUAL, WIDE)
    for theme in ("dark", "light")
]
Looks = Callable[..., bool]


@pytest.fixture
def looks(snap_compare: Callable[..., bool]) -> Looks:
    """Whether a screen opened on top of the library looks as it did, after `keys`."""

    def compare(
        app: AdapterHubApp, size: tuple[int, int], theme: str, what: str, given: Any, *keys: str
    ) -> bool:
        async def open_it(pilot: Pilot[Any]) -> None:
            app.theme = theme
            app.visit(what, **given)
            await pilot.pause()
            await until(lambda: _answered(app), pilot)
            await settled(pilot)
            for key in keys:
                await pilot.press(key)
            await until(lambda: _answered(app), pilot)
            await settled(pilot)

        return snap_compare(app, terminal_size=size, run_before=open_it)

    return compare


def _answered(app: AdapterHubApp) -> bool:
    screen = app.screen
    if isinstance(screen, CompareScreen):
        return screen.state.found is not None
    assert isinstance(screen, MergeScreen)
    return not screen._answering and screen.state.estimated == screen.state.plan


@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_compare(app: AdapterHubApp, looks: Looks, size: tuple[int, int], theme: str) -> None:
    names = ("support/tone", "legal/terms", "desk/both")
    assert looks(app, size, theme, "compare", {"names": names}, "down", "right_square_bracket")


@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_merge(app: AdapterHubApp, looks: Looks, size: tuple[int, int], theme: str) -> None:
    given = {"method": "task_arithmetic", "rank": "6", "name": "desk/both"}
    asked = {"names": ("support/tone", "legal/terms"), "given": given}
    assert looks(app, size, theme, "merge", asked, "down", "shift+left")
