"""The export screen: what it says before, that it does what its command line says, and what it says after."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from adapterhub.runs import Progress, Run, RunRecord, read_run
from adapterhub.store import Store
from adapterhub.tui.exporting.model import State, Wanted
from adapterhub.tui.exporting.words import sections
from adapterhub.tui.screens.export import ExportScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.form import Text
from tests.cli.calling import call
from tests.support.adapters import AdapterMaker
from tests.support.screen import open_app, settled, shown, until


@pytest.fixture
def names(store: Store, make_adapter: AdapterMaker, tiny_llama: Path) -> tuple[str, str]:
    """Two adapters of a tiny base that the store knows."""
    assert call("base", "add", tiny_llama, "--repo", "org/tiny").code == 0
    for seed, name in enumerate(("hall/one", "hall/two")):
        store.add_folder(make_adapter(name.replace("/", "-"), seed=seed), name=name)
    return "hall/one", "hall/two"


async def opened(pilot: Pilot[None], names: tuple[str, ...], folder: Path) -> ExportScreen:
    await settled(pilot)
    pilot.app.visit("export", names=names)  # type: ignore[attr-defined]
    await settled(pilot)
    screen = pilot.app.screen
    assert isinstance(screen, ExportScreen)
    await write(pilot, "folder", str(folder))
    return screen


async def write(pilot: Pilot[None], field: str, text: str) -> None:
    pilot.app.screen.query_one(f"#{field}", Text).value = text
    await pilot.pause(0.3)
    await settled(pilot)


async def ended(pilot: Pilot[None], screen: ExportScreen) -> None:
    """Waits until the run has ended, and its process too."""
    await until(lambda: screen.state.run is not None and not screen.state.running, pilot, 120)
    await until(lambda: not pilot.app.running_jobs, pilot, 60)  # type: ignore[attr-defined]
    await settled(pilot)


def said(screen: ExportScreen) -> str:
    return " ".join(str(screen.query_one("#found Sections", Sections).render()).split())


def test_only_what_differs_is_in_the_command() -> None:
    assert Wanted(("a",), "model").words() == ["export", "a", "--output=model"]
    wanted = Wanted(
        ("a", "b"), "-o x", base="org/b", view="trained", quantize="gptq", calibration="r.jsonl",
        method="ties", weights="-1,2", verify="all", overwrite=True, resume=True,
    )  # fmt: skip
    assert wanted.words() == [
        "export", "a", "b", "--output=-o x", "--base=org/b", "--base-view=trained", "--quantize=gptq",
        "--calibration=r.jsonl", "--method=ties", "--weights=-1,2", "--verify-all", "--overwrite", "--resume",
    ]  # fmt: skip
    alone = Wanted(("a",), "m", calibration="r.jsonl", method="ties", weights="1")
    assert alone.words() == ["export", "a", "--output=m"], "what isn't asked for isn't said"


async def test_it_says_what_would_be_written_and_what_is_wrong_in_the_command_lines_words(
    store: Store, names: tuple[str, str], tmp_path: Path
) -> None:
    app = open_app(store)
    async with app.run_test(size=(100, 40)) as pilot:
        screen = await opened(pilot, names[:1], tmp_path / "model")
        assert "writes" in said(screen)
        assert "free" in said(screen)
        line = shlex.split(shown(app, "#line"))
        assert line == ["adapterhub", "export", "hall/one", f"--output={tmp_path / 'model'}"]
        await write(pilot, "folder", str(tmp_path))
        assert "lies there" in said(screen)
        await write(pilot, "folder", "")
        assert "No folder is named." in said(screen)
        assert screen.state.run is None


def test_verifying_is_told_in_words_as_it_has_no_bytes(tmp_path: Path) -> None:
    def told(progress: Progress) -> list[str]:
        run = record(tmp_path, progress)
        state = State(Wanted(("a",)), run=run, speed=0.0, left=0.0)
        return [fact.text for section in sections(state) for fact in section.facts]

    assert told(Progress("Verifying model", 9, 9, "bytes")) == ["under way", "Verifying model …"]
    assert "0 B/s" in told(Progress("Writing model", 3, 9, "bytes"))


def record(path: Path, progress: Progress) -> RunRecord:
    """A run of an export that is under way."""
    return replace(
        read_run(Run.create(path, "export", {}).path), state="running", progress=progress
    )


@pytest.mark.slow
async def test_two_are_merged_on_the_way_and_the_check_is_told(
    store: Store, names: tuple[str, str], tmp_path: Path
) -> None:
    app = open_app(store)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(pilot, names, tmp_path / "model")
        assert screen.state.estimate is not None, said(screen)
        await pilot.press("ctrl+r")
        await ended(pilot, screen)
        told = said(screen)
        assert screen.state.run is not None
        assert screen.state.run.state == "done", told
        assert "changed tensors are right" in told
        assert "bake loss" in told
        assert "logits" in told
        written = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
        assert screen.state.result["size"] == written


@pytest.mark.slow
async def test_an_export_that_is_stopped_leaves_no_model(
    store: Store, names: tuple[str, str], tmp_path: Path
) -> None:
    app = open_app(store)
    async with app.run_test(size=(100, 30)) as pilot:
        screen = await opened(pilot, names[:1], tmp_path / "model")
        await pilot.press("ctrl+r")
        await until(lambda: screen.state.running, pilot, 60)
        await pilot.pause()
        assert {"stop", "logs"} <= {
            one.binding.action for one in screen.active_bindings.values() if one.enabled
        }
        await pilot.press("x")
        await until(lambda: app.screen is not screen, pilot)
        await pilot.press("y")
        await ended(pilot, screen)
        assert screen.state.run is not None
        assert screen.state.run.state == "interrupted"
        assert not (tmp_path / "model").exists()


async def test_looking_only_offers_no_export(store: Store, names: tuple[str, str]) -> None:
    from adapterhub.tui.app import AdapterHubApp
    from adapterhub.tui.hub import Hub

    app = AdapterHubApp(Hub.of(store, readonly=True))
    async with app.run_test() as pilot:
        await settled(pilot)
        app.visit("export", names=names[:1])
        await settled(pilot)
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert isinstance(app.screen, ExportScreen)
        assert app.screen.state.run is None
        assert not list(store.runs_dir.glob("export-*"))
