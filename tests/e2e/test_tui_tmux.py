"""The terminal UI in a real terminal, typed into as a person does."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from adapterhub.store import Store
from tests.cli.calling import PROGRAM
from tests.support import tmux
from tests.support.sample import fill
from tests.support.tmux import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(tmux.PROGRAM is None, reason="no tmux on this machine"),
]


class Opener(Protocol):
    def __call__(
        self, *words: str, columns: int = 100, lines: int = 30, **environment: str
    ) -> AbstractContextManager[Terminal]: ...


@pytest.fixture
def opener(tmp_path: Path, store: Store) -> Opener:
    """Opens the program in a terminal, on a store of six names."""
    fill(store, tmp_path)

    def opened(
        *words: str, columns: int = 100, lines: int = 30, **environment: str
    ) -> AbstractContextManager[Terminal]:
        given = {
            "ADAPTERHUB_HOME": str(store.home),
            "ADAPTERHUB_CACHE": os.environ["ADAPTERHUB_CACHE"],
            "LANG": "C.UTF-8",
            "TERM": "screen-256color",
            **environment,
        }
        return tmux.terminal([str(PROGRAM), *words], columns=columns, lines=lines, **given)

    return opened


def keep(screen: str, name: str) -> None:
    """Where a person wants to look at it."""
    if where := os.environ.get("ADAPTERHUB_PICTURES"):
        (Path(where) / f"{name}.txt").write_text(screen)


def test_from_the_library_through_a_filter_and_a_comparison_to_a_merge(
    opener: Opener, store: Store
) -> None:
    with opener() as terminal:  # `adapterhub` alone opens it
        keep(terminal.until(lambda screen: "legal/terms" in screen), "tmux-library")
        terminal.press("/")
        terminal.write("support")
        screen = terminal.until(lambda s: "legal/terms" not in s and "support/tone" in s)
        keep(screen, "tmux-filtered")
        terminal.press("Enter")
        terminal.press("Space", "Escape")
        terminal.until(lambda s: "legal/terms" in s)
        terminal.press("g", "j")  # desk/both, then legal/terms
        terminal.press("Space", "c")
        screen = terminal.until(lambda s: "cosine" in s.lower() and "legal/terms" in s)
        keep(screen, "tmux-compare")
        terminal.press("m")
        screen = terminal.until(lambda s: "adapterhub merge" in s and "Verdict" not in s)
        keep(screen, "tmux-merge")
        terminal.press("C-r")
        terminal.until(lambda _: len(store.refs.names()) > 6, seconds=120)
        terminal.press("Escape")
        terminal.press("Escape")
        terminal.press("1")
        screen = terminal.until(lambda s: "of 7" in s or "7 adapters" in s)
        keep(screen, "tmux-merged")
        terminal.press("q")
        terminal.until(lambda _: terminal.ended())


def test_a_terminal_without_unicode_gets_ascii(opener: Opener) -> None:
    with opener("tui", LANG="C", TERM="xterm") as terminal:
        screen = terminal.until(lambda s: "legal/terms" in s and "+-" in s)
        keep(screen, "tmux-ascii")
        assert screen.isascii()
        terminal.press("?")
        assert terminal.until(lambda s: "esc closes" in s).isascii()
        terminal.press("Escape")
        terminal.press("q")
        terminal.until(lambda _: terminal.ended())


def test_it_follows_the_terminals_size(opener: Opener) -> None:
    with opener("tui", "--readonly", columns=140, lines=40) as terminal:
        wide = terminal.until(lambda s: "legal/terms" in s and "read-only" in s)
        terminal.resize(80, 24)
        narrow = terminal.until(
            lambda s: "legal/terms" in s and "Quit" in s and len(max(s.split("\n"), key=len)) <= 80
        )
        keep(narrow, "tmux-80x24")
        for size in ((40, 10), (200, 60), (30, 5), (140, 40)):
            terminal.resize(*size)
        terminal.until(lambda s: s.count("\n") >= 39 and "legal/terms" in s)
        assert len(wide.split("\n")) >= 40
        terminal.press("q")
        terminal.until(lambda _: terminal.ended())
