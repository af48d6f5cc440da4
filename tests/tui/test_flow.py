"""From an empty store to an exported model, with nothing but keys; and what a store can do to an open screen."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from safetensors import safe_open
from textual.pilot import Pilot

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens.add import AddScreen
from adapterhub.tui.screens.compare import CompareScreen
from adapterhub.tui.screens.export import ExportScreen
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.screens.merge import MergeScreen
from tests.cli.calling import call
from tests.support.adapters import AdapterMaker
from tests.support.screen import names, open_app, settled, shown, until


async def typed(pilot: Pilot[None], text: str) -> None:
    """Every character as the key that a keyboard sends."""
    keys = {"/": "slash", "-": "minus", "_": "underscore", ".": "full_stop", ":": "colon"}
    await pilot.press(*(keys.get(letter, letter) for letter in text))


async def on(pilot: Pilot[None], screen: type) -> None:
    """Waits until that screen stands. Not for all workers: one waits for the dialog's answer."""
    await until(lambda: isinstance(pilot.app.screen, screen), pilot, 60)
    await pilot.pause(0.3)


@pytest.mark.slow
async def test_add_compare_merge_and_export_with_nothing_but_keys(
    make_adapter: AdapterMaker, tiny_llama: Path, tmp_path: Path
) -> None:
    store = Store.open(tmp_path / "home")
    assert call("base", "add", tiny_llama, "--repo", "org/tiny").code == 0
    folders = [make_adapter(f"lora-{seed}", seed=seed) for seed in (1, 2)]
    app = open_app(store)
    async with app.run_test(size=(120, 40)) as pilot:
        await on(pilot, LibraryScreen)
        await until(lambda: "empty" in shown(app, "#instead"), pilot)
        for place, folder in enumerate(folders):
            await pilot.press("a")
            await on(pilot, AddScreen)
            await typed(pilot, str(folder))
            await pilot.press("tab")
            await typed(pilot, f"hall/{'ab'[place]}")
            await pilot.press("enter")
            await on(pilot, LibraryScreen)
            expected = [f"hall/{letter}" for letter in "ab"[: place + 1]]
            await until(partial(_are, app, expected), pilot, 90)
        await pilot.press("g", "space", "j", "space", "c")
        await on(pilot, CompareScreen)
        await until(lambda: "adapterhub merge" in _drawn(app), pilot, 60)
        await pilot.press("m")
        await on(pilot, MergeScreen)
        await pilot.press("ctrl+r")
        await on(pilot, LibraryScreen)
        await until(lambda: len(names(app)) == 3, pilot, 90)
        merged = next(name for name in names(app) if name not in ("hall/a", "hall/b"))
        library = app.screen
        assert isinstance(library, LibraryScreen)
        await until(lambda: library.state.selected.startswith(merged), pilot)
        await pilot.press("escape", "escape", "e")
        await on(pilot, ExportScreen)
        await pilot.press("ctrl+u")
        await typed(pilot, str(tmp_path / "model"))
        await settled(pilot)
        await pilot.press("ctrl+r")
        export = app.screen
        assert isinstance(export, ExportScreen)
        await until(lambda: export.state.run is not None and not export.state.running, pilot, 120)
        assert export.state.run is not None
        assert export.state.run.state == "done"
        await until(lambda: not app.running_jobs, pilot, 60)
    with safe_open(tmp_path / "model" / "model.safetensors", "numpy") as written:
        assert len(list(written.keys())) > 5


def _are(app: AdapterHubApp, expected: list[str]) -> bool:
    return names(app) == expected


def _drawn(app: AdapterHubApp) -> str:
    """Everything on the screen, line by line."""
    width, height = app.size
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in lines[:height])[
        : width * height * 2
    ]


async def test_a_storm_of_sizes_leaves_every_place_standing(app: AdapterHubApp) -> None:
    async with app.run_test(size=(140, 45)) as pilot:
        await settled(pilot)
        for key in "12345":
            await pilot.press(key)
            await settled(pilot)
            for size in ((80, 24), (20, 5), (200, 60), (1, 1), (110, 30), (40, 10), (140, 45)):
                await pilot.resize_terminal(*size)
            await settled(pilot)
            assert app.is_running
        assert "History" in _drawn(app)


async def test_a_store_that_is_deleted_and_made_again_is_followed(
    app: AdapterHubApp, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.tui.screens.base.POLL_SECONDS", 0.05)
    away = home.with_name("away")
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        before = names(app)
        assert before
        await asyncio.to_thread(home.rename, away)
        await until(lambda: names(app) == [], pilot)
        for key in "2345":
            await pilot.press(key)
            await settled(pilot)
        await pilot.press("1")
        await asyncio.to_thread(away.rename, home)
        await until(lambda: names(app) == before, pilot)


async def test_names_that_come_and_go_while_another_place_is_looked_at(
    app: AdapterHubApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.tui.screens.base.POLL_SECONDS", 0.05)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        before = names(app)
        await pilot.press("5")
        await settled(pilot)
        store.remove([parse_name(before[0])])
        await pilot.press("1")
        await until(lambda: names(app) == before[1:], pilot)
