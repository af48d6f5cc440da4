"""Serving from the screen: the checklist, a start, changes while it runs, and servers that come and go by themselves."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from rich.cells import cell_len
from textual.widgets import Label, Log, Static

from adapterhub.serve.client import servers
from adapterhub.serve.wish import Wish, values_of, wish_of
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.widgets.form import Text, Toggle
from adapterhub.tui.widgets.server_table import ServerTable
from adapterhub.tui.widgets.setting_form import SettingForm
from tests.cli.calling import call
from tests.support.adapters import AdapterMaker
from tests.support.screen import USUAL, WIDE, open_app, until
from tests.support.stand_in import free_port, write_stand_in
from tests.tui.serving import (
    Add,
    Elsewhere,
    adder,
    confirmed,
    end_all,
    fill,
    means,
    options,
    planned,
    screen,
    served,
    serving,
    toasts,
    words,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Of this test's own; whatever it still serves is ended."""
    found = Store.open(tmp_path / "home")
    yield found
    end_all(found)


@pytest.fixture
def add(store: Store, tiny_llama: Path, make_adapter: AdapterMaker) -> Add:
    put = adder(store, tiny_llama, make_adapter)
    for seed, name in enumerate(("support/tone", "terms")):
        put(name, seed=seed)
    return put


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    return write_stand_in(tmp_path / "stand-in" / "vllm")


@pytest.fixture
def elsewhere(stand_in: Path, add: Add) -> Iterator[Callable[..., Elsewhere]]:
    """elsewhere(*names): a server that somebody else has started."""
    started: list[Elsewhere] = []

    def start(*names: str) -> Elsewhere:
        started.append(Elsewhere(stand_in, free_port(), *names))
        return started[-1]

    yield start
    for one in started:
        one.end()


async def test_what_a_setting_means_can_be_read_in_80_columns_and_is_explained(
    store: Store, add: Add
) -> None:
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        await planned(pilot, app, "terms")
        for control in app.screen.query_one(SettingForm).query(Text):
            assert cell_len(control.placeholder) < control.content_size.width, control.name
        for switch in app.screen.query_one(SettingForm).query(Toggle):
            assert cell_len(str(switch.render())) <= switch.content_size.width, switch.name
        for label in app.screen.query_one(SettingForm).query(".label").results(Label):
            assert cell_len(str(label.content)) <= label.content_size.width
        for field, meaning in (("direct", "HTTP server in front of vLLM"), ("pin", "always stay"), ("prod", "in production")):  # fmt: skip
            row = app.screen.query_one(SettingForm).row(field)
            assert row is not None
            row.field.focus()
            await pilot.press("f1")
            await until(lambda: app.screen.is_modal, pilot)
            texts = " ".join(str(one.content) for one in app.screen.query(Static))
            assert meaning in texts
            await pilot.press("escape")
            await until(lambda: not app.screen.is_modal, pilot)


async def test_the_checklist_says_what_a_dry_run_says_and_what_is_wrong_with_each(
    store: Store, add: Add, stand_in: Path
) -> None:
    add("far/away", base="org/other")
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await planned(pilot, app, "support/tone", "terms")
        await fill(pilot, app, vllm=str(stand_in), port=str(port := free_port()), max_rank="32")
        assert screen(app).planned.startable
        said = words(app, "#checks")
        dry = call("serve", "support/tone", "terms", "--dry-run", "--json", "--vllm", stand_in,
                   "--port", str(port), "--max-rank", "32").json  # fmt: skip
        for shell_line in dry["shell"].splitlines():
            assert shell_line in said
        assert "✓ fits its base 4/4 modules found in it" in said
        assert f"✓ port 127.0.0.1:{port} is free" in said
        assert "– template not recorded" in said
        line = str(app.screen.query_one("#line", Static).content)
        assert line == f"adapterhub serve support/tone terms --port {port} --max-rank 32 --vllm {stand_in}"  # fmt: skip
        await planned(pilot, app, "far/away", "terms")
        said = words(app, "#checks")
        assert "✗ fits its base" in said
        assert "org/other" in said
        assert "Not like this: ✗ base; far/away (fits its base)" in said
        await pilot.press("ctrl+r")
        await until(lambda: "Not like this" in toasts(app), pilot)
        await fill(pilot, app, allow_mismatch=True)
        assert screen(app).planned.startable
        assert "! fits its base" in words(app, "#checks")
        await fill(pilot, app, port="x")
        assert "port: 'x' is no whole number" in words(app, "#checks")
        assert store.leases.live() == []


