"""Starts the server and outlives neither end: a small process between adapterhub and vLLM.

adapterhub can die without a chance to clean up (SIGKILL, no memory), and vLLM's front process can leave its engine and
workers running, gigabytes held, when it is killed. So this process holds the reading end of a pipe that only adapterhub
writes to: end of file means that adapterhub is gone or wants the server stopped. On Linux it also adopts orphaned
grandchildren, so it knows when the last one has ended.

vLLM would leave its sockets in the temporary folder; it gets a private one, which goes when the last process has ended.

Run by path, with the standard library only, whatever the environment:  guard.py GRACE SOCKETS COMMAND...
stdin is the pipe; stdout gets one line, the server's process id; the server's own output goes to stderr.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

KILL_SECONDS = 5.0
"""What processes get to vanish in after SIGKILL."""

_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code, or 128 + the number of the signal that ended it."""
    grace, sockets, command = float(arguments[0]), arguments[1], arguments[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            env={"VLLM_RPC_BASE_PATH": sockets, **os.environ},
            process_group=0,
        )
        return _watch(server.pid, grace)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def _watch(server: int, grace: float) -> int:
    code = 128 + signal.SIGKILL

    def end() -> None:
        """Asks the whole group to end, then makes it, and whatever has left the group."""
        with suppress(OSError):
            os.killpg(server, signal.SIGTERM)
        time.sleep(grace)
        with suppress(OSError):
            os.killpg(server, signal.SIGKILL)
        last = time.monotonic() + KILL_SECONDS
        while time.monotonic() < last:
            for pid in _children():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        os._exit(code)  # what even SIGKILL doesn't end is the kernel's

    def end_with_adapterhub() -> None:
        os.read(sys.stdin.fileno(), 1)
        end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: threading.Thread(target=end, daemon=True).start())
    threading.Thread(target=end_with_adapterhub, daemon=True).start()
    sys.stdout.write(f"{server}\n")
    sys.stdout.flush()
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break  # nobody is left
        if pid == server:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended
            threading.Thread(target=end, daemon=True).start()
    with suppress(OSError):  # where orphans aren't adopted, some may still be there
        os.killpg(server, signal.SIGKILL)
    return code


def _children() -> list[int]:
    """Processes that are our children by now, adopted ones too; found by their parent's id in /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = stat.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
