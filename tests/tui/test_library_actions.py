"""What the library's keys do to adapters, on a real store, typed as a person would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.keys import _character_to_key
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.locks import locked
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.palette import Actions
from adapterhub.tui.screens.add import AddScreen, complete
from adapterhub.tui.screens.choose import ChooseScreen
from adapterhub.tui.screens.confirm import ConfirmScreen
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.screens.results import ResultsScreen
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.detail_pane import DetailPane
from adapterhub.tui.widgets.filter_bar import FilterBar
from adapterhub.tui.widgets.space_tree import SpaceTree
from tests.support.models import ModelMaker
from tests.support.sample import ALL, write_adapter
from tests.support.screen import USUAL, WIDE, cells, detail, names, open_app, settled, shown, until

Press = Callable[..., Any]


def notices(app: AdapterHubApp) -> str:
    return "\n".join(f"{notice.title}: {notice.message}" for notice in app._notifications)


async def pressed(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settled_unless_asking(pilot)


async def settled_unless_asking(pilot: Pilot[None]) -> None:
    """As `settled`; a worker that waits for an answer of the user is not waited for."""
    if isinstance(pilot.app.screen, LibraryScreen):
        await settled(pilot)
    else:
        await pilot.pause()


def marks(app: AdapterHubApp) -> dict[str, str]:
    return {name: found["marks"] for name, found in cells(app).items() if found["marks"].strip()}


def text_of(app: AdapterHubApp) -> str:
    return "\n".join(str(one.render()) for one in app.screen.query(Static))


async def test_space_marks_a_all_asterisk_inverts_escape_clears(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pressed(pilot, "space", "space")
        assert marks(app) == {"desk/both": "*  ", "legal/terms": "*  "}
        assert shown(app, "#count") == "2 marked, 6 adapters"
        await pressed(pilot, "asterisk")
        assert list(marks(app)) == ALL[2:]
        await pressed(pilot, "A")
        assert list(marks(app)) == ALL
        await pressed(pilot, "escape")
        assert marks(app) == {}


async def test_s_sorts_by_the_next_column_and_the_cursor_stays_on_its_adapter(
    app: AdapterHubApp,
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pressed(pilot, "G", "s", "s")
        assert [found["rank"] for found in cells(app).values()] == ["4", "4", "4", "8", "12", "16"]
        assert detail(app).startswith("tools/calls")
        await pressed(pilot, "R")
        assert names(app)[0] == "tools/calls"


async def test_the_mouse_moves_marks_sorts_and_opens(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        table = app.screen.query_one(AdapterTable)
        await pilot.click(table, offset=(8, 4))
        await settled(pilot)
        assert detail(app).startswith("odd/stranger")
        await pilot.click(table, offset=(2, 3))
        await settled(pilot)
        assert list(marks(app)) == ["legal/terms"]
        await pilot.click(table, offset=(8, 1))
        await settled(pilot)
        assert names(app) == ALL[::-1], (
            "a click on the title of the column it is sorted by turns it round"
        )
        await pilot.click(table, offset=(8, 3), times=2)
        await settled(pilot)
        assert app.screen.query_one(DetailPane).has_focus


async def test_a_namespace_narrows_the_list(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        tree = app.screen.query_one(SpaceTree)
        assert not tree.display, "no room"
        await pressed(pilot, "n", "j", "j", "j", "j")
        assert tree.display
        assert names(app) == ["support/tone", "support/tone:prod"]
        await pressed(pilot, "enter")
        assert app.screen.query_one(AdapterTable).has_focus
        assert not tree.display
        assert str(app.screen.query_one(AdapterTable).border_title) == "Adapters · support"
        await pressed(pilot, "escape")
        assert names(app) == ALL


async def test_remove_says_the_consequence_and_u_brings_it_back(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await settled(pilot)
        await pressed(pilot, "j", "d")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "loses its last name" in text_of(app)
        assert "gc frees" in text_of(app)
        assert "adapterhub rm legal/terms:latest" in text_of(app)
        await pressed(pilot, "n")
        assert names(app) == ALL
        await pressed(pilot, "d")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pressed(pilot, "y")
        await until(lambda: names(app) == [ALL[0], *ALL[2:]], pilot)
        assert "u takes it back" in notices(app)
        assert store.refs.read(parse_name("legal/terms")) is None


async def test_of_several_each_is_told_and_what_fails_keeps_none_from_going(
    app: AdapterHubApp, store: Store
) -> None:
    ref = store.layout.ref(parse_name("odd/stranger"))
    ref.chmod(0o644)
    ref.write_bytes(b"\xff nonsense")
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pressed(pilot, "j", "space", "space", "d")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("y")
        await until(lambda: isinstance(app.screen, ResultsScreen), pilot)
        told = text_of(app)
        assert "1 done, 1 failed" in told
        assert "The ref odd/stranger is damaged." in told
        await pilot.press("escape")
        await until(lambda: "legal/terms" not in names(app), pilot)
        assert "odd/stranger" in names(app)


async def test_a_tag_is_checked_as_it_is_typed_and_then_selected(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("T")
        await until(lambda: app.screen.query(Input).first(Input).value == "desk/both:", pilot)
        assert "is not a valid name" not in text_of(app), "nothing was typed yet"
        await pilot.press(*"/x")
        await pilot.pause()
        assert "is not a valid name" in text_of(app)
        await pilot.press("backspace", "backspace", *"v2", "enter")
        await until(lambda: detail(app).startswith("desk/both:v2"), pilot)
        assert store.resolve("desk/both:v2").digest == store.resolve("desk/both").digest


async def test_marked_ones_get_one_tag(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("space", "space", "T")
        await until(
            lambda: bool(app.screen.query(Input)) and not app.screen.query(FilterBar), pilot
        )
        await pilot.press(*"my:v9", "enter")
        await pilot.pause()
        assert "'my:v9' is not a valid tag" in text_of(app)
        await pilot.press("home", "delete", "delete", "delete", "enter")
        await until(lambda: isinstance(app.screen, ResultsScreen), pilot)
        assert "2 done, 0 failed" in text_of(app)
        for name in ("desk/both", "legal/terms"):
            assert store.resolve(f"{name}:v9").digest == store.resolve(name).digest


async def test_add_runs_the_command_and_selects_what_came(
    app: AdapterHubApp, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "incoming", base="gpt2", seed=8)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("a")
        await until(lambda: isinstance(app.screen, AddScreen), pilot)
        app.screen.query_one("#source", Input).value = str(folder)
        app.screen.query_one("#name", Input).value = "new/one:"
        await pilot.pause()
        assert "the tag after ':' is empty" in text_of(app)
        await pilot.press("ctrl+r")
        assert isinstance(app.screen, AddScreen), "a wrong name adds nothing"
        app.screen.query_one("#name", Input).value = "new/one"
        app.screen.query_one("#allow").focus()
        await pilot.press("space")
        await pilot.pause()
        assert f"adapterhub add {folder} --name new/one --allow-mismatch" in text_of(app)
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, LibraryScreen), pilot)
        await until(lambda: detail(app).startswith("new/one"), pilot, seconds=60)
        assert "new/one" in names(app)


def test_a_folder_is_completed_and_what_is_no_adapter_is_not(tmp_path: Path) -> None:
    (tmp_path / "tone-lora").mkdir()
    (tmp_path / "tone.txt").touch()
    (tmp_path / "weights.safetensors").touch()
    assert complete(f"{tmp_path}/to") == f"{tmp_path}/tone-lora/"
    assert complete(f"{tmp_path}/we") == f"{tmp_path}/weights.safetensors"
    assert complete(f"{tmp_path}/zz") is None
    assert complete(f"{tmp_path}/none/x") is None


async def test_a_filter_is_kept_under_a_name_taken_again_and_forgotten(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("F")
        await until(lambda: "No saved filter yet" in notices(app), pilot)
        await pilot.press("slash", *"rank", "colon", "8", "ctrl+s")
        await until(lambda: not isinstance(app.screen, LibraryScreen), pilot)
        await pilot.press(*"eights", "enter")
        await until(lambda: app.hub.memory.get("filters", {}) == {"eights": "rank:8"}, pilot)
        await pilot.press("escape")
        await settled(pilot)
        assert names(app) == ALL
        await pilot.press("F")
        await until(lambda: isinstance(app.screen, ChooseScreen), pilot)
        await pilot.press("enter")
        await until(lambda: names(app) == ["legal/terms"], pilot)
        await pilot.press("F")
        await until(lambda: isinstance(app.screen, ChooseScreen), pilot)
        await pilot.press("d")
        await until(lambda: app.hub.memory.get("filters", {}) == {}, pilot)


async def test_a_question_to_the_hub_narrows_the_list_when_it_is_answered(
    app: AdapterHubApp, store: Store
) -> None:
    store.attest(store.resolve("tools/calls").digest, "note", {"text": "used today"})
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        bar = app.screen.query_one(FilterBar)
        bar.value = "parent:legal/terms"
        await until(lambda: names(app) == ["desk/both"], pilot)
        bar.value = "parent:nobody"
        await until(lambda: app.screen.query_one("#told").has_class("problem"), pilot)
        assert "nobody" in shown(app, "#told")
        bar.value = "unused:1d"
        await until(lambda: names(app) == ALL[:-1], pilot)


@pytest.mark.slow
async def test_who_doesnt_fit_the_chosen_base_is_marked(
    store: Store, tiny: ModelMaker, tmp_path: Path
) -> None:
    base = tiny.llama()
    store.bases.remember(store.bases.open(str(base)))
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("b")
        await until(lambda: isinstance(app.screen, ChooseScreen), pilot)
        assert app.screen.query_one(OptionList).option_count == 2
        await pilot.press("down", "enter")
        await until(lambda: bool(marks(app)), pilot)
        assert set(marks(app).values()) == {" x "}
        assert list(marks(app)) == ALL, "adapters of 16 columns fit no model of other sizes"
        assert f"against {base.name}" in str(app.screen.query_one(AdapterTable).border_title)


async def test_who_is_served_is_marked_and_where(app: AdapterHubApp, store: Store) -> None:
    digest = store.resolve("support/tone").digest
    with store.leases.held("serve", [digest], "at http://127.0.0.1:8000"):
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot)
            assert marks(app) == {"support/tone": "  >", "support/tone:prod": "  >"}
            assert cells(app)["support/tone"]["served"] == ":8000"
            await pressed(pilot, "j", "j", "j")
            assert "the server on :8000" in detail(app)


async def test_the_details_tell_lineage_norms_and_history(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        told = detail(app)
        for words in (
            "Lineage",
            "├─ support/tone",
            "Norms by layer",
            "█",
            "History of the name",
            "add: now @",
        ):
            assert words in told


async def test_one_adapter_is_too_few_to_compare(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await settled(pilot)
        await pressed(pilot, "c")
        assert "Mark two or more" in notices(app)
        assert isinstance(app.screen, LibraryScreen)


async def test_a_locked_store_is_read_and_says_that_it_cant_be_changed(
    app: AdapterHubApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0.2")
    with locked(store.layout.lock, exclusive=True):
        async with app.run_test(size=USUAL, notifications=True) as pilot:
            await settled(pilot)
            assert names(app) == ALL
            assert "ties" in detail(app)
            await pilot.press("d")
            await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
            await pilot.press("y")
            await until(lambda: "Another adapterhub is changing the store" in notices(app), pilot)
            assert names(app) == ALL


async def test_read_only_nothing_is_changed(store: Store) -> None:
    app = AdapterHubApp(Hub.of(store, readonly=True))
    app.theme = "textual-dark"
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("d", "T", "a")
        await pilot.pause()
        assert isinstance(app.screen, LibraryScreen)
        await pressed(pilot, "space", "s", "slash", "t")
        assert list(marks(app)) != []


async def test_a_damaged_catalogue_is_made_again(app: AdapterHubApp, store: Store) -> None:
    path = store.cache.path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"SQLite format 3\0" + b"nonsense" * 999)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert names(app) == ALL


async def test_a_catalogue_that_cant_be_written_still_shows_what_is_there(
    app: AdapterHubApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "file" / "below"))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert names(app) == ALL


async def test_ten_thousand_rows_are_drawn_a_screenful_at_a_time(
    app: AdapterHubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.tui.library.model import Listing
    from adapterhub.tui.library.rows import Row
    from adapterhub.tui.screens import library

    rows = tuple(
        Row(f"team{n % 40:02}/adapter-{n:05}", base="org/base", rank=n % 64) for n in range(10_000)
    )
    listing = Listing(rows, {}, {"name": 22, "base": 8})
    monkeypatch.setattr(library, "read_rows", lambda *_: listing)
    drawn: list[int] = []
    line = AdapterTable.render_line

    def render_line(table: AdapterTable, y: int) -> object:
        drawn.append(y)
        return line(table, y)

    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        monkeypatch.setattr(AdapterTable, "render_line", render_line)
        await pressed(pilot, "G")
        assert app.screen.query_one(AdapterTable).name_here == max(row.name for row in rows)
        assert 0 < max(drawn) < 45
        await pressed(pilot, "slash", *"7777")
        assert names(app)[0] == "team17/adapter-07777", "together is better than scattered"


def at_once(app: AdapterHubApp, keys: str) -> None:
    """As a terminal does when it was held up: all keys in one piece, none waited for."""
    assert app._driver is not None
    for key in keys:
        app._driver.send_message(events.Key(_character_to_key(key), key))


async def test_keys_that_come_at_once_after_the_slash_are_letters_of_the_filter(
    app: AdapterHubApp,
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        library = app.screen
        at_once(app, "/demo")
        await until(lambda: library.query_one(FilterBar).value == "demo", pilot)
        await settled(pilot)
        assert app.screen is library
        assert library.query_one(FilterBar).has_focus


async def test_letters_that_were_on_their_way_answer_no_question(
    app: AdapterHubApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [str(name) for name, _ in store.refs.all()]
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        monkeypatch.setattr("adapterhub.tui.screens.confirm.ATTENTION_SECONDS", 3600.0)
        await pilot.press("d")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        at_once(app, "yny")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScreen)
        monkeypatch.setattr("adapterhub.tui.screens.confirm.ATTENTION_SECONDS", 0.0)
        await pilot.press("n")
        await settled(pilot)
        assert [str(name) for name, _ in store.refs.all()] == before


async def test_undo_says_at_once_that_it_looks(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("u")
        await until(lambda: "Looking what was done last" in notices(app), pilot)


async def test_what_is_only_looked_at_says_so_to_every_key_that_would_change_it(
    store: Store,
) -> None:
    app = AdapterHubApp(Hub.of(store, readonly=True))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        for key in ("a", "d", "T", "u", "U"):
            app.clear_notifications()
            await pilot.press(key)
            await until(lambda: "Read-only: Nothing is changed." in notices(app), pilot)
            assert isinstance(app.screen, LibraryScreen), key
        app.clear_notifications()
        await pilot.press("slash", "x", "ctrl+s")
        await until(lambda: "Read-only: Nothing is changed." in notices(app), pilot)
    app.hub.memory.set("filters", {"mine": "x"})
    assert not (store.home / "tui.json").exists()


async def test_namespaces_are_not_gone_to_where_there_is_one(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "home")
    for seed, name in enumerate(("one", "two")):
        store.add_folder(write_adapter(tmp_path / name, base="gpt2", seed=seed), name=name)
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("n")
        await until(lambda: "All adapters are in one namespace." in notices(app), pilot)
        await pilot.press("j")
        await settled(pilot)
        assert app.screen.query_one(AdapterTable).has_focus
        assert names(app) == ["one", "two"]


async def test_scores_on_other_rows_are_marked_and_not_sorted_among_the_usual(
    app: AdapterHubApp, store: Store
) -> None:
    for name, score, rows in (
        ("desk/both", 5.0, "4f"),
        ("legal/terms", 7.0, "4f"),
        ("support/tone", 2.0, "99"),
    ):
        body = {"metric": "perplexity", "result": {"perplexity": score}}
        body["data"] = {"rows_digest": "sha256:" + rows * 32}
        store.attest(store.resolve(name).digest, "eval", body)
    async with app.run_test(size=(200, 45)) as pilot:
        await settled(pilot)
        assert cells(app)["desk/both"]["eval"] == "ppl 5"
        assert cells(app)["support/tone"]["eval"] == "~ppl 2"
        app.screen.query_one(AdapterTable).post_message(AdapterTable.Sorted("eval"))
        await settled(pilot)
        assert names(app)[:2] == ["desk/both", "legal/terms"]


async def test_an_empty_store_offers_no_key_that_needs_an_adapter(tmp_path: Path) -> None:
    app = open_app(Store.open(tmp_path / "home"))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        offered = {one.binding.action for one in app.screen.active_bindings.values()}
        assert "add" in offered
        assert not {"mark", "compare", "merge", "remove", "export", "tag"} & offered


async def test_a_source_that_begins_with_a_dash_is_no_option(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("a")
        await until(lambda: isinstance(app.screen, AddScreen), pilot)
        app.screen.query_one("#source", Input).value = "--move"
        await until(lambda: "adapterhub add ./--move" in text_of(app), pilot)


async def test_the_palette_begins_with_what_does_something(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        first = [str(hit.text) async for hit in Actions(app.screen).discover()]
        found = [str(hit.text) async for hit in Actions(app.screen).search("Up")]
        assert "Compare (c)" in first
        assert not {"Up (j)", "Up (k)", "Top (g)", "Bottom (G)"} & set(first)
        assert any(text.startswith("Up") for text in found)
