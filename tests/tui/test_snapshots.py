"""How the screens look, as SVG, at the two sizes that count: 80x24 and 140x45.

After an intended change: pytest tests/tui/test_snapshots.py --snapshot-update, then look at the pictures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from tests.support.screen import open_app, settled, until

SIZES = [pytest.param((80, 24), id="80x24"), pytest.param((140, 45), id="140x45")]


@pytest.fixture
def looks(snap_compare: Callable[..., bool]) -> Callable[..., bool]:
    """Whether the application looks as it did, after `keys`."""

    def compare(
        app: AdapterHubApp, size: tuple[int, int], *keys: str, asking: bool = False
    ) -> bool:
        async def press(pilot: Pilot[Any]) -> None:
            await settled(pilot)
            await pilot.press(*keys)
            if asking:  # the worker waits for an answer
                await until(lambda: pilot.app.screen.is_modal, pilot)
                await pilot.pause()
            else:
                await settled(pilot)

        return snap_compare(app, terminal_size=size, run_before=press)

    return compare


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
@pytest.mark.parametrize("size", SIZES)
def test_the_library(
    app: AdapterHubApp, looks: Callable[..., bool], size: tuple[int, int], theme: str
) -> None:
    app.theme = theme
    assert looks(app, size)


@pytest.mark.parametrize("size", SIZES)
def test_marked_served_and_filtered(
    store: Store, app: AdapterHubApp, looks: Callable[..., bool], size: tuple[int, int]
) -> None:
    digest = store.resolve("support/tone").digest
    with store.leases.held("serve", [digest], "at http://127.0.0.1:8000"):
        assert looks(app, size, "space", "space", "slash", *"te")


def test_a_wrong_word_of_the_filter(app: AdapterHubApp, looks: Callable[..., bool]) -> None:
    assert looks(app, (80, 24), "slash", *"rank", "colon", "x")


@pytest.mark.parametrize("size", SIZES)
def test_one_damaged_and_one_of_a_newer_version(
    store: Store,
    app: AdapterHubApp,
    write_newer: Callable[[str], None],
    looks: Callable[..., bool],
    size: tuple[int, int],
) -> None:
    store.layout.manifest(store.resolve("legal/terms").digest).unlink()
    write_newer("tools/calls")
    assert looks(app, size, "G")


def test_an_empty_store(tmp_path: Path, looks: Callable[..., bool]) -> None:
    assert looks(open_app(Store.open(tmp_path / "none")), (80, 24))


def test_the_details_with_the_focus(app: AdapterHubApp, looks: Callable[..., bool]) -> None:
    assert looks(app, (80, 24), "enter", *["pagedown"] * 4)


def test_the_namespaces_where_there_is_little_room(
    app: AdapterHubApp, looks: Callable[..., bool]
) -> None:
    assert looks(app, (80, 24), "n", "j", "j")


def test_the_question_before_a_removal(app: AdapterHubApp, looks: Callable[..., bool]) -> None:
    assert looks(app, (80, 24), "d", asking=True)


def test_the_dialog_that_adds(app: AdapterHubApp, looks: Callable[..., bool]) -> None:
    assert looks(app, (80, 24), "a", asking=True)
