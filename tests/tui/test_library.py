"""The library screen on a real store, driven with the keys a person would press."""

from pathlib import Path

from textual.widgets import Static

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens.help import HelpScreen
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.detail_pane import DetailPane
from adapterhub.tui.widgets.filter_bar import FilterBar
from tests.support.sample import ALL
from tests.support.screen import USUAL, WIDE, detail, names, open_app, rows, settled, shown


async def test_it_opens_on_every_adapter_of_the_store(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert names(app) == ALL
        assert shown(app, "#count") == "6 adapters"
        assert rows(app)["tools/calls"] == ["tools/calls", "Qwen3-0.6B", "16", "9.35 kB", "2w", ""]
        assert rows(app)["desk/both"][-1] == "ppl 7.02", "what the newest evaluation measured"
        assert isinstance(app.focused, AdapterTable)


async def test_the_filter_looks_through_names_bases_kinds_and_targets(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        for words, left in {
            "tone": ["support/tone", "support/tone:prod"],
            "QWEN": ["tools/calls"],
            "gate_proj": ["desk/both", "legal/terms"],
            "  smol legal ": ["legal/terms"],
            "lora": ALL,
            "zzz": [],
        }.items():
            app.screen.query_one(FilterBar).value = words
            await pilot.pause()
            assert names(app) == left
            assert shown(app, "#count") == f"{len(left)} of 6 adapters"


async def test_every_key_narrows_and_escape_shows_all_again(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("slash", "t", "o")
        await settled(pilot)
        assert names(app) == [*ALL[3:5], "tools/calls"]
        await pilot.press("o", "l")
        await settled(pilot)
        assert names(app) == ["tools/calls"]
        assert detail(app).startswith("tools/calls")
        await pilot.press("escape")
        await settled(pilot)
        assert names(app) == ALL
        assert isinstance(app.focused, AdapterTable)


async def test_enter_keeps_the_filter_and_escape_in_the_list_clears_it(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("slash", *"tone", "enter", "down")
        await settled(pilot)
        assert names(app) == ["support/tone", "support/tone:prod"]
        assert detail(app).startswith("support/tone:prod")
        await pilot.press("escape")
        await settled(pilot)
        assert names(app) == ALL
        assert detail(app).startswith("support/tone:prod"), "the selection survives the filter"


async def test_what_matches_nothing_says_so_and_shows_no_details(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("slash", *"zz", "enter")
        await settled(pilot)
        assert "No adapter matches zz" in shown(app, "#instead")
        assert detail(app).strip() == ""
        await pilot.press("y")
        await pilot.press("escape")
        await settled(pilot)
        assert names(app) == ALL


async def test_the_detail_pane_follows_the_cursor(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        text = detail(app)
        assert text.startswith("desk/both")
        for words in (
            "ties",
            "support/tone × 1",
            "legal/terms × 0.5",
            "99.31%",
            "density 0.2",
            "7.02 (base 11.4)",
        ):
            assert words in text
        await pilot.press("j")
        await settled(pilot)
        text = detail(app)
        assert text.startswith("legal/terms")
        for words in (
            "qlora",
            "2.913 → 2.218",
            "720 of 800 rows",
            "50 steps",
            "terms.jsonl",
            "adapter_config.json",
        ):
            assert words in text
        await pilot.press("G")
        await settled(pilot)
        assert "use_rslora" in detail(app)
        assert "never checked against a base's weights" in " ".join(detail(app).split())
        await pilot.press("g", "down", "down", "down")
        await settled(pilot)
        assert "also named   support/tone:prod" in detail(app)


async def test_enter_reads_the_details_and_escape_comes_back(app: AdapterHubApp) -> None:
    async with app.run_test(size=(80, 14)) as pilot:
        await settled(pilot)
        pane, table = app.screen.query_one(DetailPane), app.screen.query_one(AdapterTable)
        assert (pane.display, table.display) == (False, True), "so few lines hold one of the two"
        await pilot.press("enter")
        await settled(pilot)
        assert (pane.display, table.display) == (True, False)
        assert pane.has_focus
        await pilot.press("j", "j")
        await pilot.pause()
        assert pane.scroll_target_y == 2
        await pilot.press("escape")
        await settled(pilot)
        assert (pane.display, table.display) == (False, True)
        assert table.has_focus


async def test_y_copies_the_equivalent_command(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("j", "y")
        assert app.clipboard == "adapterhub show legal/terms"


async def test_help_lists_the_keys_of_where_one_is(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        keys = shown(app, "#keys")
        assert "Narrow the list with every key" in keys
        assert "Next adapter" in keys
        assert str(store.home) in "".join(str(label.content) for label in app.screen.query(Static))
        await pilot.press("q")
        await pilot.pause()
        assert isinstance(app.screen, LibraryScreen)
        await pilot.press("enter")
        await settled(pilot)
        await pilot.press("question_mark")
        await pilot.pause()
        assert "Scroll down" in shown(app, "#keys")


async def test_q_quits_but_is_a_letter_in_the_filter(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("slash", "q")
        assert app.is_running
        assert app.screen.query_one(FilterBar).value == "q"
        await pilot.press("escape", "q")
        await pilot.pause()
    assert app.return_code == 0


async def test_an_empty_store_teaches(tmp_path: Path) -> None:
    home = tmp_path / "none"
    app = open_app(Store.open(home))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert "adapterhub add FOLDER" in shown(app, "#instead")
        assert "make demo" in shown(app, "#instead")
        assert not app.screen.query_one(DetailPane).display
        await pilot.press("y", "enter", "slash", "x", "escape", "r")
        await settled(pilot)
    assert not home.exists(), "looking creates nothing"


async def test_a_storm_of_sizes_leaves_everything_in_place(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("down", "down")
        for size in ((80, 24), (20, 5), (109, 15), (1, 1), WIDE):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await settled(pilot)
        assert names(app) == ALL
        assert detail(app).startswith("odd/stranger")
        assert app.screen.query_one("#count", Static).region.right == 140
