"""The file-system events of this process below one folder as they happen, and a fault at a chosen one.

Events are Python's audit events (https://docs.python.org/3/library/audit_events.html) and `os.fsync`, which has none and
is wrapped; so the product needs no seam for this. An audit event comes before the thing it tells of: whether that then
happened is looked up when the next event comes.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

Kind = Literal["kill", "interrupt", "full"]
Record = tuple[str, str, Any]
"""What happened, the path it happened to (relative to the watched folder), and its other path or its bytes:
create, mkdir, remove, rmdir; rename and link with the new path; symlink with its target; sync with the bytes; syncdir."""

# event -> (position of a path, position of the descriptor of the folder it is relative to) for every path it has
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "open": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.remove": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
}
_TAKING_SPACE = {"open", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.fsync"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Fault:
    """What strikes, before which event, or before which traced line, counted from 1."""

    kind: Kind
    at: int
    lines: bool = False


@dataclass(frozen=True)
class Account:
    """What a run left behind of itself: how many events and lines there were, what was done, and where the fault struck."""

    events: int
    lines: int
    log: list[Record]
    struck: str


class Watch:
    """Records what this process changes below `root`, and strikes.

    Args:
        root: an absolute path without links in it.
        scratch: folders below it that don't matter, relative.
        out: descriptor that the account is written to, at the latest by `finish`.
        traced: source files whose lines are counted; none where empty.
    """

    def __init__(
        self,
        root: Path,
        *,
        scratch: Collection[str],
        out: int,
        fault: Fault | None,
        traced: Collection[str],
    ) -> None:
        self._root, self._scratch = str(root), tuple(scratch)
        self._out, self._fault, self._traced = out, fault, frozenset(traced)
        self._log: list[Record] = []
        self._pending: tuple[str, str, Any] | None = None
        self._events = self._lines = 0
        self._busy = False
        self._struck = ""
        self._fsync = os.fsync

    def start(self) -> None:
        """For the rest of this process's life."""
        os.fsync = self._synced  # type: ignore[assignment]  # for the product: it passes descriptors only
        sys.addaudithook(self._heard)
        if self._traced:
            sys.settrace(self._called)

    def finish(self) -> None:
        """Writes the account; nothing is watched from here on."""
        self._busy = True
        self._settle()
        account = Account(self._events, self._lines, self._log, self._struck)
        left = memoryview(pickle.dumps(account))
        while left:
            left = left[os.write(self._out, left) :]

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        where = _CHANGES.get(event)
        if where is None or self._busy:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        self._busy = True
        try:
            found = [
                self._relative(arguments[path], None if folder is None else arguments[folder])
                for path, folder in where
            ]
            inside = [path for path in found if path is not None]
            if not inside:
                return
            if len(inside) != len(found):
                raise RuntimeError(f"{event} {arguments} crosses the border of {self._root}")
            self._settle()
            self._count(event, inside)
            self._announce(event, inside, arguments)
        finally:
            self._busy = False

    def _synced(self, descriptor: int) -> None:
        path = self._relative(descriptor, None)
        if path is None or not os.path.lexists(self._full(path)):  # elsewhere, or already unlinked
            self._fsync(descriptor)
            return
        self._busy = True
        try:
            self._settle()
            self._count("os.fsync", [path])
            self._fsync(descriptor)
            full = Path(self._full(path))
            if full.is_dir():
                self._log.append(("syncdir", path, None))
            else:
                self._log.append(("sync", path, full.read_bytes()))
        finally:
            self._busy = False

    def _announce(self, event: str, paths: list[str], arguments: tuple[Any, ...]) -> None:
        """Remembers what is about to happen, where it changes a folder."""
        there = [os.path.lexists(self._full(path)) for path in paths]
        if event == "open" and arguments[2] & os.O_CREAT and not there[0]:
            self._pending = ("create", paths[0], None)
        elif event == "os.mkdir" and not there[0]:
            self._pending = ("mkdir", paths[0], None)
        elif event == "os.symlink" and not there[0]:
            self._pending = ("symlink", paths[0], os.fspath(arguments[0]))
        elif event == "os.link" and not there[1]:
            self._pending = ("link", paths[0], paths[1])
        elif event in ("os.remove", "os.rmdir", "os.rename") and there[0]:
            self._pending = (event[3:], paths[0], paths[1] if event == "os.rename" else None)

    def _settle(self) -> None:
        """Takes what was about to happen into the log, if it did."""
        if self._pending is None:
            return
        what, path, other = self._pending
        self._pending = None
        here = os.path.lexists(self._full(other if what == "link" else path))
        if here == (what not in ("remove", "rmdir", "rename")):
            self._log.append((what, path, other))

    def _count(self, event: str, paths: list[str]) -> None:
        fault = self._fault
        if fault is not None and fault.kind == "full":
            if event not in _TAKING_SPACE:
                return
            if event == "open" and os.path.lexists(self._full(paths[0])):
                return  # a file that is there is opened without taking space
        self._events += 1
        if fault is not None and not fault.lines and fault.at == self._events:
            self._strike(f"{event} {' '.join(paths)}", paths)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._passed if frame.f_code.co_filename in self._traced else None

    def _passed(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._lines += 1
            if self._fault is not None and self._fault.lines and self._fault.at == self._lines:
                code = frame.f_code
                self._strike(
                    f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}", []
                )
        return self._passed

    def _strike(self, where: str, paths: list[str]) -> None:
        assert self._fault
        self._struck = where
        if self._fault.kind == "kill":
            self.finish()
            os.kill(os.getpid(), signal.SIGKILL)
        self._busy = False
        if self._fault.kind == "interrupt":
            signal.raise_signal(signal.SIGINT)
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._full(paths[0]))

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _relative(self, path: Any, folder: Any) -> str | None:
        """A path of an event, relative to the root; None for one elsewhere or in the scratch."""
        if isinstance(path, int):
            text = _opened(path)
        else:
            text = os.fsdecode(path)
            if not text.startswith("/"):
                base = _opened(folder) if isinstance(folder, int) and folder >= 0 else os.getcwd()  # noqa: PTH109
                text = f"{base}/{text}"
            text = os.path.normpath(text)
        if text == self._root:
            return "."
        relative = text.removeprefix(self._root + "/")
        if relative == text or any(
            relative == out or relative.startswith(out + "/") for out in self._scratch
        ):
            return None
        return relative


def _opened(descriptor: int) -> str:
    """Where an open file lies now."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except OSError:
        return ""
