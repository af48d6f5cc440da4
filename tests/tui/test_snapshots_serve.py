"""How the Serve place and the playground look, as SVG, small and large, dark and light.

What the hub says stands here as values: versions, paths and ports of a machine are no part of a picture.
After an intended change: pytest tests/tui/test_snapshots_serve.py --snapshot-update, then look at the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.serve.prospect import AdapterChecks, Check, Prospect
from adapterhub.serve.watching import Look, Rate, Story
from adapterhub.serve.wish import Wish
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.chatting.sources import Finished, Heard, Turns
from adapterhub.tui.chatting.state import Options
from adapterhub.tui.serving.state import Planned
from tests.support.screen import open_app, settled, until
from tests.tui.serving import words

SIZES = [pytest.param((80, 24), id="80x24"), pytest.param((140, 45), id="140x45")]
THEMES = ["textual-dark", "textual-light"]
Looks = Callable[..., bool]
TONE, TERMS, NEWER = ("sha256:" + digit * 64 for digit in "123")

OF_THE_SERVER = (
    Check("ok", "base", "HuggingFaceTB/SmolLM2-135M-Instruct, /models/smol"),
    Check("ok", "vLLM", "0.32.0, for CPUs: /usr/bin/vllm"),
    Check("ok", "base's answers", "our plugin in vLLM masks the adapters in rows for the base"),
    Check("refused", "port", "Port 8000 on 127.0.0.1 is in use. Another server listens there.", "Take another: --port 8001"),
    Check("ok", "memory", "it fits"),
)  # fmt: skip
OF_TONE = (
    Check("ok", "fits its base", "210/210 modules found in it"),
    Check("unknown", "fingerprint", "not recorded on which weights it was trained"),
    Check("warning", "template", "trained with another chat template"),
    Check("ok", "rank", "8"),
    Check("refused", "kind", "it has DoRA", "take the nearest plain LoRA:  adapterhub merge support/tone"),
    Check("ok", "values", "all finite"),
)  # fmt: skip
LINE = "adapterhub serve support/tone legal/terms --max-rank 32"


def _traffic(
    adapter: str, version: str, answered: int, out: int, failed: int = 0
) -> dict[str, Any]:
    numbers = {"answered": answered, "failed": failed, "cancelled": 2, "tokens_in": 9 * out}
    return {"adapter": adapter, "version": version, **numbers, "tokens_out": out}


def _version(*, loaded: bool, requests: int = 0, pinned: bool = False) -> dict[str, Any]:
    return {"loaded": loaded, "requests": requests, "pinned": pinned, "loads": 1, "evictions": 1}


STATUS: dict[str, Any] = {
    "state": "serving",
    "url": "http://127.0.0.1:8000",
    "restarts": 1,
    "seconds": 8000.0,
    "base": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "path": "/models/smol"},
    "max_lora_rank": 16,
    "loaded": 2,
    "capacity": 2,
    "protection": "mask",
    "keyed": True,
    "running": 3,
    "waiting": 1,
    "traffic": [
        _traffic("support/tone", "1" * 12, 1204, 56_000),
        _traffic("legal/terms", "2" * 12, 310, 22_000, failed=4),
        _traffic("HuggingFaceTB/SmolLM2-135M-Instruct", "", 77, 4_100),
    ],
    "own_traffic": [_traffic("support/tone", "1" * 12, 70, 900)],
    "aliases": [
        {"name": "support/tone", "targets": [{"digest": TONE, "weight": 1.0}], "earlier": []},
        {"name": "legal/terms", "targets": [{"digest": TERMS, "weight": 9.0}, {"digest": NEWER, "weight": 1.0}], "earlier": []},
    ],
    "versions": {
        TONE: _version(loaded=True, requests=3, pinned=True),
        TERMS: _version(loaded=True),
        NEWER: _version(loaded=False),
    },
}  # fmt: skip
REPORT = {"ok": True, "names": [1, 2, 3], "requests": 214, "seconds": 48.2, "faults": [], "remarks": []}  # fmt: skip


class Seen:
    """Servers that are always the same."""

    def look(self) -> tuple[Look, ...]:
        """One that serves, and one that is being started."""
        rates = {("support/tone", "1" * 12): Rate(2.3, 110.0)}
        story = Story(1, 41.0, REPORT, True)
        serving = Look(
            "serve-1", Path("/runs/serve-1"), "serving", "http://127.0.0.1:8000", 1, status=STATUS,
            rate=Rate(2.4, 131.0), rates=rates, story=story,
        )  # fmt: skip
        starting = Look(
            "serve-2", Path("/runs/serve-2"), "starting", "http://127.0.0.1:8001", 2,
            log="Loading safetensors checkpoint shards: 100%", story=Story(1),
        )  # fmt: skip
        return serving, starting


class Parrot:
    """Answers at once, and always in the same time."""

    together = True
    about = "Through the server at http://127.0.0.1:8000"

    def answer(
        self, name: str, turns: Turns, options: Options, heard: Heard, halted: Event
    ) -> Finished:
        """The base is short of words."""
        heard(
            "Please wait."
            if name == "base"
            else f"I am sorry to hear that. Please wait, says {name}."
        )
        return Finished("stop", 1.5, 12)

    def halt(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to let go."""


