"""The compare screen on a real store: the heatmap, what is said beside it, and the way to the merge."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from adapterhub.compare.run import compare_stored
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.comparing import MEASURES
from adapterhub.tui.screens.compare import CompareScreen
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.screens.merge import MergeScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.heat_map import HeatMap
from tests.merge.conftest import silent
from tests.support.sample import SMOL, write_adapter
from tests.support.screen import USUAL, WIDE, shown, until

PAIR = ("support/tone", "legal/terms")


async def opened(app: AdapterHubApp, pilot: Any, names: tuple[str, ...] = PAIR) -> CompareScreen:
    app.visit("compare", names=names)
    await pilot.pause()
    screen = app.screen
    assert isinstance(screen, CompareScreen)
    await until(lambda: (screen.state.found or screen.state.problem) is not None, pilot)
    await pilot.pause()
    return screen


def words(screen: CompareScreen) -> str:
    """Everything beside the heatmap, in one line."""
    return " ".join(str(screen.query_one(Sections).render()).split())


def drawn(screen: CompareScreen) -> list[str]:
    """The lines of the heatmap."""
    heat = screen.query_one(HeatMap)
    return [heat.render_line(y).text.rstrip() for y in range(heat.size.height)]


async def test_the_heatmap_is_that_of_diff_and_the_measure_switches(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        comparison = compare_stored(store, PAIR, silent).comparison
        lines = drawn(screen)
        assert lines[0].split() == ["q", "k", "v", "o", "gate", "up", "down"]
        assert [line.replace("▸", " ").split()[0] for line in lines[1:4]] == ["0", "1", "all"]
        q = comparison.modules[
            [m.place.inner for m in comparison.modules].index("self_attn.q_proj")
        ]
        first = lines[1].replace("▸", " ").split()
        cosine = q.pairs[0, 1].angles.inner / (q.strengths[0].norm * q.strengths[1].norm)
        assert float(first[1]) == pytest.approx(cosine, abs=0.006)
        assert first[2] == "·", "one of them doesn't change k"
        assert "· not in two of them" in shown(app, "#legend")
        seen = [screen.state.measure]
        for _ in range(3):
            await pilot.press("right_square_bracket")
            await pilot.pause()
            seen.append(screen.state.measure)
            assert drawn(screen) != lines
        assert seen == list(MEASURES)
        await pilot.press("n", "left_square_bracket", "N")
        assert screen.state.measure == MEASURES[2]
        await pilot.press("y")
        assert app.clipboard == "adapterhub diff support/tone legal/terms --measure norm-ratio"


async def test_the_cursor_tells_the_numbers_of_its_cell(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        assert "Here: model.layers.0.self_attn.q_proj shape 16 x 16 cosine" in words(screen)
        await pilot.press("down", "l", "l")
        await pilot.pause()
        assert "Here: model.layers.1.self_attn.v_proj" in words(screen)
        await pilot.press("h")
        await pilot.pause()
        assert "support/tone changes nothing here" in words(screen)
        await pilot.press("G", "g", "G")
        await pilot.pause()
        assert "Here: 2 modules" in words(screen)
        await pilot.click(HeatMap, offset=(6, 1))
        await pilot.pause()
        assert "Here: model.layers.0.self_attn.q_proj" in words(screen)


async def test_it_says_the_verdict_the_numbers_and_the_settings_that_differ(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        verdict = compare_stored(store, PAIR, silent).verdict
        assert " ".join(verdict.text.split()) in words(screen)
        assert str(verdict.line) in words(screen)
        for told in ("shared 4 of 14 modules", "rank 4", "rank 8", "norm of ΔW"):
            assert told in words(screen)


async def test_m_opens_the_recommended_merge(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await opened(app, pilot)
        await pilot.press("m")
        await pilot.pause()
        assert isinstance(app.screen, MergeScreen)
        advice = compare_stored(store, PAIR, silent).verdict.advice
        assert advice is not None
        plan = app.screen.state.plan
        assert (plan.method, plan.names) == (advice.method, PAIR)
        assert tuple(plan.weights_in_order() or ()) in ((), advice.weights)
        await pilot.press("escape")
        await pilot.pause()
        assert isinstance(app.screen, CompareScreen)


async def test_more_than_two_are_told_pair_by_pair(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, (*PAIR, "desk/both"))
        assert "worst pair" in words(screen)
        assert "legal/terms and desk/both" in words(screen)
        assert "the lowest of all pairs" in shown(app, "#legend")


async def test_different_bases_are_warned_of_and_no_merge_is_recommended(
    app: AdapterHubApp,
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, ("support/tone", "tools/calls"))
        assert "The numbers below compare weights of different models." in words(screen)
        assert "No merge to recommend" in words(screen)
        await pilot.press("m")
        await pilot.pause()
        assert isinstance(app.screen, MergeScreen), "the form tells what stands in the way"


async def test_foreign_words_are_no_markup(
    app: AdapterHubApp, store: Store, tmp_path: Path
) -> None:
    for seed, name in enumerate(("odd/one", "odd/two")):
        folder = write_adapter(tmp_path / name, base=SMOL, targets=("[red]q[/]",), seed=seed)
        store.add_folder(folder, name=name)
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, ("odd/one", "odd/two"))
        assert "[red]q[/]" in drawn(screen)[0]
        assert "Here: model.layers.0.self_attn.[red]q[/]" in words(screen)


async def test_what_is_not_there_is_said_and_the_screen_stays(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, ("support/tone", "no/such"))
        assert screen.state.problem is not None
        assert "no/such" in str(screen.query_one("#words").query("Static").first().render())
        await pilot.press("down", "n", "f", "r")
        await pilot.pause()
        assert app.screen is screen


async def test_it_can_be_left_while_it_compares_and_the_thread_ends(
    app: AdapterHubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(store: Store, names: Any, progress: Any, **_: Any) -> None:
        try:
            with progress("Comparing", 100) as bar:
                for _step in range(100):
                    started.set()
                    go_on.wait(10)
                    bar.advance(1)
                    bar._last = 0
        finally:
            ended.set()

    monkeypatch.setattr("adapterhub.tui.screens.compare.look", slow)
    async with app.run_test(size=USUAL) as pilot:
        app.visit("compare", names=PAIR)
        await until(started.is_set, pilot)
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, LibraryScreen), pilot)
        go_on.set()
        await until(ended.is_set, pilot)


async def test_a_storm_of_sizes_leaves_the_map_in_place(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        for size in ((80, 24), (20, 5), (109, 15), (1, 1), WIDE):
            await pilot.resize_terminal(*size)
            await pilot.press("down", "right", "n")
            await pilot.pause()
        assert app.screen is screen
        assert screen.query_one(HeatMap).cursor == (2, 5)
