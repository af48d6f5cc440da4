"""The terminal UI on a store that the system itself lets nobody write."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from textual.widgets import Input

from adapterhub.store import Store
from adapterhub.tui.screens.confirm import ConfirmScreen
from adapterhub.tui.screens.library import LibraryScreen
from tests.support.sample import ALL
from tests.support.screen import USUAL, names, open_app, settled, until
from tests.tui.test_library_actions import notices


@pytest.fixture
def locked_store(store: Store) -> Iterator[Store]:
    """The sample store, mounted read-only over itself."""
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    bound = subprocess.run(
        ["mount", "--bind", store.home, store.home], capture_output=True, text=True, check=False
    )
    if bound.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {bound.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store.home], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (store.home / "probe").touch()
        yield store
    finally:
        subprocess.run(["umount", "-l", store.home], check=True)


async def test_a_store_on_a_read_only_mount_is_shown_and_refuses_changes_in_words(
    locked_store: Store,
) -> None:
    app = open_app(locked_store)
    async with app.run_test(size=USUAL, notifications=True) as pilot:
        await settled(pilot)
        assert names(app) == ALL
        await pilot.press("d")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("y")
        await until(lambda: "read-only" in notices(app).lower(), pilot)
        assert isinstance(app.screen, LibraryScreen)
        assert "Something went wrong inside" not in notices(app)
        assert names(app) == ALL
        await pilot.press("slash", "x", "escape")
        await until(lambda: not isinstance(app.focused, Input), pilot)
        await settled(pilot)
        assert names(app) == ALL
