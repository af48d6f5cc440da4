"""Code that a model wrote, tried out: in a process that may compute and nothing else.

The process shuts itself in before it runs the code: the kernel (seccomp) then refuses every system call but those for memory,
time, and writing to what is open, so there is no file, no network, no other process and no way out of the group that is killed
at the deadline. It is told what to compute and not what should come out: the values are compared here, so a pass
can't be forged. Where the kernel can't confine it, nothing is run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 5.0
"""Of wall time; the processor's are limited to fewer in the process itself."""
_MOST_OUTPUT = 65536
_CHILD = Path(__file__).with_name("sandboxed.py")


@dataclass(frozen=True)
class Ran:
    """Whether all values came out as expected, and if not, why."""

    passed: bool
    why: str = ""
    confined: bool = True
    """False where the kernel couldn't confine it, so it was not run."""


def run_code(code: str, expected: Mapping[str, Any], *, seconds: float = SECONDS) -> Ran:
    """Runs `code`, then the calls that `expected` names, each with the value (as JSON has it) that should come out.

    Always ends soon after `seconds`, and leaves no process behind.
    """
    order = json.dumps({"code": code, "calls": list(expected)}).encode()
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    deadline = time.monotonic() + seconds
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with suppress(OSError):  # it ended before it read
            child.stdin.write(order)
            child.stdin.close()
        said = _read(child.stdout.fileno(), deadline)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                pipe.close()
    if said is None:
        return Ran(False, "it took too long")
    return _judged(said, expected)


def _read(pipe: int, deadline: float) -> bytes | None:
    """What is said until its end, or as much as is listened to; None at the deadline."""
    said = b""
    while len(said) < _MOST_OUTPUT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return None
        piece = os.read(pipe, _MOST_OUTPUT)
        if not piece:
            break
        said += piece
    return said


def _judged(said: bytes, expected: Mapping[str, Any]) -> Ran:
    try:
        told = json.loads(said)
        if told.get("confined") is False:
            return Ran(False, "the kernel can't confine it", confined=False)
        if "error" in told:
            return Ran(False, str(told["error"])[:200])
        values = told["values"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        why = "it ended without a word: too much memory, time or output, or it left by itself"
        return Ran(False, why)
    if not isinstance(values, list) or len(values) != len(expected):
        return Ran(False, "it said something else than was asked")
    for (call, wanted), value in zip(expected.items(), values, strict=True):
        if not _same(value, wanted):
            return Ran(False, f"{call} is {json.dumps(value)[:80]}, not {json.dumps(wanted)[:80]}")
    return Ran(True)


def _same(value: Any, wanted: Any) -> bool:
    """Equal, and of one kind: True is not 1, but 3.0 is 3."""
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, list):
        return (
            isinstance(value, list) and len(value) == len(wanted) and all(map(_same, value, wanted))
        )
    return bool(value == wanted)
