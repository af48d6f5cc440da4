"""How the export screen and jump mode look, at the two sizes that count, dark and light.

After an intended change: pytest tests/tui/test_snapshots_export.py --snapshot-update, then look at the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.store import Store
from adapterhub.tui.screens.export import ExportScreen
from tests.support.screen import open_app, settled

SIZES = [pytest.param((80, 24), id="80x24"), pytest.param((140, 45), id="140x45")]
THEMES = [pytest.param("textual-dark", id="dark"), pytest.param("textual-light", id="light")]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_the_export_form(
    store: Store,
    snap_compare: Callable[..., bool],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    size: tuple[int, int],
    theme: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    app = open_app(store)
    app.theme = theme

    async def show(pilot: Pilot[Any]) -> None:
        await settled(pilot)
        app.visit("export", names=("support/tone", "legal/terms"))
        await pilot.pause(0.4)
        await settled(pilot)
        assert isinstance(app.screen, ExportScreen)

    assert snap_compare(app, terminal_size=size, run_before=show)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_jump_mode(
    store: Store, snap_compare: Callable[..., bool], size: tuple[int, int], theme: str
) -> None:
    app = open_app(store)
    app.theme = theme

    async def show(pilot: Pilot[Any]) -> None:
        await settled(pilot)
        await pilot.press("ctrl+o")
        await settled(pilot)

    assert snap_compare(app, terminal_size=size, run_before=show)
