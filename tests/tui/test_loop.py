"""Nothing blocks the event loop: on its thread no file of the store is opened, listed or locked, whatever is looked at."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from tests.support.screen import settled

PAIR = ("support/tone", "legal/terms")
WATCHED = {"open", "os.listdir", "os.scandir", "sqlite3.connect", "fcntl.flock", "socket.connect"}


class Watch:
    """What happened on the loop's thread, of what touches a folder."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.thread = 0
        self.found: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or event not in WATCHED or threading.get_ident() != self.thread:
            return
        if event == "fcntl.flock" or self.folder in str(args[0] if args else ""):
            frame: FrameType | None = sys._getframe(1)
            where: list[str] = []
            while frame is not None:
                if (
                    "/tui/" in frame.f_code.co_filename
                    and "/tests/" not in frame.f_code.co_filename
                ):
                    where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                frame = frame.f_back
            if where:  # else it is the test itself
                self.found.append(f"{event} {args[:1]} from {', '.join(where[:3])}")


_WATCH = Watch()  # a hook can't be taken away again, so there is one, which mostly looks away
sys.addaudithook(_WATCH)


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    _WATCH.folder, _WATCH.thread, _WATCH.found = str(folder), threading.get_ident(), []
    try:
        yield _WATCH.found
    finally:
        _WATCH.folder = None


async def looked_at(pilot: Pilot[None], app: AdapterHubApp, what: str) -> None:
    """Opens a place or a screen, waits, presses a few harmless keys, and goes back."""
    given: dict[str, dict[str, Any]] = {
        "compare": {"names": PAIR},
        "merge": {"names": PAIR},
        "export": {"names": PAIR[:1]},
        "chat": {"names": PAIR[:1]},
    }
    if what.isdigit():
        await pilot.press(what)
    else:
        app.visit(what, **given.get(what, {}))
    await pilot.pause(0.3)
    await pilot.press("down", "down", "up", "r", "question_mark", "escape")
    await pilot.pause(0.3)


@pytest.mark.parametrize(
    "what", ["1", "2", "3", "4", "5", "compare", "merge", "export", "chat", "gc", "fsck"]
)
async def test_the_loop_touches_no_file_of_the_store(
    app: AdapterHubApp, store: Store, home: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.tui.screens.base.POLL_SECONDS", 0.1)
    async with app.run_test(size=(120, 40)) as pilot:
        with watched(home) as found:
            await settled(pilot)
            await looked_at(pilot, app, what)
        assert found == []


async def test_the_watch_sees_what_it_looks_for(app: AdapterHubApp, home: Path) -> None:
    async with app.run_test(size=(120, 40)) as pilot:
        await settled(pilot)
        with watched(home) as found:
            app.hub.memory.set("theme", "x")  # in tui/hub.py, on this very thread
        assert found