@pytest.fixture
def app(store: Store, monkeypatch: pytest.MonkeyPatch) -> AdapterHubApp:
    monkeypatch.setattr("adapterhub.tui.serving.asking.look_at", _looked)
    monkeypatch.setattr("adapterhub.tui.chatting.sources.find", lambda *_, **__: Parrot())
    return open_app(store)


def _looked(store: Store, plan: Planned) -> Planned:
    adapters = (AdapterChecks("support/tone", OF_TONE),)
    found = Prospect(Wish(), OF_THE_SERVER, adapters if plan.names else ())
    return replace(plan, found=found, stale=False, line=LINE)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_plan(
    app: AdapterHubApp,
    monkeypatch: pytest.MonkeyPatch,
    snap_compare: Looks,
    size: tuple[int, int],
    theme: str,
) -> None:
    monkeypatch.setattr("adapterhub.tui.serving.asking.watch", lambda _: _Nobody())
    app.theme = theme

    async def go(pilot: Pilot[Any]) -> None:
        await app.go("serve", names=("support/tone", "legal/terms"))
        await until(lambda: "DoRA" in words(app, "#checks"), pilot)
        await settled(pilot)

    assert snap_compare(app, terminal_size=size, run_before=go)


class _Nobody:
    def look(self) -> tuple[Look, ...]:
        """No server."""
        return ()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_a_server(
    app: AdapterHubApp,
    monkeypatch: pytest.MonkeyPatch,
    snap_compare: Looks,
    size: tuple[int, int],
    theme: str,
) -> None:
    monkeypatch.setattr("adapterhub.tui.serving.asking.watch", lambda _: Seen())
    app.theme = theme

    async def go(pilot: Pilot[Any]) -> None:
        await app.go("serve")
        await until(lambda: bool(words(app, "#about")), pilot)
        screen: Any = app.screen
        screen.serving = screen.serving.show("serve-1")
        await settled(pilot)

    assert snap_compare(app, terminal_size=size, run_before=go)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_the_playground(
    app: AdapterHubApp, snap_compare: Looks, size: tuple[int, int], theme: str
) -> None:
    app.theme = theme

    async def go(pilot: Pilot[Any]) -> None:
        app.visit("chat", names=("base", "support/tone", "desk/both"))
        await settled(pilot)
        await pilot.press(*"Late", "enter")
        await settled(pilot)
        await pilot.press("ctrl+g")
        await settled(pilot)

    assert snap_compare(app, terminal_size=size, run_before=go)
