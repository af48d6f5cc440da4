"""The store changes while the screen is open, or answers late; the screen keeps up and never waits."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.library.reading import Tell, read_rows
from adapterhub.tui.screens import base, library
from adapterhub.tui.widgets.adapter_table import AdapterTable
from adapterhub.tui.widgets.filter_bar import FilterBar
from tests.support.sample import ALL, write_adapter
from tests.support.screen import USUAL, detail, names, open_app, settled, shown, until


async def test_r_shows_what_has_changed(
    app: AdapterHubApp,
    store: Store,
    tmp_path: Path,
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("down")  # legal/terms
        store.add_folder(write_adapter(tmp_path / "new", base="gpt2"), name="a/new")
        store.remove([parse_name("desk/both")])
        await pilot.press("r")
        await settled(pilot)
        assert names(app) == ["a/new", *ALL[1:]]
        assert detail(app).startswith("legal/terms"), "the selection stays where it was"


async def test_a_change_by_another_process_appears_by_itself(
    app: AdapterHubApp,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "POLL_SECONDS", 0.05)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        store.add_folder(write_adapter(tmp_path / "new", base="gpt2"), name="z/new")
        await until(lambda: names(app) == [*ALL, "z/new"], pilot)
        await until(lambda: detail(app).startswith("desk/both"), pilot)
        store.attest(store.resolve("desk/both").digest, "note", {"text": "good enough"})
        await until(lambda: "good enough" in detail(app), pilot)
        store.remove([parse_name("desk/both")])
        await until(lambda: names(app) == [*ALL[1:], "z/new"], pilot)
        await until(lambda: detail(app).startswith("legal/terms"), pilot)


async def test_a_first_adapter_replaces_the_lesson(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "POLL_SECONDS", 0.05)
    store = Store.open(tmp_path / "home")
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        store.add_folder(write_adapter(tmp_path / "first", base="gpt2"))
        await until(lambda: names(app) == ["first"], pilot)
        await until(lambda: isinstance(app.focused, AdapterTable), pilot)


async def test_a_ref_that_is_written_after_the_look_is_seen_at_the_next(
    app: AdapterHubApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "POLL_SECONDS", 0.05)
    ref = store.layout.ref(parse_name("tools/calls"))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        reads: list[float] = []

        def reading(store: Store, tell: Tell) -> Any:
            rows = read_rows(store, tell)
            reads.append(time.monotonic())
            if len(reads) == 1:
                ref.unlink()  # what the journal announced happens just after we looked
            return rows

        await pilot.pause(0.3)  # until the first looks are over
        monkeypatch.setattr(library, "read_rows", reading)
        digest = store.resolve("tools/calls").digest
        line: dict[str, str | None] = {
            "time": "",
            "who": "x",
            "op": "rm",
            "ref": "tools/calls",
            "before": digest,
        }
        line |= {"after": None, "why": "", "id": "1", "about": ""}
        with store.layout.journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")
        await until(lambda: names(app) == ALL[:-1], pilot)


async def test_a_store_that_answers_slowly_blocks_no_key(
    app: AdapterHubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(store: Store, tell: Tell) -> Any:
        go_on.wait(120)
        return read_rows(store, tell)

    monkeypatch.setattr(library, "read_rows", slow)
    async with app.run_test(size=USUAL) as pilot:
        try:
            await pilot.press("slash", *"tools")
            await until(lambda: app.screen.query_one(FilterBar).value == "tools", pilot)
            assert shown(app, "#count") == "reading …"  # the store hasn't answered yet
        finally:
            go_on.set()
        await settled(pilot)
        assert names(app) == ["tools/calls"]
