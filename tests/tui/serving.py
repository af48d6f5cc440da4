"""Servers as the screens see them: a store that can be served, `adapterhub serve` on a stand-in, and what is drawn of both."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

from adapterhub.serve.client import servers
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.screens.confirm import ConfirmScreen
from adapterhub.tui.screens.serve import ServeScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.form import Choice, Text, Toggle
from adapterhub.tui.widgets.server_table import ServerTable
from adapterhub.tui.widgets.setting_form import SettingForm
from tests.cli.calling import PROGRAM, first_record
from tests.support.adapters import AdapterMaker
from tests.support.screen import until

Add = Callable[..., str]


def adder(store: Store, base: Path, make_adapter: AdapterMaker) -> Add:
    """add(name, **fields): an adapter of org/tiny, which lies at `base`; returns its digest."""
    store.bases.remember(store.bases.open(str(base), repo="org/tiny"))

    def add(name: str, **fields: Any) -> str:
        folder = make_adapter(name.replace("/", "-").replace(":", "-"), **fields)
        return store.add_folder(folder, name=name).digest

    return add


class Elsewhere:
    """`adapterhub serve NAMES`, started by somebody else."""

    def __init__(self, stand_in: Path, port: int, *names: str) -> None:
        words = ["--json", "--no-verify", "--vllm", str(stand_in), "--port", str(port)]
        self.process = subprocess.Popen(
            [PROGRAM, "serve", *names, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ),
        )
        assert self.process.stdout is not None
        self.record = first_record(self.process.stdout)

    def end(self) -> None:
        """Stopped if it still runs, and waited for."""
        self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def end_all(store: Store) -> None:
    """Ends every server of the store that a test has left, and waits for it."""
    left = [psutil.Process(lease.pid) for lease in store.leases.live() if lease.kind == "serve"]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    psutil.wait_procs(left, timeout=30)


def words(app: App[None], selector: str) -> str:
    """What a pane says, without its layout."""
    sections = app.screen.query_one(f"{selector} Sections", Sections).sections
    return "\n".join(
        line
        for section in sections
        for line in (section.title, *(f"{fact.label} {fact.text}" for fact in section.facts))
    )


def options(app: App[None], selector: str) -> list[str]:
    """The lines of a list."""
    found = app.screen.query_one(selector, OptionList)
    return [str(found.get_option_at_index(place).prompt) for place in range(found.option_count)]


def served(app: App[None]) -> dict[str, dict[str, str]]:
    """The rows of the table of a server, as drawn, by name."""
    table = app.screen.query_one(ServerTable)
    keys = [str(column.label) for column in table.ordered_columns]
    rows = [
        dict(zip(keys, (cell.plain for cell in table.get_row_at(place)), strict=True))
        for place in range(table.row_count)
    ]
    return {row["name"]: row for row in rows}


def toasts(app: App[None]) -> str:
    """Everything that toasts say now."""
    return "\n".join(f"{one.title}: {one.message}" for one in app._notifications)


def screen(app: AdapterHubApp) -> ServeScreen:
    """The place, which must be where one is."""
    found = app.screen
    assert isinstance(found, ServeScreen), found
    return found


async def planned(pilot: Pilot[Any], app: AdapterHubApp, *names: str) -> None:
    """Comes to the place with these adapters and waits for the checklist."""
    await app.go("serve", names=names)
    await until(lambda: screen(app).planned.names == names and not screen(app).planned.stale, pilot)


async def serving(pilot: Pilot[Any], app: AdapterHubApp) -> None:
    """Waits until a server is shown that serves."""
    await app.go("serve")
    await until(lambda: "state serving" in words(app, "#about"), pilot)


async def fill(pilot: Pilot[Any], app: AdapterHubApp, **values: str | bool) -> None:
    """Types into the settings, and waits for what is said to that."""
    for field, value in values.items():
        row = app.screen.query_one(SettingForm).row(field)
        assert row is not None
        control = row.field
        assert isinstance(control, Text | Toggle | Choice)
        setattr(control, "value", value)  # noqa: B010 - text of a Text, bool of a Toggle
    await until(
        lambda: (
            screen(app).planned.values.items() >= values.items() and not screen(app).planned.stale
        ),
        pilot,
    )


def means(store: Store, name: str) -> list[str]:
    """The versions that the only server means by a name."""
    (server,) = servers(store)
    alias = next(one for one in server.status()["aliases"] if one["name"] == name)
    return [target["digest"] for target in alias["targets"]]


async def confirmed(pilot: Pilot[Any], app: AdapterHubApp, question: str) -> None:
    """Says yes to a question that names its consequence."""
    await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
    texts = [str(one.content) for one in app.screen.query(Static)]
    assert question in texts
    assert len(app.screen.query(".consequence")) > 0
    await pilot.press("y")
    await until(lambda: not app.screen.is_modal, pilot)
