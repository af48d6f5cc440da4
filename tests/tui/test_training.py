"""The training screen: events as curves and figures while they come, several runs, and how one that stopped is told."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static, TabbedContent

from adapterhub.runs import Run
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens.pick import PickScreen
from adapterhub.tui.screens.training import TrainingScreen
from adapterhub.tui.widgets.curve_chart import CurveChart
from adapterhub.tui.widgets.detail_pane import Sections, lay_out
from adapterhub.tui.widgets.sheet import Sheet
from tests.support import trainings
from tests.support.screen import USUAL, WIDE, open_app, settled, until


@pytest.fixture
def app(tmp_path: Path) -> AdapterHubApp:
    """On an empty store: the screen reads runs alone."""
    return open_app(Store.open(tmp_path / "home"))


@pytest.fixture
def runs(app: AdapterHubApp) -> Path:
    return app.hub.store.runs_dir


@contextmanager
def held(run: Run) -> Iterator[None]:
    """As long as its process lives, a run's folder is locked."""
    lock = os.open(run.path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


async def opened(app: AdapterHubApp, pilot: Pilot[None], *runs: Run) -> TrainingScreen:
    """The screen on some runs, once it has looked."""
    app.visit("training", runs=tuple(run.id for run in runs))
    await pilot.pause()
    screen = app.screen
    assert isinstance(screen, TrainingScreen)
    await until(lambda: bool(screen.watched), pilot)
    await settled(pilot)
    return screen


def plot(screen: TrainingScreen) -> str:
    """What the large plot draws."""
    return str(screen.query_one("#plot", CurveChart).render())


def told(screen: TrainingScreen, pane: str) -> str:
    """The text of a pane."""
    sheet = screen.query_one(f"#{pane}-sheet", Sheet)
    return "\n".join(map(str, lay_out(sheet.query_one(Sections).sections, 200)))


def line(screen: TrainingScreen, name: str) -> str:
    return str(screen.query_one(f"#{name}", Static).content)


async def test_a_finished_training_is_drawn_and_told(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.finished(runs)
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, run)
        assert "✓ done  support/tone  ·  step 40 of 40" in line(screen, "runs")
        drawn = plot(screen)
        assert drawn.count("o") == 3, "scores before, in the middle and at the end"
        assert drawn.splitlines()[-1].split() == ["0", "40"]
        now = told(screen, "now")
        for words in (
            "support/tone is in the store",
            f"{trainings.loss_at(40):.4g}",
            "10k so far",
            "2.04 GB",
            "1:20 min",
        ):
            assert words in now
        assert "v_proj" in now
        assert "Question 0?" in told(screen, "samples")
        assert "The [b]answer[/] after 40\\x1b[31m" in told(screen, "samples"), (
            "as it was said, and harmless"
        )
        small = {
            chart.id: str(chart.render()) for chart in screen.query(".small").results(CurveChart)
        }
        assert small.keys() == {"rate", "norm", "speed", "memory"}
        assert "1.95e-04" in small["rate"]


async def test_new_events_appear_by_themselves(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.begun(runs)
    with held(run):
        async with app.run_test(size=USUAL) as pilot:
            screen = await opened(app, pilot, run)
            assert "preparing" in line(screen, "runs")
            assert "o" in plot(screen), "the score before the first step"
            trainings.take(run, 1, 21)
            await until(lambda: "step 21 of 40  ·  38 s left" in line(screen, "runs"), pilot)
            await settled(pilot)
            assert "▶ running" in line(screen, "runs")
            now = told(screen, "now")
            assert "at step 40" in now, "when it is scored next, and ends"
            assert "the last at 20" in now
            with (run.path / "events.jsonl").open("a") as file:
                file.write(
                    '{"event": "step", "step": 22, "lo'
                )  # the writer is in the middle of a line
            await pilot.pause(1.2)
            assert "step 21" in line(screen, "runs")


async def test_several_runs_lie_over_each_other_with_letters_and_lines(
    app: AdapterHubApp, runs: Path
) -> None:
    one, other = (
        trainings.finished(runs, "support/tone"),
        trainings.finished(runs, "legal/terms", loss=3.5),
    )
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, one, other)
        chart = screen.query_one("#plot", CurveChart)
        drawn = plot(screen)
        assert "A" in drawn
        assert "B" in drawn
        assert "b" in drawn, "scores carry their run's letter"
        assert "3.5" in drawn.splitlines()[0]
        assert "legal/terms" in str(chart.border_subtitle)
        assert line(screen, "runs").splitlines()[0].startswith("▸ A")
        await pilot.press("n")
        await settled(pilot)
        assert line(screen, "runs").splitlines()[1].startswith("▸ B")
        assert "3.5" in told(screen, "now")


async def test_another_training_is_laid_over_it(app: AdapterHubApp, runs: Path) -> None:
    run, other = trainings.finished(runs), trainings.finished(runs, "legal/terms", loss=3.5)
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, run)
        await pilot.press("a")
        await until(lambda: isinstance(app.screen, PickScreen), pilot)
        await pilot.press(*"terms", "enter")
        await until(lambda: len(screen.watched) == 2, pilot)
        await settled(pilot)
        assert [one.run for one in screen.watched] == [run.id, other.id]
        assert "B" in plot(screen)


