"""A real terminal: tmux with a server of its own, keys typed into it, and what it shows."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

PROGRAM = shutil.which("tmux")
_PAUSE = 0.25
"""After a key: escape and a letter that follows at once are one key, alt with the letter."""


class Terminal:
    """One window of one tmux server."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def tmux(self, *words: str) -> str:
        """One tmux command; what it prints."""
        assert PROGRAM is not None
        done = subprocess.run(
            [PROGRAM, "-L", self._socket, "-f", "/dev/null", *words],
            capture_output=True,
            check=False,
            env={key: value for key, value in os.environ.items() if key != "TMUX"},
        )
        return done.stdout.decode(errors="replace")

    def press(self, *keys: str) -> None:
        """Presses keys by tmux's names: `Enter`, `Escape`, `C-o`, or a character."""
        for key in keys:
            self.tmux("send-keys", key)
            time.sleep(_PAUSE)

    def write(self, text: str) -> None:
        """Types a text."""
        self.tmux("send-keys", "-l", text)

    def shown(self) -> str:
        """What is on the screen, as characters."""
        return self.tmux("capture-pane", "-p")

    def resize(self, columns: int, lines: int) -> None:
        """Makes the window another size."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def until(self, true: Callable[[str], bool], seconds: float = 60) -> str:
        """Waits until what is shown is as wanted, and gives it; the screen is the message where it never is."""
        deadline = time.monotonic() + seconds
        before = None
        # Twice the same: what is caught in the middle of being drawn is no picture.
        while not true(screen := self.shown()) or screen != before:
            assert time.monotonic() < deadline, f"it was never shown:\n{screen}"
            before = screen
            time.sleep(0.2)
        return screen

    def ended(self) -> bool:
        """Whether the program has left, and its terminal with it."""
        return not self.tmux("list-panes").strip()


@contextmanager
def terminal(
    words: Sequence[str], *, columns: int = 100, lines: int = 30, **environment: str
) -> Iterator[Terminal]:
    """A terminal that runs a program, with these variables and few others."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
    given = [f"{key}={value}" for key, value in {**kept, **environment}.items()]
    found = Terminal(f"adapterhub-{secrets.token_hex(4)}")
    found.tmux(
        "-u",  # tmux itself draws UTF-8, whatever the locale here
        "new-session", "-d", "-x", str(columns), "-y", str(lines),
        shlex.join(["env", "-i", *given, *words]),
    )  # fmt: skip
    try:
        yield found
    finally:
        found.tmux("kill-server")