def test_the_line_asks_for_what_the_form_says(tmp_path: Path) -> None:
    wish = Wish(
        ("a", "b"), base="./my base", host="0.0.0.0", port=8123, dtype="float32", max_model_len=512,
        loaded=4, batch=2, max_rank=64, pin=("a",), keys=tmp_path / "keys.yaml", verify=False,
        vllm="/x/vllm", allow_mismatch=True, extra=("--seed", "1"),
    )  # fmt: skip
    assert wish_of(wish.names, values_of(wish)) == wish
    assert wish_of(("a",), values_of(Wish())).words() == ["serve", "a"]
    assert shlex.join(wish.words()) == (
        f"serve a b --base './my base' --host 0.0.0.0 --port 8123 --dtype float32 --max-model-len 512 --loaded 4 --batch 2"
        f" --max-rank 64 --pin a --keys {tmp_path}/keys.yaml --vllm /x/vllm --no-verify --allow-mismatch -- --seed 1"
    )


async def test_a_server_is_started_changed_and_stopped_from_the_screen(
    store: Store, add: Add, stand_in: Path
) -> None:
    first = store.resolve("terms").digest
    newer = add("terms:v2", seed=9)
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await planned(pilot, app, "support/tone", "terms")
        await fill(pilot, app, vllm=str(stand_in), port=str(port := free_port()), verify=False)
        assert screen(app).planned.startable
        await pilot.press("ctrl+r")
        await serving(pilot, app)
        (server,) = servers(store)
        assert server.port == str(port)
        assert "no: it was started with --no-verify" in words(app, "#about")
        await until(lambda: list(served(app)) == ["support/tone", "terms"], pilot)

        for _ in range(3):
            _ask(port, "terms")
        _ask(port, "org/tiny")
        await until(lambda: served(app)["terms"]["answers"] == "3", pilot)
        assert served(app)["terms"]["out"] == "12"
        assert served(app)["support/tone"]["answers"] == "0"
        assert "asked 4 answered" in words(app, "#about")
        assert "of the base 1 answers" in words(app, "#about")

        await pilot.press("G", "o")
        await until(lambda: app.screen.is_modal, pilot)
        await pilot.press(*":v2", "enter")
        await until(lambda: means(store, "terms") == [newer], pilot)
        line = f"adapterhub server update terms --to terms:v2 --server {port}"
        await until(lambda: line in toasts(app), pilot)
        await pilot.press("b")
        await confirmed(pilot, app, "Take terms back?")
        await until(lambda: means(store, "terms") == [first], pilot)
        await pilot.press("b")
        await confirmed(pilot, app, "Take terms back?")
        await until(
            lambda: "has nothing earlier to go back to on this server" in toasts(app), pilot
        )

        await pilot.press("a")
        await until(lambda: app.screen.is_modal, pilot)
        await until(lambda: options(app, "OptionList") == ["terms:v2"], pilot)
        await pilot.press("enter")
        await until(lambda: "terms:v2" in served(app), pilot)
        await pilot.press("g", "d")
        await confirmed(pilot, app, "Stop serving support/tone?")
        await until(lambda: list(served(app)) == ["terms", "terms:v2"], pilot)

        await pilot.press("x")
        await confirmed(pilot, app, f"Stop http://127.0.0.1:{port}?")
        await until(lambda: "it was told to stop, and did" in words(app, "#about"), pilot)
        assert servers(store) == []
        await pilot.press("n")
        assert screen(app).planned.names == ("support/tone", "terms")


async def test_an_alias_is_split_and_a_wrong_share_is_told_as_it_is_typed(
    store: Store, add: Add, elsewhere: Callable[..., Elsewhere]
) -> None:
    elsewhere("terms")
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await serving(pilot, app)
        await pilot.press("o")
        await until(lambda: app.screen.is_modal, pilot)
        await pilot.press(*"=9 support/tone=0", "enter")
        assert "has no share between 0" in str(app.screen.query_one(".problem", Static).content)
        await pilot.press("backspace", "1", "enter")
        await until(lambda: len(means(store, "terms")) == 2, pilot)
        table = app.screen.query_one(ServerTable)
        await until(lambda: table.row_count == 2, pilot)
        assert served(app)["terms"]["share"] == "10%"


