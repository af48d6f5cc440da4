"""vLLM itself, started, changed, asked and stopped from the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from textual.widgets import Input

from adapterhub.serve.client import servers
from adapterhub.tui.screens.chat import ChatScreen
from tests.serve.live import House
from tests.support.models import ModelMaker
from tests.support.screen import WIDE, open_app, until
from tests.support.stand_in import free_port
from tests.tui.serving import (
    confirmed,
    end_all,
    fill,
    means,
    planned,
    screen,
    served,
    serving,
    toasts,
    words,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def house(tmp_path: Path, tiny: ModelMaker) -> Iterator[House]:
    found = House(tmp_path, tiny.llama())
    for name in ("tone", "terms", "later"):
        found.add(name)
    yield found
    end_all(found.store)


async def test_a_server_is_started_verified_changed_asked_and_stopped(house: House) -> None:
    store = house.store
    first, newer = store.resolve("terms").digest, house.add("terms:v2")
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await planned(pilot, app, "tone", "terms")
        await fill(
            pilot, app, base=str(house.base), dtype="float32", max_model_len="128", port=str(port := free_port()),
            max_rank="16", extra="--max-num-seqs 16",
        )  # fmt: skip
        assert screen(app).planned.startable, words(app, "#checks")
        await pilot.press("ctrl+r")
        await until(lambda: "starting vLLM" in words(app, "#about"), pilot, 60)
        await until(lambda: "\nlog " in words(app, "#about"), pilot, 60)
        (server,) = servers(store)
        family = psutil.Process(server.pid).children(recursive=True)
        await until(lambda: "state serving" in words(app, "#about"), pilot, 280)
        await serving(pilot, app)
        assert "3 names answered as trained, alone and mixed" in words(app, "#about")

        await pilot.press("a")
        await until(lambda: app.screen.is_modal, pilot)
        await pilot.press(*"later", "enter")
        await until(lambda: "later" in served(app), pilot)
        await until(lambda: served(app)["later"]["state"] == "loaded", pilot)
        await pilot.press("V")
        await until(lambda: "4 names answered as trained" in words(app, "#about"), pilot, 200)
        await pilot.press("j", "o")
        await until(lambda: app.screen.is_modal, pilot)
        await pilot.press(*":v2", "enter")
        await until(lambda: means(store, "terms") == [newer], pilot, 60)
        await pilot.press("b")
        await confirmed(pilot, app, "Take terms back?")
        await until(lambda: means(store, "terms") == [first], pilot)

        await pilot.press("p")
        await until(lambda: isinstance(app.screen, ChatScreen), pilot)
        chat = app.screen
        assert isinstance(chat, ChatScreen)
        await until(lambda: f"server at http://127.0.0.1:{port}" in chat.about, pilot)
        chat.query_one("#max_tokens", Input).value = "12"
        chat.query_one("#prompt", Input).value = "Once"
        await pilot.press("enter")
        await until(lambda: bool(chat.playground.voices[0].turns), pilot)
        await until(lambda: not chat.playground.busy, pilot, 120)
        turns = [voice.turns[0] for voice in chat.playground.voices]
        assert [turn.problem for turn in turns] == [None] * 4
        assert [turn.tokens for turn in turns] == [12] * 4
        await pilot.press("escape")

        await pilot.press("x")
        await confirmed(pilot, app, f"Stop http://127.0.0.1:{port}?")
        await until(lambda: "it was told to stop, and did" in words(app, "#about"), pilot, 60)
        assert not [one for one in family if one.is_running()], toasts(app)
