"""The terminal UI as a test sees it: what is drawn, and waiting until it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from textual.pilot import Pilot
from textual.widgets import Static
from textual.worker import WorkerCancelled

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.detail_pane import DetailPane, Sections

WIDE = (140, 45)
USUAL = (80, 24)


def open_app(store: Store) -> AdapterHubApp:
    """The application on any store."""
    app = AdapterHubApp(store)
    app.theme = "textual-dark"  # whatever TEXTUAL_THEME says
    return app


async def settled(pilot: Pilot[None]) -> None:
    """Waits until what was asked of the store has come back and is drawn."""
    for _ in range(2):  # an answer may be the next question
        await pilot.pause()
        with suppress(WorkerCancelled):  # of a screen that was left
            await pilot.app.workers.wait_for_complete()
    await pilot.pause()


async def until(condition: Callable[[], bool], pilot: Pilot[None], seconds: float = 90) -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await pilot.pause(0.02)


def rows(app: AdapterHubApp) -> dict[str, list[str]]:
    """The cells of each row as they are drawn, by name; the marks before the name are no cell."""
    return {name: list(found.values())[1:] for name, found in cells(app).items()}


def cells(app: AdapterHubApp) -> dict[str, dict[str, str]]:
    """The texts of each row as they are drawn, by name and column; the marks before the name as `marks`."""
    table = app.screen.query_one(AdapterTable)
    if not table.display:
        return {}
    return dict(zip((row.name for row in table.listed), table.texts(), strict=True))


def names(app: AdapterHubApp) -> list[str]:
    """The names in the list, in order."""
    return list(rows(app))


def detail(app: AdapterHubApp) -> str:
    """Title and text of the detail pane."""
    pane = app.screen.query_one(DetailPane)
    return f"{pane.border_title}\n{pane.query_one(Sections).render()}"


def shown(app: AdapterHubApp, selector: str) -> str:
    """The text of the widget `selector`."""
    return str(app.screen.query_one(selector, Static).content)
