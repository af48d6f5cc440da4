"""Running the program on a terminal of its own (a pty), as a person does."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cli.calling import PROGRAM


@dataclass(frozen=True)
class Shown:
    """What the terminal showed (stdout and stderr together), and the exit code."""

    code: int
    out: str


def on_a_terminal(
    *words: str,
    typed: str = "",
    after: str = "",
    then: Sequence[tuple[str, str]] = (),
    width: int = 120,
    seconds: float = 60,
    **environment: str,
) -> Shown:
    """Runs the program on a pty that is its controlling terminal; `typed` is typed once it has said `after`.

    `then` are further (after, typed), each waited for in what is said since the one before was typed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    plain = {
        key: value
        for key, value in os.environ.items()
        if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
    }
    process = subprocess.Popen(
        [PROGRAM, *words],
        env={**plain, "TERM": "xterm-256color", **environment},
        preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509 - no threads here
    )
    os.close(theirs)
    steps = [*([(after, typed)] if typed else []), *then]
    data, seen, deadline = b"", 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        if steps and steps[0][0] in data[seen:].decode(errors="replace"):
            # Python forgets a Ctrl-C until the next key where it comes between readline's prompt and its wait for keys
            time.sleep(0.1)
            os.write(ours, steps.pop(0)[1].encode())
            seen = len(data)
        ready, _, _ = select.select([ours], [], [], 0.1)
        if ready:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            data += piece
        elif process.poll() is not None:
            break
    os.close(ours)
    process.kill()
    return Shown(process.wait(), data.decode())
