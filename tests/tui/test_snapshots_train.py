"""How the train and training screens look, as SVG, at the two sizes that count, dark and light.

After an intended change: pytest tests/tui/test_snapshots_train.py --snapshot-update, then look at the pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.runs import Run
from adapterhub.store import Store
from adapterhub.trainer.shelf import preset_text
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens.training import TrainingScreen
from adapterhub.tui.widgets.recipe_editor import RecipeEditor
from tests.support import trainings
from tests.support.screen import open_app, settled, until

Looks = Callable[..., bool]
LOOKS = [
    pytest.param((80, 24), "textual-dark", id="80x24-dark"),
    pytest.param((80, 24), "textual-light", id="80x24-light"),
    pytest.param((140, 45), "textual-dark", id="140x45-dark"),
    pytest.param((140, 45), "textual-light", id="140x45-light"),
]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterHubApp:
    """Started in a folder with one recipe, on a store with one former training."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "tone.yaml").write_text(preset_text("quick"))
    monkeypatch.chdir(folder)
    store = Store.open(tmp_path / "home")
    fixed(trainings.finished(store.runs_dir, "legal/terms"), "train-20260101-120000-abcdef")
    return open_app(store)


def fixed(run: Run, name: str) -> None:
    """The run under a name that doesn't depend on the day."""
    shutil.move(run.path, run.path.with_name(name))


async def at_train(app: AdapterHubApp, pilot: Pilot[Any]) -> None:
    await app.go("train")
    await settled(pilot)
    await settled(pilot)


@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_the_recipes(
    app: AdapterHubApp, snap_compare: Looks, size: tuple[int, int], theme: str
) -> None:
    async def before(pilot: Pilot[Any]) -> None:
        app.theme = theme
        await at_train(app, pilot)

    assert snap_compare(app, terminal_size=size, run_before=before)


@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_a_recipe_with_a_problem(
    app: AdapterHubApp, snap_compare: Looks, size: tuple[int, int], theme: str
) -> None:
    async def before(pilot: Pilot[Any]) -> None:
        app.theme = theme
        await at_train(app, pilot)
        await pilot.press("enter")
        await settled(pilot)
        editor = app.screen.query_one(RecipeEditor)
        editor.text = editor.text.replace("rank: 8", "rnak: 8")
        editor.move_cursor((9, 4))
        await settled(pilot)

    assert snap_compare(app, terminal_size=size, run_before=before)


@pytest.mark.parametrize(("size", "theme"), LOOKS)
def test_two_trainings(
    app: AdapterHubApp, snap_compare: Looks, size: tuple[int, int], theme: str
) -> None:
    runs = app.hub.store.runs_dir
    fixed(trainings.finished(runs), "train-20260102-120000-abcdef")
    died = trainings.begun(runs, "support/other")
    trainings.take(died, 1, 25, grad_norm=2.0)
    fixed(died, "train-20260103-120000-abcdef")

    async def before(pilot: Pilot[Any]) -> None:
        app.theme = theme
        await at_train(app, pilot)
        app.visit("training", runs=("train-20260102-120000-abcdef", "train-20260103-120000-abcdef"))
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, TrainingScreen)
        await until(lambda: bool(screen.watched), pilot)
        await pilot.press("w", "n", *["left"] * 20)
        await settled(pilot)

    assert snap_compare(app, terminal_size=size, run_before=before)
