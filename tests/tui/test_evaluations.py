"""The table of evaluations on a real store: what is compared, what is said of it, and the ways about."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adapterhub.evaluate.table import Measured
from adapterhub.perplexity import loss_in_words
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.ascii import in_ascii
from adapterhub.tui.hub import Hub
from adapterhub.tui.personal import Choices
from adapterhub.tui.screens.choose import ChooseScreen
from adapterhub.tui.screens.evaluations import EvaluationsScreen
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.evaluation_table import EvaluationTable
from tests.support.evaluations import adapter, attest, evaluate_sample, facts, versus
from tests.support.screen import USUAL, WIDE, open_app, settled, until

THREE = ("support/tone", "legal/terms", "desk/both")


@pytest.fixture
def evaluated(store: Store) -> AdapterHubApp:
    """The application on the sample store with evaluations in it."""
    evaluate_sample(store)
    return open_app(store)


async def opened(
    app: AdapterHubApp, pilot: Any, names: tuple[str, ...] = THREE
) -> EvaluationsScreen:
    app.visit("evaluations", names=names)
    await pilot.pause()
    screen = app.screen
    assert isinstance(screen, EvaluationsScreen)
    await until(lambda: (screen.state.seen or screen.state.problem) is not None, pilot)
    await settled(pilot)
    return screen


def drawn(screen: EvaluationsScreen) -> dict[str, list[str]]:
    """The cells of each line, by name."""
    table = screen.query_one(EvaluationTable)
    labels = [str(row.label) for row in table.ordered_rows]
    return dict(zip(labels, table.texts(), strict=True))


def titles(screen: EvaluationsScreen) -> list[str]:
    return [str(column.label) for column in screen.query_one(EvaluationTable).ordered_columns]


def words(screen: EvaluationsScreen) -> str:
    """Everything below the table, in one line."""
    return " ".join(str(screen.query_one(Sections).render()).split())


async def test_v_shows_the_marked_ones_beside_the_base(evaluated: AdapterHubApp) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("space", "space", "v")
        await until(lambda: isinstance(evaluated.screen, EvaluationsScreen), pilot)
        screen = evaluated.screen
        assert isinstance(screen, EvaluationsScreen)
        await until(lambda: screen.state.seen is not None, pilot)
        await settled(pilot)
        assert list(drawn(screen)) == ["base", "desk/both", "legal/terms"]
        assert titles(screen)[:4] == [
            "all rows\nperplexity",
            "all rows\npassed",
            "arithmetic\nperplexity",
            "arithmetic\npassed",
        ]
        await pilot.press("escape")
        await settled(pilot)
        assert isinstance(evaluated.screen, LibraryScreen)


async def test_each_cell_has_its_number_and_the_sign_of_its_verdict(
    evaluated: AdapterHubApp,
) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot)
        cells = drawn(screen)
        changes = {"support/tone": -0.012, "legal/terms": 0.241, "desk/both": -0.087}
        for name, sign in (("support/tone", "="), ("legal/terms", "▼"), ("desk/both", "▲")):
            number, told = cells[name][0].split()
            assert told == sign
            assert float(number) == pytest.approx(14 * math.exp(changes[name]), abs=0.006)
        assert cells["base"][0].split() == ["14.00"]
        assert cells["base"][1].split() == ["0.690"]
        assert "▲ better" in str(screen.query_one(EvaluationTable).border_subtitle)


async def test_the_cursor_tells_the_interval_and_what_the_base_was(
    evaluated: AdapterHubApp,
) -> None:
    async with evaluated.run_test(size=USUAL) as pilot:
        screen = await opened(evaluated, pilot)
        loss = loss_in_words("", -0.012, -0.072, 0.048).removeprefix(", ")
        assert f"support/tone, perplexity perplexity {14 * math.exp(-0.012):.4g}" in words(screen)
        assert f"base 14 against base {loss}" in words(screen)
        assert "= no difference from the base was shown" in words(screen)
        await pilot.press("down", "l")
        await settled(pilot)
        assert "legal/terms, passed passed 0.52 base 0.69" in words(screen)
        assert "against base -0.17 (-0.22 to -0.12)" in words(screen)
        assert "▼ worse than the base" in words(screen)
        await pilot.press("k", "k", "h")
        await settled(pilot)
        assert "base, perplexity" in words(screen)
        assert "as it was beside the adapters" in words(screen)


async def test_intervals_stand_in_the_cells_where_there_is_room(evaluated: AdapterHubApp) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot, ("support/tone",))
        assert "to" not in drawn(screen)["support/tone"][0], "too many columns"
        await pilot.press("right_square_bracket", "right_square_bracket")
        await settled(pilot)
        assert screen.state.table is not None
        assert screen.state.table.condition.suite == "injections"
        low, high = (100 * math.expm1(one) for one in (-0.04, 0.06))
        assert f"{low:+.3g} to {high:+.3g}%" in drawn(screen)["support/tone"][0]
        assert "-0.03 to +0.07" in drawn(screen)["support/tone"][1]
        await pilot.resize_terminal(40, 24)
        await until(lambda: "to" not in drawn(screen)["support/tone"][0], pilot)


async def test_what_may_not_be_compared_is_another_table_and_told(
    evaluated: AdapterHubApp,
) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot, (*THREE, "tools/calls"))
        frame = screen.query_one(EvaluationTable)
        assert str(frame.border_title) == r"forgetting, 42 rows · 1 of 3, ] next"
        assert "tools/calls never evaluated on that" in words(screen)
        assert "injections, 42 rows: support/tone (another version of the suite" in words(screen)
        await pilot.press("right_square_bracket")
        await settled(pilot)
        assert str(frame.border_title).startswith("tone.jsonl, 120 rows")
        await pilot.press("left_square_bracket", "N")
        await settled(pilot)
        told = "injections, 42 rows, another version of the suite than today's"
        assert str(frame.border_title).startswith(told)
        assert "another version of the suite than today's" in words(screen)
        assert "legal/terms never evaluated on that" in words(screen)
        await pilot.press("o")
        await until(lambda: isinstance(evaluated.screen, ChooseScreen), pilot)
        await pilot.press("enter")
        await until(lambda: evaluated.screen is screen, pilot)
        await settled(pilot)
        assert str(frame.border_title).startswith("forgetting")


async def test_s_sorts_by_the_column_of_the_cursor_and_the_base_stays_above(
    evaluated: AdapterHubApp,
) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot)
        assert list(drawn(screen)) == ["base", *THREE]
        await pilot.press("s")
        await settled(pilot)
        assert list(drawn(screen)) == ["base", "desk/both", "support/tone", "legal/terms"]
        assert titles(screen)[0].endswith("▾")
        await pilot.press("s")
        await settled(pilot)
        assert list(drawn(screen)) == ["base", "legal/terms", "support/tone", "desk/both"]
        assert titles(screen)[0].endswith("▴")
        await pilot.click(EvaluationTable, offset=(30, 2))
        await settled(pilot)
        assert list(drawn(screen)) == ["base", "desk/both", "support/tone", "legal/terms"]
        assert titles(screen)[1].endswith("▾"), "passed: the highest first"


async def test_y_copies_what_fills_the_gaps(evaluated: AdapterHubApp) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot, (*THREE, "tools/calls"))
        await pilot.press("y")
        line = "adapterhub eval base tools/calls --suite forgetting --max-new-tokens 48"
        assert evaluated.clipboard == line
        assert line in words(screen)


async def test_nothing_known_says_what_to_type(evaluated: AdapterHubApp) -> None:
    async with evaluated.run_test(size=USUAL) as pilot:
        screen = await opened(evaluated, pilot, ("tools/calls",))
        told = str(screen.query_one("#words").query("Static").first().render())
        assert "Nothing with numbers is known of them." in told
        await pilot.press("s", "right_square_bracket", "o", "down", "y")
        assert evaluated.clipboard == "adapterhub eval base tools/calls --suite forgetting"
        assert evaluated.screen is screen


async def test_what_somebody_attests_meanwhile_appears_and_the_reader_stays(
    evaluated: AdapterHubApp, store: Store
) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot)
        await pilot.press("right_square_bracket", "right_square_bracket", "l")
        await settled(pilot)
        digest = store.resolve("legal/terms").digest
        hidden = {"passed": Measured(0.5, versus(-0.4, 0.1, "worse"))}
        common = facts("sha256:" + "01d0" * 16, suite="injections", measures=["passed"], max_new_tokens=48)  # fmt: skip
        attest(store, [adapter("legal/terms", digest, versus(0.2, 0.1, "worse"), measures=hidden)], common)  # fmt: skip
        await until(lambda: "legal/terms" in drawn(screen), pilot)
        await settled(pilot)
        assert drawn(screen)["legal/terms"][1].split()[:2] == ["0.500", "▼"]
        assert screen.query_one(EvaluationTable).cursor_column == 1


async def test_one_that_is_damaged_does_not_hide_the_others(
    evaluated: AdapterHubApp, store: Store
) -> None:
    store.layout.manifest(store.resolve("legal/terms").digest).unlink()
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot, (*THREE, "no/such"))
        assert list(drawn(screen)) == ["base", "support/tone", "desk/both"]
        assert "no/such" in words(screen)
        assert "legal/terms" in words(screen)


async def test_foreign_words_are_no_markup_and_no_control_characters(
    store: Store, app: AdapterHubApp
) -> None:
    evil = "[bold red]x[/]\x1b[2J\u202e" + "y" * 300
    digest = store.resolve("support/tone").digest
    store.attest(
        digest,
        "eval",
        {
            "suite": evil,
            evil: evil,
            "data": {"digest": "sha256:1"},
            "settings": {evil: [evil], "measures": [evil], "max_new_tokens": 1},
            "base": {"repo": evil},
            "result": {
                "perplexity": 2.0,
                "measures": {evil: {"value": 1e300}},
                "parts": {evil: {"perplexity": 3.0}},
            },
        },
    )
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, ("support/tone", "legal/terms"))
        for _ in range(len(screen.state.seen.tables) if screen.state.seen else 0):
            await pilot.press("right_square_bracket", "l", "l", "s")
            await settled(pilot)
            text = "\n".join(
                "".join(segment.text for segment in strip)
                for strip in app.screen._compositor.render_strips()
            )
            assert "\x1b" not in text
            assert "\u202e" not in text
        await until(lambda: screen.is_current, pilot)
        found = [title for title in titles(screen) if "[bold red]x[/]" in title]
        assert found or "[bold red]x[/]" in words(screen)


async def test_signs_are_told_in_ascii_too(store: Store) -> None:
    evaluate_sample(store)
    app = AdapterHubApp(Hub.of(store), Choices(ascii_only=True))
    async with app.run_test(size=USUAL) as pilot:
        await opened(app, pilot)
        text = "\n".join(
            "".join(segment.text for segment in strip)
            for strip in app.screen._compositor.render_strips()
        )
        assert {in_ascii(sign) for sign in "▲=▼"} == {"^", "=", "v"}
        assert "^ better" in in_ascii(text)
        assert in_ascii(text).isascii()


async def test_compare_leads_to_it(evaluated: AdapterHubApp) -> None:
    pytest.importorskip("torch", reason="compare needs it")
    async with evaluated.run_test(size=WIDE) as pilot:
        evaluated.visit("compare", names=THREE[:2])
        await pilot.pause()
        await pilot.press("v")
        await until(lambda: isinstance(evaluated.screen, EvaluationsScreen), pilot)


async def test_a_storm_of_keys_and_sizes_leaves_it_in_place(evaluated: AdapterHubApp) -> None:
    async with evaluated.run_test(size=WIDE) as pilot:
        screen = await opened(evaluated, pilot)
        for size in ((80, 24), (20, 5), (109, 15), (1, 1), WIDE):
            await pilot.resize_terminal(*size)
            await pilot.press("down", "right", "s", "right_square_bracket", "G", "s", "r", "g")
            await pilot.pause()
        assert evaluated.screen is screen