async def test_the_cursor_tells_the_values_and_keeps_its_place(
    app: AdapterHubApp, runs: Path
) -> None:
    run = trainings.finished(runs)
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        await pilot.press("home")
        await settled(pilot)
        assert f"step 1: loss {trainings.loss_at(1):.4g}, rate 0.00019" in line(screen, "readout")
        await pilot.press("shift+right", "shift+right", "shift+right", "right", "right", "right")
        await settled(pilot)
        step = screen.query_one("#plot", CurveChart).cursor
        assert step is not None
        assert f"step {round(step)}: loss" in line(screen, "readout")
        assert f"step {round(step)}" in told(screen, "now")
        await pilot.press("end")
        await settled(pilot)
        assert line(screen, "readout") == ""
        await pilot.click("#plot", offset=(12, 3))
        await settled(pilot)
        assert "step" in line(screen, "readout")


async def test_views_axes_and_smoothing_change_the_plot(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.finished(runs)
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        chart, rough = screen.query_one("#plot", CurveChart), plot(screen)
        await pilot.press("w")
        await settled(pilot)
        assert "smoothed" in str(chart.border_title)
        assert plot(screen) != rough
        await pilot.press("o")
        await settled(pilot)
        assert plot(screen).splitlines()[-1].split() == ["0", "10k"]
        await pilot.press("o")
        await settled(pilot)
        assert plot(screen).splitlines()[-1].split()[-2:] == ["1:20", "min"]
        titles = []
        for _ in range(6):
            await pilot.press("v")
            await settled(pilot)
            titles.append(str(chart.border_title).partition(" over")[0])
        assert titles == [
            "learning rate",
            "gradient norm",
            "gradient norm by module",
            "tokens/s",
            "memory",
            "loss",
        ]
        await pilot.press("v", "v", "v")
        await settled(pilot)
        assert "v_proj" in str(chart.border_subtitle)


async def test_a_run_that_died_says_so_and_how_to_go_on(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.begun(runs)
    trainings.take(run, 1, 25)
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        assert "✗ died" in line(screen, "runs")
        now = told(screen, "now")
        assert "Its process ended without a word after step 25" in now
        assert "R goes on after step 20" in now
        assert "stop" not in {
            binding.action for _, binding, on, _ in screen.active_bindings.values() if on
        }
        await pilot.press("R")
        await until(lambda: bool(app._notifications), pilot)
        said = " ".join(note.message for note in app._notifications)
        assert "has no checkpoint to go on from" in said, "the files of the checkpoint are gone"


async def test_a_failure_is_told_in_the_trainers_words(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.begun(runs)
    trainings.take(run, 1, 3)
    run.finish(
        "failed",
        error="The loss is nan at step 4: the training has diverged.\nLower learning_rate.",
    )
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        assert "✗ failed" in line(screen, "runs")
        assert "The loss is nan at step 4" in told(screen, "now")
        await pilot.press("f4")
        await settled(pilot)
        assert screen.query_one("#panes", TabbedContent).active == "findings"
        assert "problem: loss-not-finite" in told(screen, "findings")
        assert (
            str(screen.query_one("#panes", TabbedContent).get_tab("findings").label) == "Findings 1"
        )


async def test_a_training_has_its_name_before_it_has_its_recipe(
    app: AdapterHubApp, runs: Path
) -> None:
    run = Run.folder(runs, "train")
    run.event("started", kind="train", title="Train support/tone", command=["train", "tone.yaml"])
    trainings.score(run, 0, 0)
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        assert "support/tone" in line(screen, "runs")
        assert run.id not in line(screen, "runs")


async def test_going_on_is_offered_only_from_a_checkpoint(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.begun(runs)
    trainings.take(run, 1, 3)
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        now = told(screen, "now")
        assert "There is no checkpoint" in now
        assert now.count("at step 0") == 1, "the first score is the best, and said once"
        assert "resume" not in {one.binding.action for one in screen.active_bindings.values()}


async def test_hostile_events_and_numbers_change_nothing(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.begun(runs, "a/b")
    huge = b"1" + b"0" * 400
    with (run.path / "events.jsonl").open("ab") as file:
        for event in (
            b"\xff\xfe",
            b"[1]",
            b'{"event": "step"}',
            b'{"event": "step", "step": 1, "loss": NaN}',
            b'{"event": "step", "step": 2, "loss": 1e308, "seconds": "x", "grad_norms": {"[b]": 1}}',
            b'{"event": "step", "step": 3, "loss": 2, "seconds": Infinity, "eta": NaN, "tokens": NaN}',
            b'{"event": "step", "step": %s, "loss": 2, "steps": %s}' % (huge, huge),
            b'{"event": "step", "step": 4, "loss": %s, "memory": -Infinity}' % huge,
            b'{"event": "continued", "run": "../../etc"}',
            b'{"event": "evaluated", "step": 99, "loss": 1}',
            b'{"event": "evaluated", "step": 2, "loss": -1e308}',
            b'{"event": "step", "step": 0, "loss": -1e308, "seconds": 1e308, "tokens": 1e308}',
            b'{"event": "step", "step": 3, "loss": 1e308, "seconds": -1e308, "memory": 1e299, "steps": 9000000}',
        ):
            file.write(event + b"\n")
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, run)
        for key in ("v", "v", "v", "o", "o", "w", "left", "v", "v", "v", "left", "left"):
            await pilot.press(key)
            await settled(pilot)
        assert "step 3" in line(screen, "runs")


async def test_a_run_that_is_not_there_says_so(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, Run("train-none", Path("none")))
        assert "There is no such run any more" in told(screen, "now")


async def test_a_storm_of_sizes_leaves_the_plot_standing(app: AdapterHubApp, runs: Path) -> None:
    run = trainings.finished(runs)
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, run)
        for size in ((80, 24), (20, 5), (1, 1), (109, 15), WIDE):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await settled(pilot)
        assert "40" in plot(screen)
