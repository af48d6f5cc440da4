"""Calling the command line: in this process where only words and exit codes matter, as a program for the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from typer.testing import CliRunner

from adapterhub.cli.main import build

PROGRAM = Path(sys.executable).with_name("adapterhub")


@dataclass(frozen=True)
class Said:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which must be one JSON value."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command called with --json: the last line of stderr."""
        found: dict[str, Any] = json.loads(self.err.strip().splitlines()[-1])["error"]
        return found


def call(*arguments: str | Path) -> Said:
    """Runs a command in this process. An exception that gets out of it is raised here."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(build(words[0]), words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def run(*arguments: str | Path, timeout: float = 60, **environment: str) -> Said:
    """Runs the installed program."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


def start(*arguments: str | Path, stderr: Path) -> subprocess.Popen[bytes]:
    """Starts the installed program; what it says on stderr goes to a file."""
    with stderr.open("wb") as file:
        return subprocess.Popen(
            [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=file, stdin=subprocess.DEVNULL
        )


def first_record(stream: IO[str]) -> dict[str, Any]:
    """The first JSON object of a stream that stays open; EOFError with what was there instead."""
    text = ""
    for line in stream:
        text += line
        if line == "}\n":
            found: dict[str, Any] = json.loads(text)
            return found
    raise EOFError(f"no record in {text!r}")


def wait_until(true: Callable[[], bool], *, seconds: float = 30) -> bool:
    """Polls every millisecond; False when it didn't become true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.001)
    return False