async def test_servers_of_others_appear_and_their_end_is_told_while_the_screen_goes_on(
    store: Store, add: Add, elsewhere: Callable[..., Elsewhere]
) -> None:
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await app.go("serve")
        await until(lambda: screen(app).serving.looked, pilot)
        assert not app.screen.has_class("-some")
        one, other = elsewhere("terms"), elsewhere("support/tone")
        await until(lambda: len(options(app, "#servers")) == 3, pilot)
        screen(app).serving = screen(app).serving.show(str(one.record["run"]))
        await until(lambda: "state serving" in words(app, "#about"), pilot)
        await pilot.press("l")
        await until(lambda: any("Loading the model" in line for line in app.screen.query_one(Log).lines), pilot)  # fmt: skip
        os.kill(one.process.pid, signal.SIGKILL)
        await until(lambda: one.record["url"] in toasts(app), pilot)
        await until(lambda: "it was killed, or died" in words(app, "#about"), pilot)
        other.end()
        await until(lambda: not screen(app).serving.looks, pilot)
        await pilot.press("n")
        assert not app.screen.has_class("-server")


@pytest.mark.parametrize("key", ["o", "a"])
async def test_a_server_that_is_stopped_under_a_dialog_is_told_and_the_screen_goes_on(
    store: Store, add: Add, elsewhere: Callable[..., Elsewhere], key: str
) -> None:
    server = elsewhere("terms")
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await serving(pilot, app)
        await pilot.press(key)
        await until(lambda: app.screen.is_modal, pilot)
        if key == "a":
            await until(lambda: options(app, "OptionList") == ["support/tone"], pilot)
        assert call("server", "stop", "--server", str(server.record["url"]).rpartition(":")[2]).code == 0  # fmt: skip
        await asyncio.to_thread(server.process.wait, 30)
        await pilot.press("enter")
        await until(lambda: not app.screen.is_modal, pilot)
        await until(lambda: "doesn't answer" in toasts(app), pilot)
        await until(lambda: "has ended" in words(app, "#about"), pilot)
        await pilot.press(key, "n")
        assert not app.screen.has_class("-server")


async def test_an_engine_that_dies_is_seen_and_a_start_that_fails_says_why(
    store: Store, add: Add, stand_in: Path
) -> None:
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        await planned(pilot, app, "terms")
        await fill(
            pilot, app, vllm=str(stand_in), port=str(free_port()), verify=False, extra="--seed 1"
        )
        assert screen(app).planned.startable
        await pilot.press("ctrl+r")
        await until(lambda: "it failed" in words(app, "#about"), pilot, 60)
        assert "LoRA rank 64 is greater than 16" in words(app, "#about")
        await pilot.press("n")
        await fill(pilot, app, extra="")
        assert screen(app).planned.startable
        await pilot.press("ctrl+r")
        await serving(pilot, app)
        (server,) = servers(store)
        os.kill(server.status()["engine_pid"], signal.SIGKILL)
        await until(lambda: "restarted once" in words(app, "#about"), pilot, 60)
        await until(lambda: "state serving" in words(app, "#about"), pilot)
        end_all(store)
        await until(lambda: app.running_jobs == 0, pilot)


async def test_looking_only_offers_no_change(
    store: Store, add: Add, elsewhere: Callable[..., Elsewhere]
) -> None:
    elsewhere("terms")
    app = AdapterHubApp(Hub.of(store, readonly=True))
    async with app.run_test(size=WIDE) as pilot:
        await serving(pilot, app)
        offered = {binding.binding.action for binding in app.screen.active_bindings.values()}
        assert not offered & {"start", "add", "remove", "update", "rollback", "verify", "stop"}
        assert "logs" in offered
        await pilot.press("x", "d", "o", "a")
        assert not app.screen.is_modal


def _ask(port: int, model: str) -> None:
    body = {"model": model, "prompt": "x", "stream": True, "max_tokens": 16}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, trust_env=False)
    assert answer.status_code == 200, answer.text
