"""What a person may choose: theme and keys, from config.toml, the environment, and the last time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import FILE, Hub
from adapterhub.tui.keymap import check, remappable
from adapterhub.tui.personal import Choices, read_choices
from adapterhub.tui.themes import DEFAULT, THEMES
from tests.support.screen import settled, until


def toasts(app: AdapterHubApp) -> str:
    return "\n".join(note.message for note in app._notifications)


def write_config(home: Path, text: str) -> None:
    (home / "config.toml").write_text(text)


async def test_a_theme_that_was_chosen_is_there_the_next_time(store: Store) -> None:
    hub = Hub.of(store)
    assert read_choices(hub, {}).theme == DEFAULT
    app = AdapterHubApp(hub, read_choices(hub, {}))
    async with app.run_test() as pilot:
        await settled(pilot)
        assert app.theme == DEFAULT
        assert not (store.home / FILE).exists(), "nothing was chosen yet"
        app.theme = "adapterhub-contrast-light"
        await settled(pilot)
    assert json.loads((store.home / FILE).read_text())["theme"] == "adapterhub-contrast-light"
    assert read_choices(hub, {}).theme == "adapterhub-contrast-light"


async def test_looking_only_remembers_nothing(store: Store) -> None:
    app = AdapterHubApp(Hub.of(store, readonly=True))
    async with app.run_test() as pilot:
        app.theme = "adapterhub-light"
        await settled(pilot)
    assert not (store.home / FILE).exists()


def test_config_goes_before_memory_and_the_environment_before_both(store: Store) -> None:
    hub = Hub.of(store)
    hub.memory.set("theme", "nord")
    assert read_choices(hub, {}).theme == "nord"
    write_config(store.home, '[tui]\ntheme = "adapterhub-light"\n')
    hub = Hub.of(Store.open(store.home))
    assert read_choices(hub, {}).theme == "adapterhub-light"
    assert read_choices(hub, {"TEXTUAL_THEME": "dracula"}).theme == "dracula"


@pytest.mark.parametrize("theme", ["none-such", THEMES[2].name])
async def test_an_unknown_theme_is_told_and_a_known_one_used(store: Store, theme: str) -> None:
    app = AdapterHubApp(store, Choices(theme=theme))
    async with app.run_test() as pilot:
        await settled(pilot)
        known = theme != "none-such"
        assert app.theme == (theme if known else DEFAULT)
        assert ("There is no theme called none-such." in toasts(app)) is not known


async def test_a_config_that_cannot_be_used_is_told_and_keeps_nobody_out(store: Store) -> None:
    write_config(store.home, "[tui]\ncolour = 1\n")
    hub = Hub.of(Store.open(store.home))
    app = AdapterHubApp(hub, read_choices(hub, {}))
    async with app.run_test() as pilot:
        await settled(pilot)
        assert "config.toml can't be used." in toasts(app)


async def test_a_key_that_was_put_elsewhere_works_there_and_no_longer_here(store: Store) -> None:
    write_config(store.home, '[tui.keys]\n"app.help" = "f1,ctrl+g"\n"app.hlp" = "f2"\n')
    hub = Hub.of(Store.open(store.home))
    app = AdapterHubApp(hub, read_choices(hub, {}))
    async with app.run_test() as pilot:
        await until(lambda: "app.hlp" in toasts(app), pilot)
        assert "Did you mean app.help" in toasts(app)
        await pilot.press("question_mark")
        assert not app.screen.is_modal
        for key in ("f1", "ctrl+g"):
            await pilot.press(key)
            assert app.screen.is_modal
            await pilot.press("escape")


def test_wishes_that_cannot_be_granted_are_told_one_by_one() -> None:
    granted, complaints = check(
        {
            "app.help": "f1",
            "nothing.such": "x",
            "app.quit": "nokey",
            "app.jump": "1",
            "app.library": "f4",
        }
    )
    assert granted == {"app.help": "f1", "app.library": "f4", "app.jump": "1"}, "1 became free"
    assert complaints == [
        "There is nothing called nothing.such that keys could do.",
        "nokey is no key, for app.quit.",
    ]
    granted, complaints = check({"app.jump": "1"})
    assert not granted
    assert complaints == ["1 is app.library already: app.jump keeps its own key."]


def test_every_key_of_ours_has_an_id_a_label_and_says_what_it_does() -> None:
    for one in remappable().values():
        place, _, what = one.id.partition(".")
        assert place, one.id
        assert what, one.id
        assert one.label or one.about, one.id


def test_the_page_on_the_terminal_ui_lists_every_key() -> None:
    script = Path(__file__).parents[2] / "scripts" / "tui_keys.py"
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
