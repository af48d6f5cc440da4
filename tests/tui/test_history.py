"""The History place: what was done, taking it back and doing it again; what gc and fsck would do, and doing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from textual.widgets import Input, Static

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store import history as going_back
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.screens import base
from adapterhub.tui.screens.confirm import ConfirmScreen
from adapterhub.tui.screens.history import HistoryScreen
from adapterhub.tui.screens.keeping import FsckScreen, GcScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.line_table import LineTable
from tests.support.sample import ALL
from tests.support.screen import USUAL, WIDE, open_app, settled, until


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "POLL_SECONDS", 0.05)


def names(store: Store) -> list[str]:
    return [str(name).removesuffix(":latest") for name, _ in store.refs.all()]


def listed(app: AdapterHubApp) -> list[str]:
    """What was done, as the table says it."""
    found = app.screen.query(LineTable)
    return [line.cells[2].strip() for table in found if table.display for line in table.lines]


def things(app: AdapterHubApp) -> list[str]:
    """What gc or fsck list."""
    found = app.screen.query(LineTable)
    return [line.cells[1].strip() for table in found if table.display for line in table.lines]


def said(app: AdapterHubApp) -> str:
    found = app.screen.query("#about Sections").results(Sections)
    return " ".join(" ".join(str(one.render()) for one in found).split())


def words(app: AdapterHubApp) -> str:
    return str(app.screen.query_one("#words", Static).content)


def instead(app: AdapterHubApp) -> str:
    return str(app.screen.query_one("#instead", Static).content)


def last_said(app: AdapterHubApp) -> str:
    """The newest toast."""
    return next((one.message for one in reversed(list(app._notifications))), "")


def question(app: AdapterHubApp) -> str:
    assert isinstance(app.screen, ConfirmScreen)
    return "\n".join(str(one.content) for one in app.screen.query(Static).results(Static))


async def test_what_was_done_is_listed_newest_first_and_told(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        assert listed(app)[0] == "tag support/tone support/tone:prod"
        assert "support/tone:prod – -> @" in said(app)
        assert "u takes it back" in said(app)
        await pilot.press("G")
        await until(lambda: "5 operations" in said(app), pilot)
        await pilot.press("r")
        await settled(pilot)
        assert "5 operations" in said(app), "reading again moves nothing"
        store.remove([parse_name("odd/stranger")])
        await until(lambda: listed(app)[0] == "rm odd/stranger", pilot)
        assert app.screen.query_one(LineTable).cursor_row == len(ALL), (
            "the cursor stays on its line"
        )


async def test_undo_says_what_it_takes_back_does_it_and_can_be_taken_back(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        assert not app.screen.check_action("redo", ()), "nothing was taken back"
        await pilot.press("u")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "Take back: tag support/tone support/tone:prod?" in question(app)
        assert "support/tone:prod goes away" in question(app)
        assert "adapterhub undo" in question(app)
        await pilot.press("y")
        await until(lambda: len(listed(app)) == len(ALL) + 1, pilot)
        assert "support/tone:prod" not in names(store)
        assert last_said(app).startswith("adapterhub undo\n")
        assert app.screen.check_action("redo", ())
        await pilot.press("U")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "Do it again: tag support/tone support/tone:prod?" in question(app)
        assert "its line is adapterhub undo" in question(app)
        assert "support/tone:prod comes back" in question(app)
        await pilot.press("y")
        await until(lambda: "support/tone:prod" in names(store), pilot)
        await until(lambda: listed(app)[0] == "undo of an undo: support/tone:prod", pilot)


async def test_undo_works_from_every_place_and_no_is_no(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("u")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("n")
        await until(lambda: not isinstance(app.screen, ConfirmScreen), pilot)
        assert names(store) == ALL


async def test_everything_from_a_line_on_is_taken_back_together(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        await pilot.press("j", "j")
        await until(lambda: "2 operations" in said(app), pilot)
        await pilot.press("b")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "Take back the last 3 operations?" in question(app)
        assert "adapterhub undo 3" in question(app)
        await pilot.press("y")
        await until(lambda: len(names(store)) == len(ALL) - 3, pilot)
        assert store.log()[-1].op == "undo"


async def test_what_was_done_meanwhile_is_not_taken_back_unseen(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        await pilot.press("u")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        store.remove([parse_name("odd/stranger")])
        await pilot.press("y")
        await until(lambda: "has just changed the store" in last_said(app), pilot)
        assert "support/tone:prod" in names(store)


async def test_an_undo_that_cannot_be_done_says_why(app: AdapterHubApp, store: Store) -> None:
    store.layout.ref(parse_name("support/tone:prod")).unlink()
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await pilot.press("5", "u")
        await until(lambda: "no longer" in last_said(app), pilot)
        told = list(app._notifications)[-1]
        assert "no longer what the journal says" in told.message
        assert told.severity == "error"


async def test_the_filter_finds_the_changes_of_a_name(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        await pilot.press("slash", *"tone")
        await until(lambda: len(listed(app)) == 2, pilot)
        assert isinstance(app.screen, HistoryScreen)
        assert app.screen.command_line() == "adapterhub log tone"
        await pilot.press("enter", "down", "b")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert f"the last {len(ALL)} operations" in question(app), "counted in all, not in the list"
        await pilot.press("n")
        await until(lambda: isinstance(app.screen, HistoryScreen), pilot)
        await pilot.press("escape")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        assert not app.screen.query_one(Input).display


async def test_an_empty_or_unreadable_history_is_said(tmp_path: Path) -> None:
    app = open_app(Store.open(tmp_path / "nothing"))
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await pilot.press("5")
        await until(lambda: "Nothing was ever changed" in instead(app), pilot)
        await pilot.press("U")
        await settled(pilot)
        assert not (tmp_path / "nothing").exists()
    store = Store.open(tmp_path / "broken")
    store.layout.journal.mkdir(parents=True)
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("5")
        await until(lambda: "can't be read" in instead(app), pilot)


async def test_a_collection_is_shown_by_name_done_and_undone(store: Store, home: Path) -> None:
    (home / "config.toml").write_text('[store]\ngrace = "0s"\nkeep_releases = 0\n')
    store = Store.open(home)
    stranger = store.resolve("odd/stranger").digest
    store.remove([parse_name("odd/stranger")])
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("5", "c")
        await until(lambda: isinstance(app.screen, GcScreen) and bool(things(app)), pilot)
        assert any("(was odd/stranger)" in thing for thing in things(app))
        assert "would go to the trash" in words(app)
        assert store.layout.manifest(stranger).exists(), "looking takes nothing"
        await pilot.press("c")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "would go to the trash" in question(app)
        assert "adapterhub gc --yes" in question(app)
        await pilot.press("y")
        await until(lambda: not store.layout.manifest(stranger).exists(), pilot)
        await until(lambda: "There is no garbage" in words(app), pilot)
        assert not app.screen.check_action("collect", ())
    going_back.undo(store)
    assert store.layout.manifest(stranger).exists()


async def test_a_check_shows_whom_a_damage_concerns_and_mends_it(store: Store, home: Path) -> None:
    tone = store.resolve("support/tone")
    attested = next(store.layout.attestations(tone.digest).iterdir())
    attested.chmod(0o644)
    attested.write_text(json.dumps({"not": "it"}))
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("5", "f")
        await until(lambda: isinstance(app.screen, FsckScreen) and bool(things(app)), pilot)
        assert "an attestation of" in things(app)[0]
        assert "support/tone" in said(app)
        assert "damaged in 1 place" in words(app)
        await pilot.press("R")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "quarantine" in question(app)
        await pilot.press("y")
        await until(lambda: "no damage" in words(app), pilot, seconds=40)


async def test_reading_the_data_finds_what_a_look_does_not(store: Store) -> None:
    blob = next(path for path in store.layout.blobs.rglob("*") if path.is_file())
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    app = open_app(Hub.of(store, readonly=True))  # type: ignore[arg-type]
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("5", "f")
        await until(lambda: isinstance(app.screen, FsckScreen) and "no damage" in words(app), pilot)
        await pilot.press("d")
        await until(lambda: "damaged in 1 place" in words(app), pilot)
        assert isinstance(app.screen, FsckScreen)
        assert app.screen.command_line() == "adapterhub fsck --read-data"
        assert "have changed" in things(app)[0]
        assert not app.screen.check_action("repair", ()), "a store that is only looked at"


async def test_keys_where_a_filter_finds_nothing_harm_nothing(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        await pilot.press("slash", "z", "z", "enter", "up", "k", "down", "enter")
        await settled(pilot)
        assert listed(app) == []
        await pilot.press("escape")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        await until(lambda: isinstance(app.focused, LineTable), pilot)


async def test_a_history_that_is_only_looked_at_offers_no_change(store: Store) -> None:
    app = open_app(Hub.of(store, readonly=True))  # type: ignore[arg-type]
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("5")
        await until(lambda: len(listed(app)) == len(ALL), pilot)
        await until(lambda: "since then nothing" in said(app), pilot)
        assert "takes it back" not in said(app)
        offered = [one.binding.description for one in app.screen.active_bindings.values()]
        assert "Garbage" in offered
        assert not {"Collect", "Undo", "Undo to here"} & set(offered)
