"""Runs a command of the product again and again, each time with one fault at the next file-system event.

A program of its own, started by test_faults.py: it imports the product once and forks a child for every point, so that
a point costs milliseconds. Events are Python's audit events (https://docs.python.org/3/library/audit_events.html), so
the product needs no seam for this. The fault happens instead of the event: the child is killed (SIGKILL), is
interrupted (SIGINT), or is told that the disk is full.

    python -m tests.store.faults TEMPLATE WORK < {"command", "after", "faults", "points"}

prints one JSON line for every point: what happened there, and what was wrong afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from adapterhub.cli import library  # noqa: F401 - imported before the fork
from adapterhub.cli.main import main
from tests.store.watching import journal, left_over, listing, problems, refs

_ALWAYS = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.link",
    "os.rmdir",
    "os.truncate",
    "os.symlink",
    "os.chmod",
    "os.utime",
}
_TAKING_SPACE = {"open", "os.rename", "os.mkdir", "os.link", "os.symlink"}


class Fault:
    """An audit hook that strikes at the n-th event that changes something below `home`."""

    def __init__(self, kind: str, home: Path, at: int) -> None:
        self.kind, self.home, self.at = kind, str(home), at
        self.seen = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.changes(event, arguments):
            return
        self.seen += 1
        if self.seen != self.at:
            return
        os.write(3, f"{event} {short(arguments, self.home)}".encode())
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "interrupt":
            signal.raise_signal(signal.SIGINT)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    def changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if not any(
            isinstance(value, str | os.PathLike) and os.fspath(value).startswith(self.home)
            for value in arguments
        ):
            return False
        if event == "open":
            flags = arguments[2]
            if self.kind == "full" and Path(arguments[0]).exists():
                return False  # a file that is there is opened without taking space
            return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return event in (_TAKING_SPACE if self.kind == "full" else _ALWAYS)


def short(arguments: tuple[Any, ...], home: str) -> str:
    """The paths of an event, without the way to the store."""
    return " ".join(
        os.fspath(a)[len(home) :] for a in arguments if isinstance(a, str | os.PathLike)
    )


def run(home: Path, words: list[str], fault: Fault | None = None) -> tuple[int, str, str]:
    """The command in a child: its exit status as subprocess gives it, its stderr, and where the fault struck."""
    out, struck = home.parent / "stderr", home.parent / "struck"
    for path in (out, struck):
        path.write_text("")
    child = os.fork()
    if child == 0:
        status = 70
        with contextlib.suppress(BaseException):
            os.environ["ADAPTERHUB_HOME"] = str(home)
            for number, path in ((1, Path(os.devnull)), (2, out), (3, struck)):
                os.dup2(os.open(path, os.O_WRONLY), number)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["adapterhub", *words]
            if fault:
                sys.addaudithook(fault)
            try:
                main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            if fault and fault.at < 0:
                os.write(3, str(fault.seen).encode())
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), out.read_text(), struck.read_text()


def examine(
    fault: str, code: int, said: str, before: tuple[Any, ...], home: Path, whole: Any
) -> list[str]:
    """What is wrong after a fault at one point."""
    wrong = problems(home)
    old_refs, old_journal, old_listing = before
    names = refs(home)
    for name in names:
        if names[name] not in (old_refs.get(name), whole[0].get(name)):
            wrong.append(f"{name} means neither what it did nor what it should")
    wrong += [f"{name} is lost" for name in old_refs if name not in names and name in whole[0]]
    wrong += [
        f"{name} is lost"
        for name in old_listing
        if name.split("/")[0] in ("blobs", "manifests", "attestations")
        and name not in listing(home)
    ]
    if journal(home)[: len(old_journal)] != old_journal:
        wrong.append("the journal lost lines")
    if fault == "kill":
        return wrong if code == -signal.SIGKILL else [*wrong, f"exit {code}"]
    if "Something went wrong inside" in said or "Traceback" in said:
        wrong.append(f"told as a bug: {said.strip()[:300]}")
    if left_over(home):
        wrong.append(f"left over: {left_over(home)}")
    expected = {"interrupt": 130, "full": 1}[fault]
    if code == expected and names != old_refs:
        wrong.append(f"exit {code} although the refs have changed")
    if code == expected and journal(home) != old_journal:
        wrong.append(f"exit {code} although the journal has a change more")
    if code not in (expected, 0):
        wrong.append(f"exit {code}: {said.strip()[:300]}")
    if code == 0 and names != whole[0]:
        wrong.append("exit 0 although it wasn't done")
    return wrong


def state(home: Path) -> tuple[Any, ...]:
    return refs(home), journal(home), listing(home)


def sweep(
    template: Path,
    work: Path,
    command: list[str],
    after: list[list[str]],
    kind: str,
    points: int | None,
) -> None:
    """One fault at every point of one command, or at so many `points`, evenly spread."""
    home = work / "home"

    def fresh() -> Path:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(template, home, copy_function=shutil.copy2)
        return home

    code, said, count = run(fresh(), command, Fault(kind, home, -1))
    if code != 0:
        raise SystemExit(f"without a fault it gives {code}: {said}")
    say({"fault": kind, "of": int(count)})
    whole = state(home)
    stride = max(1, -(-int(count) // points)) if points else 1
    # Each fault begins at another point, so that the few of a fast run are not the same ones for all.
    first = 1 + ("kill", "interrupt", "full").index(kind) % stride
    for at in range(first, int(count) + 1, stride):
        before = state(fresh())
        code, said, event = run(home, command, Fault(kind, home, at))
        wrong = examine(kind, code, said, before, home, whole)
        if not event:
            wrong.append("the fault didn't strike")
        for words in after:
            code, said, _ = run(home, words)
            if code != 0:
                wrong.append(f"then {' '.join(words)} gives {code}: {said.strip()[:300]}")
        wrong += [f"in the end: {problem}" for problem in problems(home)]
        if command in after:
            end = state(home)
            if end[0] != whole[0]:
                wrong.append(f"in the end the names are {sorted(end[0])}")
            lost = {kept(name) for name in whole[2]} - {kept(name) for name in end[2]}
            wrong += [f"in the end there is no {name}" for name in sorted(lost)]
        say({"fault": kind, "at": at, "event": event, "wrong": wrong})


def say(line: dict[str, Any]) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()  # a buffer would be inherited, and written again, by every child


def kept(name: str) -> str:
    """A file's name as it is in every run: an attestation's digest holds the time."""
    return name.rpartition("/")[0] if name.startswith("attestations/") else name


if __name__ == "__main__":
    order = json.load(sys.stdin)
    for fault in order["faults"]:
        sweep(
            Path(sys.argv[1]),
            Path(sys.argv[2]),
            order["command"],
            order["after"],
            fault,
            order["points"],
        )
