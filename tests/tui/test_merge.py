"""The merge screen on a real store: the form, the estimates beside it, the line, and the run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapterhub.cli.main import build
from adapterhub.merge.specs import methods
from adapterhub.names import parse_name
from adapterhub.runs import Run, read_run
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.merging.plan import Plan, problems
from adapterhub.tui.outcome import outcome
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.screens.merge import MergeScreen
from adapterhub.tui.widgets.form import Choice, FormRow, Text
from adapterhub.tui.widgets.merge_form import MergeForm
from adapterhub.tui.widgets.slider import Slider
from tests.support.screen import USUAL, WIDE, settled, shown, until

pytest.importorskip("torch")

PAIR = ("support/tone", "legal/terms")


async def opened(
    app: AdapterHubApp, pilot: Any, names: tuple[str, ...] = PAIR, given: dict[str, Any] | None = None
) -> MergeScreen:  # fmt: skip
    """The screen, once it has an estimate or says why not."""
    app.visit("merge", names=names, given=given)
    await pilot.pause()
    screen = app.screen
    assert isinstance(screen, MergeScreen)
    await answered(screen, pilot)
    return screen


async def answered(screen: MergeScreen, pilot: Any) -> None:
    """Waits until what is shown is of the plan as it is."""
    await until(
        lambda: (
            not screen._answering
            and (screen.state.estimated == screen.state.plan or screen.state.estimate is None)
        ),
        pilot,
    )
    await pilot.pause()


def control(screen: MergeScreen, field: str) -> Any:
    row = screen.query_one(MergeForm).row(field)
    assert row is not None
    return row.field


def problem(screen: MergeScreen, field: str) -> str:
    row = screen.query_one(MergeForm).row(field)
    assert row is not None
    return row.problem


def planned(store: Store, words: list[str]) -> Any:
    """The recipe that the command line makes of a line, and the name."""
    env = {"ADAPTERHUB_HOME": str(store.home)}
    done = CliRunner().invoke(build(words[0]), [*words, "--dry-run", "--json"], env=env)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


async def test_it_opens_with_an_exact_estimate_and_the_line_that_does_the_same(
    app: AdapterHubApp,
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        text = shown(app, "#kept")
        assert "Exact: as the merge would report it." in text
        assert "support/tone" in text
        assert "subspace" in text
        assert shown(app, "#words") == "adapterhub merge support/tone legal/terms"
        assert control(screen, "name").placeholder == "tone-terms-linear"


async def test_sliders_move_the_estimate_and_the_line(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        before = screen.state.estimate
        control(screen, "weight:support/tone").focus()
        await pilot.press("right", "l", "shift+right")
        await answered(screen, pilot)
        assert "--weights 0.62,0.5" in shown(app, "#words")
        after = screen.state.estimate
        assert before is not None
        assert after is not None
        assert (after.retained[0] or 0) > (before.retained[0] or 0)
        await pilot.press("delete")
        await answered(screen, pilot)
        assert shown(app, "#words") == "adapterhub merge support/tone legal/terms"


async def test_a_number_is_typed_into_a_slider_and_escape_leaves_it(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        slider = control(screen, "weight:legal/terms")
        assert isinstance(slider, Slider)
        slider.focus()
        await pilot.press(*"-1.5", "enter")
        assert slider.value == -1.5
        assert isinstance(app.screen, MergeScreen), "digits lead nowhere else"
        await pilot.press(*"9", "escape")
        assert (slider.value, slider.typed) == (-1.5, "")
        await pilot.press(*"4-", "enter")
        assert slider.value == -1.5, "what is no number isn't taken"
        await pilot.press(*"3", "tab")
        assert slider.value == 3, "leaving takes it"


async def test_every_method_has_a_form_made_from_its_spec(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        for name, spec in methods().items():
            control(screen, "method").value = name
            await pilot.pause()
            await answered(screen, pilot)
            fields = {row.control_name for row in screen.query(FormRow)}
            assert {f"parameter:{one.name}" for one in spec.parameters} <= fields
            assert screen.query_one("#seed").display == ("seed" in spec.requires)
            assert spec.good_for in shown(app, "#about")
            assert spec.paper in shown(app, "#about")
            if spec.max_inputs == 1:
                refused = "negate takes exactly 1 adapter; 2 were given."
                assert refused in shown(app, "#kept")
                await pilot.press("ctrl+r")
                await settled(pilot)
                assert refused not in shown(app, "#stops"), "said once"
                assert control(screen, "name").placeholder == "", "no other method's name"
                continue
            sampled = spec.family == "elementwise"
            assert ("Estimated from a sample" in shown(app, "#kept")) == sampled
            assert ("Exact" in shown(app, "#kept")) != sampled
            assert screen.state.problems == {}


async def test_another_method_brings_its_parameters_and_keeps_what_both_have(
    app: AdapterHubApp,
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, given={"method": "ties", "parameters": {"density": 0.5}})
        control(screen, "method").value = "dare_ties"
        await answered(screen, pilot)
        assert control(screen, "parameter:trim").value == 0.2
        assert control(screen, "parameter:density").value == 0.5
        control(screen, "method").value = "slerp"
        await answered(screen, pilot)
        assert screen.query_one(MergeForm).row("parameter:density") is None
        assert shown(app, "#words") == "adapterhub merge support/tone legal/terms --method slerp"


PLANS: list[dict[str, Any]] = [
    {},
    {"method": "ties", "weights": (0.98, 1.0), "parameters": {"density": 0.35, "vote": "count"}},
    {"method": "ties", "semantics": "mergekit", "parameters": {"trim_scope": "model"}},
    {"method": "linear", "weights": (-0.5, 1.25), "parameters": {"normalize": True}, "rank": "energy=0.9"},
    {"method": "linear", "semantics": "mergekit", "parameters": {"normalize": False}},
    {"method": "task_arithmetic", "parameters": {"lambda": -1.5}, "rank": "12", "dtype": "float16"},
    {"method": "dare_linear", "seed": "7", "parameters": {"rescale": "none"}, "name": "a/b:c"},
    {"method": "karcher", "parameters": {"max_iterations": 9, "tolerance": 1e-7}, "rank": "full"},
    {"method": "slerp", "parameters": {"t": 1 / 3}, "rank": "auto"},
]  # fmt: skip


@pytest.mark.parametrize("given", PLANS, ids=[plan.get("method", "plain") for plan in PLANS])
def test_the_line_read_back_by_the_command_line_is_the_same_recipe(
    store: Store, given: dict[str, Any]
) -> None:
    plan = Plan.of(PAIR, given)
    words = shlex.split(shlex.join(plan.words()))
    assert problems(plan) == {}
    told = planned(store, words)
    recipe = plan.recipe([store.resolve(name).digest for name in PAIR])
    assert {key: told[key] for key in recipe.document() if key != "parents"} == {
        key: value for key, value in recipe.document().items() if key != "parents"
    }
    if plan.name:
        assert told["name"] == plan.name


async def test_wrong_values_are_told_where_they_stand_in_the_commands_words(
    app: AdapterHubApp,
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, given={"method": "ties"})
        control(screen, "parameter:density").focus()
        await pilot.press(*"1.5", "enter")
        await answered(screen, pilot)
        assert problem(screen, "parameter:density") == (
            "--density 1.5 is not allowed. density must be above 0 up to 1."
        )
        control(screen, "rank").focus()
        await pilot.press(*"lots")
        await answered(screen, pilot)
        assert "--rank lots is not allowed." in problem(screen, "rank")
        control(screen, "name").focus()
        await pilot.press(*"No/Such Name")
        await answered(screen, pilot)
        assert problem(screen, "name") != ""
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert screen.state.run is None
        assert isinstance(app.screen, MergeScreen)


async def test_conflicts_are_told_before_it_runs_with_a_way_round(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, given={"name": "desk/both"})
        assert "The name desk/both is taken by another adapter" in problem(screen, "name")
        assert "The name desk/both is taken" in shown(app, "#stops"), "said where it is seen"
        assert screen.query_one("#move").display
        control(screen, "move").action_turn()
        await answered(screen, pilot)
        assert problem(screen, "name") == ""
        assert shown(app, "#words").endswith("--name desk/both --move")
        await pilot.press("escape")
        screen = await opened(app, pilot, ("support/tone", "tools/calls"))
        assert "different base models" in problem(screen, "allow_mismatch")
        assert screen.query_one("#differ").display
        control(screen, "allow_mismatch").action_turn()
        await answered(screen, pilot)
        assert problem(screen, "allow_mismatch") == ""
        assert "--allow-mismatch" in shown(app, "#words")


async def test_adapters_are_added_moved_and_taken_out(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, given={"method": "ties", "weights": (0.4, 0.6)})
        await pilot.press("a")
        await pilot.pause()
        await pilot.press(*"both", "enter")
        await until(lambda: "desk/both" in screen.state.plan.names, pilot)
        await answered(screen, pilot)
        assert "--weights 0.4,0.6,1" in shown(app, "#words")
        assert screen.state.estimate is not None
        assert len(screen.state.estimate.retained) == 3
        control(screen, "weight:desk/both").focus()
        await pilot.press("K", "shift+up")
        await answered(screen, pilot)
        assert list(screen.state.plan.names) == ["desk/both", *PAIR]
        assert "--weights 1,0.4,0.6" in shown(app, "#words"), "the weight goes along"
        control(screen, "weight:support/tone").focus()
        await pilot.press("d")
        await answered(screen, pilot)
        assert list(screen.state.plan.names) == ["desk/both", "legal/terms"]
        assert screen.focused is control(screen, "weight:legal/terms")
        await pilot.press("y")
        assert (
            app.clipboard == "adapterhub merge desk/both legal/terms --method ties --weights 1,0.6"
        )


async def test_the_latest_question_wins(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        control(screen, "weight:support/tone").focus()
        await pilot.press(*["right"] * 30)
        await answered(screen, pilot)
        assert screen.state.estimated == screen.state.plan
        assert screen.state.plan.weight("support/tone") == 0.8


async def test_an_adapter_that_is_gone_is_said_and_the_screen_stays(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, ("support/tone", "no/such"))
        assert "no/such" in shown(app, "#kept")
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert screen.state.run is None
        assert isinstance(app.screen, MergeScreen)


async def test_nothing_is_merged_where_the_store_is_only_looked_at(store: Store) -> None:
    app = AdapterHubApp(Hub.of(store, readonly=True))
    app.theme = "textual-dark"
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        await pilot.press("ctrl+r")
        screen.action_run()
        await settled(pilot)
        assert screen.state.run is None
    assert not list(store.runs_dir.glob("merge-*"))


async def test_it_merges_and_selects_the_result_in_the_library(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, given={"rank": "6", "name": "desk/new"})
        estimate = screen.state.estimate
        await pilot.press("ctrl+r")
        await until(lambda: screen.state.run is not None, pilot)
        assert screen.query_one("#running").display
        await until(lambda: isinstance(app.screen, LibraryScreen), pilot, 60)
        await until(
            lambda: "desk/new" in str(app.screen.query("DetailPane").first().border_title), pilot
        )
    digest = store.refs.read(parse_name("desk/new"))
    assert digest is not None
    bodies = [one.body for one in store.attestations(digest) if "recipe" in one.body]
    report = bodies[0]["report"]
    assert estimate is not None
    assert estimate.energy_kept == pytest.approx(report["energy_kept"], abs=2e-6)
    assert estimate.retained == pytest.approx(tuple(report["retained"]), abs=2e-6)


def test_a_merge_that_was_done_before_says_which_adapter_it_is(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "merge", {})
    result = {"name": "demo/ties", "digest": f"sha256:0f1f{'a' * 60}", "created": False}
    record = replace(read_run(run.path), state="done", result=result)
    _, text, _ = outcome(record)
    assert "demo/ties is @0f1f" in text
    assert "had given it before" in text
    new = replace(record, result={**result, "created": True})
    assert outcome(new)[1].endswith("\ndemo/ties")


async def test_a_slider_shows_its_ends_where_there_is_room(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        slider = control(screen, "weight:support/tone")
        assert isinstance(slider, Slider)
        shown_ends = str(slider.render())
        assert shown_ends.startswith("-1 ")
        assert " 2 " in shown_ends
        assert len(shown_ends) == slider.content_size.width
        await pilot.click(slider, offset=(3, 0))
        assert slider.value == -1, "the line begins after its lower end"


async def test_x_stops_it_and_the_store_is_as_it_was(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, given={"name": "desk/new"})
        await pilot.press("ctrl+r")
        await until(lambda: screen.state.run is not None, pilot)
        await pilot.press("x")
        await until(lambda: screen.state.run is None, pilot, 60)
        assert "Stopped. The store is as it was." in shown(app, "#kept")
        assert isinstance(app.screen, MergeScreen)
    assert store.refs.read(parse_name("desk/new")) is None


async def test_what_the_merge_refuses_is_said_in_its_words(
    app: AdapterHubApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, given={"name": "desk/new"})
        store.remove([parse_name("legal/terms")])
        real = Plan.words
        monkeypatch.setattr(Plan, "words", lambda plan: [*real(plan), "--base", "no/where"])
        monkeypatch.setattr(
            "adapterhub.tui.merging.reading.outlook", lambda *_: screen.state.outlook
        )
        await pilot.press("ctrl+r")
        await until(lambda: screen.state.failed is not None, pilot, 60)
        assert "legal/terms" in shown(app, "#kept")
        assert isinstance(app.screen, MergeScreen)


async def test_a_storm_of_sizes_and_keys_leaves_the_form_in_place(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        for size in ((80, 24), (20, 5), (109, 15), (1, 1), WIDE):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await pilot.press("down", "up", "enter", "escape", "tab", "shift+tab", "down", "G")
        await answered(screen, pilot)
        assert app.screen is screen
        assert screen.query_one(Choice).value == "linear"
        assert isinstance(control(screen, "rank"), Text)
