"""Jump mode: a letter on everything that can have the focus, a number on the places."""

from __future__ import annotations

from textual.pilot import Pilot
from textual.widgets import Static

from adapterhub.store import Store
from adapterhub.tui.jump import JumpScreen, targets
from tests.support.screen import open_app, settled


async def opened(pilot: Pilot[None]) -> JumpScreen:
    await settled(pilot)
    await pilot.press("ctrl+o")
    await settled(pilot)
    screen = pilot.app.screen
    assert isinstance(screen, JumpScreen)
    return screen


async def test_every_letter_leads_to_another_part_of_the_screen(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=(140, 45)) as pilot:
        await settled(pilot)
        below = app.screen
        letters = [(key, widget) for key, widget, _ in targets(below) if widget.focusable]
        assert len(letters) >= 3, "the tree, the list and the details at least"
        for key, widget in letters:
            await opened(pilot)
            await pilot.press(key)
            await settled(pilot)
            assert app.screen is below
            assert app.focused is widget, key


async def test_letters_stand_where_their_widgets_begin_and_no_two_on_one_spot(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        regions = {key: region for key, _, region in targets(app.screen)}
        screen = await opened(pilot)
        labels = list(screen.query(".jump").results(Static))
        assert {str(label.content) for label in labels} == regions.keys()
        assert len({label.region.offset for label in labels}) == len(labels)
        for label in labels:
            assert label.region.y == regions[str(label.content)].y


async def test_a_number_leads_to_its_place(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.press("5")
        await settled(pilot)
        assert app.current_mode == "history"


async def test_escape_leaves_everything_as_it_was(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        focused = app.focused
        for key in ("escape", "ctrl+o"):
            await opened(pilot)
            await pilot.press("Z", key)  # a letter that nothing has
            await settled(pilot)
            assert not isinstance(app.screen, JumpScreen)
            assert app.focused is focused


async def test_when_the_terminal_changes_its_size_the_letters_go(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        await pilot.resize_terminal(120, 40)
        await settled(pilot)
        assert not isinstance(app.screen, JumpScreen)
