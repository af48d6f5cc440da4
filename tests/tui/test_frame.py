"""What every screen has: the places and their keys, help, the palette, dialogs, and a store that is only looked at."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.widgets import Button, Input, Static

from adapterhub.errors import NotFoundError
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import FILE, Hub, Memory, in_thread
from adapterhub.tui.places import PLACES, VISITS, make
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.screens.confirm import ConfirmScreen, TextScreen
from adapterhub.tui.screens.help import HelpScreen
from adapterhub.tui.widgets.top_bar import PlaceLabel
from tests.support.screen import USUAL, settled, until


class Asking(HubScreen):
    """A screen of no purpose but to ask."""

    ABOUT = "It asks."
    CHANGES = frozenset({"alter"})
    BINDINGS: ClassVar[list[BindingType]] = [Binding("z", "alter", "Alter")]

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.answers: list[object] = []

    def body(self) -> ComposeResult:
        yield Static("asking")

    def command_line(self) -> str:
        return "adapterhub ls [bold]"

    def action_alter(self) -> None:
        self.run_worker(self._alter())

    async def _alter(self) -> None:
        self.answers.append(await self.confirm("Sure?", ["It frees 3 MB."], "adapterhub gc"))

    def action_name(self) -> None:
        self.run_worker(self._ask_name())

    async def _ask_name(self) -> None:
        check = lambda text: "no blanks" if " " in text else ""  # noqa: E731
        self.answers.append(await self.ask_text("A name", check=check))


async def test_number_keys_and_clicks_lead_to_the_places(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        for place in reversed(PLACES):
            await pilot.press(place.key)
            await settled(pilot)
            assert app.current_mode == place.id
            assert isinstance(app.screen, HubScreen)
            assert place.id == app.screen.PLACE
            marked = [label.place.id for label in app.screen.query(".-here").results(PlaceLabel)]
            assert marked == [place.id]
        await pilot.click(list(app.screen.query(PlaceLabel))[-1])
        await settled(pilot)
        assert app.current_mode == PLACES[-1].id


def test_every_screen_that_can_be_visited_exists_and_says_what_it_is_for(store: Store) -> None:
    hub = Hub.of(store)
    given: dict[str, dict[str, Any]] = {
        "compare": {"names": ("a", "b")},
        "evaluations": {"names": ("a",)},
        "merge": {"names": ("a", "b")},
        "export": {"names": ("a",)},
        "run": {"run": "merge-1"},
        "training": {"runs": ("train-1",)},
        "chat": {"names": ("a",)},
    }
    screens = [make(place.screen, hub) for place in PLACES]
    screens += [make(where, hub, **given.get(what, {})) for what, where in VISITS.items()]
    for screen in screens:
        assert len(screen.ABOUT) > 40, type(screen)


async def test_help_has_the_screens_words_and_every_key_with_a_purpose(app: AdapterHubApp) -> None:
    async with app.run_test(size=(80, 60)) as pilot:
        await settled(pilot)
        await pilot.press("question_mark")
        await settled(pilot)
        assert isinstance(app.screen, HelpScreen)
        told = str(app.screen.query_one("#keys", Static).content)
        for place in PLACES:
            assert place.about.lower() in told.lower()
        await pilot.press("1")
        assert isinstance(app.screen, HelpScreen), "a dialog is closed before one goes elsewhere"
        await pilot.press("escape")
        assert not isinstance(app.screen, HelpScreen)


async def test_the_palette_does_what_the_keys_do(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("ctrl+p")
        await pilot.pause()
        assert isinstance(app.screen, CommandPalette)
        app.screen.query_one(Input).value = "go to history"
        await until(lambda: len(app.screen.query("CommandList")) > 0, pilot)
        await pilot.pause(0.5)
        await pilot.press("enter", "enter")
        await until(lambda: app.current_mode == "history", pilot)


async def test_a_question_is_answered_with_no_unless_yes_is_said(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        screen = Asking(Hub.of(store))
        await app.push_screen(screen)
        for keys, answer in [
            (["enter"], False),
            (["escape"], False),
            (["n"], False),
            (["y"], True),
            (["left", "enter"], True),
        ]:
            await pilot.press("z")
            await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
            said = " ".join(str(one.content) for one in app.screen.query(Static).results(Static))
            assert "It frees 3 MB." in said
            assert "adapterhub gc" in said
            await pilot.press(*keys)
            await until(lambda: app.screen is screen, pilot)
            await pilot.pause()
            assert screen.answers.pop() is answer, keys
        await pilot.press("z")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.click(app.screen.query_one("#yes", Button))
        await until(lambda: screen.answers == [True], pilot)


async def test_a_line_is_taken_once_nothing_is_wrong_with_it(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = Asking(Hub.of(store))
        await app.push_screen(screen)
        screen.action_name()
        await until(lambda: isinstance(app.screen, TextScreen), pilot)
        await pilot.press("a", "space", "b", "enter")
        assert str(app.screen.query_one(".problem", Static).content) == "no blanks"
        assert screen.answers == []
        await pilot.press("backspace", "backspace", "enter")
        await until(lambda: screen.answers == ["a"], pilot)


async def test_a_store_that_is_only_looked_at_offers_no_change(store: Store) -> None:
    app = AdapterHubApp(Hub.of(store, readonly=True))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert "read-only" in str(app.screen.query_one("#flags", Static).content)
        screen = Asking(app.hub)
        await app.push_screen(screen)
        await pilot.press("z", "u", "U")
        await settled(pilot)
        assert app.screen is screen
        assert screen.answers == []


async def test_the_command_line_is_copied_as_it_is(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await app.push_screen(Asking(Hub.of(store)))
        await pilot.press("y")
        await pilot.pause()
        assert app.clipboard == "adapterhub ls [bold]"


async def test_errors_are_said_in_the_command_lines_words(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        screen = Asking(Hub.of(store))
        await app.push_screen(screen)
        screen.refuse(NotFoundError("There is no x.", why="It went.", hint="adapterhub ls"))
        await pilot.pause()
        (told,) = app._notifications
        assert told.message == "There is no x.\nIt went.\nadapterhub ls"
        assert told.severity == "error"


async def test_leaving_waits_for_no_answer(app: AdapterHubApp, store: Store) -> None:
    """A store on a dead network disk never answers; the screen closes all the same."""
    forever, asked = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        forever.wait(60)

    async with app.run_test(size=USUAL) as pilot:
        screen = Asking(Hub.of(store))
        await app.push_screen(screen)
        screen.run_worker(screen.ask(wait))
        await until(asked.is_set, pilot)
        began = time.monotonic()
    try:
        assert time.monotonic() - began < 30
    finally:
        forever.set()


async def test_an_error_in_a_thread_reaches_whoever_asked() -> None:
    def fail() -> None:
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError, match="gone"):
        await in_thread(fail)
    assert await asyncio.gather(*(in_thread(abs, -n) for n in range(50))) == list(range(50))


def test_what_is_remembered_survives_and_is_never_in_the_way(tmp_path: Path) -> None:
    memory = Memory(tmp_path / FILE)
    assert memory.get("theme", "dark") == "dark"
    memory.set("theme", "light")
    memory.set("filters", {"mine": "rank:8"})
    assert Memory(tmp_path / FILE).get("theme", "dark") == "light"
    assert memory.get("theme", {}) == {}, "of another kind than was asked for"
    (tmp_path / FILE).write_text("{torn")
    assert memory.get("theme", "dark") == "dark"
    memory.set("theme", "light")
    assert memory.get("theme", "dark") == "light"
    nowhere = Memory(tmp_path / "absent" / FILE)
    nowhere.set("theme", "light")
    assert not (tmp_path / "absent").exists(), "looking at an absent store makes none"
