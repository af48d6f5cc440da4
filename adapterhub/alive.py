"""Tells a process from a later one with the same number: leases and runs remember both."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def worker(pid: int) -> dict[str, object]:
    """A process, as the events of a run say who works on it."""
    return {"pid": pid, "host": socket.gethostname(), "space": space(), "since": since(pid)}


def pid_here(worker: Mapping[str, Any]) -> int | None:
    """The number of such a process; None where it is one of another machine."""
    pid = worker.get("pid")
    here = worker.get("host") == socket.gethostname()
    return pid if here and type(pid) is int and 1 < pid < 2**31 else None


def is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether such a process has ended for sure; another one may have its number by now."""
    pid, then = pid_here(worker), worker.get("since")
    if pid is None or worker.get("space", space()) != space():  # it can't be seen from here
        return False
    now = since(pid)
    return now == 0 or (type(then) is int and then > 1 and now not in (1, then))


def boot() -> str:
    """Names this start of the machine; empty where the system doesn't say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def space() -> str:
    """Names the set of processes this one can see: containers have their own."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def since(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 where there is none, 1 where the system doesn't say."""
    try:
        # The second field is the program's name in brackets, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])  # dead, and nobody has asked how
    except (FileNotFoundError, ProcessLookupError):
        pass
    except (OSError, ValueError, IndexError):
        return 1
    if Path("/proc/self/stat").exists():
        return 0
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        pass
    return 1
