"""Runs vLLM as a child: its output in a log file, its end tied to ours, ready when it lists every name.

`guard.py` stands between (see there). We hold the writing end of the guard's pipe; closing it, on purpose or by dying,
stops the server and everything it started.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adapterhub.errors import ConflictError, ExternalToolError, UsageError
from adapterhub.serve import guard as guard_script
from adapterhub.serve.invocation import Invocation
from adapterhub.serve.logs import hint_for, last_errors, last_line
from adapterhub.serve.place import Place

GRACE_SECONDS = 15.0
"""What the server gets to finish in after SIGTERM, before SIGKILL. It takes about one second."""

_POLL_SECONDS = 0.25
_LONGEST_PLACE = 48


class Server:
    """A vLLM that was started. `pid` is its process and its process group."""

    def __init__(self, guard: subprocess.Popen[bytes], log: Path, sockets: str) -> None:
        assert guard.stdout is not None
        self._guard = guard
        self._sockets = sockets
        self.log = log
        line = guard.stdout.readline()  # empty where the program couldn't be run at all
        self.pid = int(line) if line.strip() else None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._guard.poll() is None

    def require_alive(self, when: str) -> None:
        """ExternalToolError with the log's last errors if it has ended."""
        if not self.alive:
            raise self.ended(when)

    def wait(self) -> None:
        """Returns never: it is over when the server dies (ExternalToolError) or we are interrupted."""
        self._guard.wait()
        raise self.ended("while it served")

    def stop(self) -> None:
        """Ends the server and all it started: SIGTERM, a bounded wait, SIGKILL. A second Ctrl-C skips the wait."""
        assert self._guard.stdin is not None
        try:
            with suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait(GRACE_SECONDS + 2 * guard_script.KILL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            code = self._guard.returncode
            if code is None or code < 0:  # the guard hangs, or was killed and couldn't do its work
                if self.pid is not None:
                    with suppress(ProcessLookupError):
                        os.killpg(self.pid, signal.SIGKILL)
                self._guard.kill()
                self._guard.wait()
            assert self._guard.stdout is not None
            self._guard.stdout.close()
            shutil.rmtree(self._sockets, ignore_errors=True)  # where the guard couldn't any more

    def ended(self, when: str) -> ExternalToolError:
        """Why it ended, as far as its exit code and its log tell. It must have ended."""
        code = self._guard.returncode
        if code > 128:
            how = f"it was ended by {_signal_name(code - 128)}"
        elif code < 0:
            how = f"its guard was ended by {_signal_name(-code)}"
        else:
            how = f"it ended with exit code {code}"
        errors = last_errors(self.log)
        hint = hint_for(errors)
        if code == 128 + signal.SIGKILL:
            hint = "If nobody killed it, memory ran out: ask for less with --max-model-len, or see `dmesg`."
            errors = []
        return ExternalToolError(
            f"vLLM ended {when}: {how}.",
            why="\n  ".join([*errors, f"The whole log: {self.log}"]),
            hint=hint,
        )


def start(invocation: Invocation, log: Path) -> Server:
    """Starts the server, which ends with this process at the latest; `stop` ends it before."""
    sockets = str(private_folder())
    script = [sys.executable, "-I", guard_script.__file__, str(GRACE_SECONDS), sockets]
    with log.open("ab") as sink:
        guard = subprocess.Popen(
            [*script, *invocation.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            env={**os.environ, **invocation.variables},
            start_new_session=True,  # Ctrl-C in the terminal is for us; we pass the end on in order
        )
    return Server(guard, log, sockets)


def private_folder() -> Path:
    """A new folder for sockets, which only its owner can open.

    A socket's path has 107 characters and vLLM's names take 36 of them, so a long TMPDIR won't do, nor the run's folder.
    """
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"]
    place = next(
        (p for p in places if p and len(p) < _LONGEST_PLACE and os.access(p, os.W_OK)), None
    )
    return Path(tempfile.mkdtemp(prefix="adapterhub-", dir=place))


@contextmanager
def launched(invocation: Invocation, log: Path) -> Iterator[Server]:
    """The running server; when the block ends, however it does, so does the server."""
    server = start(invocation, log)
    try:
        yield server
    finally:
        server.stop()


def waiting(
    server: Server,
    place: Place,
    names: Collection[str],
    *,
    seconds: float,
    tell: Callable[[float, str], None],
) -> Iterator[float]:
    """Yields pauses (seconds) until /health is good and /v1/models lists every name.

    `tell` gets the seconds since the start and the log's last line. The caller sleeps, each in its own way.

    Raises:
        ExternalToolError: it ended, or `seconds` went by.
    """
    started = time.monotonic()
    missing: set[str] | None = None
    while missing is None or missing:
        server.require_alive("before it was ready")
        elapsed = time.monotonic() - started
        if elapsed > seconds:
            raise ExternalToolError(
                f"vLLM was not ready within {seconds:g} seconds.",
                why=f"Its last word: {last_line(server.log)}\n  The whole log: {server.log}"
                + (f"\n  It doesn't list {', '.join(sorted(missing))}." if missing else ""),
                hint=f"Give it longer: --ready-timeout {2 * seconds:g}",
            )
        tell(elapsed, last_line(server.log))
        yield _POLL_SECONDS
        served = place.served_names()
        missing = None if served is None else set(names) - served


def wait_until_ready(
    server: Server,
    place: Place,
    names: Collection[str],
    *,
    seconds: float,
    tell: Callable[[float, str], None],
) -> float:
    """Blocks as long as `waiting` says; returns the seconds it took."""
    started = time.monotonic()
    for pause in waiting(server, place, names, seconds=seconds, tell=tell):
        time.sleep(pause)
    return round(time.monotonic() - started, 1)


def require_free(host: str, port: int) -> None:
    """ConflictError, naming a port that is free, when somebody listens at `port` already."""
    listener(host, port).close()


def listener(host: str, port: int) -> socket.socket:
    """A socket that has the port, and listens once it is told to.

    Raises:
        ConflictError: somebody listens there already; a port that is free is named.
        UsageError: the address isn't one of this machine, or the port may not be taken.
    """
    found = _bound(host, port)
    if isinstance(found, socket.socket):
        return found
    if found == errno.EADDRINUSE:
        other = next(
            (p for p in range(port + 1, min(port + 100, 65536)) if _is_free(host, p)), None
        )
        raise ConflictError(
            f"Port {port} on {host} is in use.",
            why="Another server listens there.",
            hint=f"Take another: --port {other}" if other else "Take another with --port.",
        )
    raise UsageError(
        f"Can't listen on {host} port {port}.", why=f"{os.strerror(found).capitalize()}."
    )


def _is_free(host: str, port: int) -> bool:
    found = _bound(host, port)
    if isinstance(found, socket.socket):
        found.close()
        return True
    return False


def _bound(host: str, port: int) -> socket.socket | int:
    """A socket bound to the port, or the errno that says why not."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except socket.gaierror as error:
        raise UsageError(
            f"'{host}' is no address of this machine.", why=f"{error.strerror}."
        ) from error
    found = socket.socket(family, kind, protocol)
    # as vLLM does: a port just left is free
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        return error.errno or errno.EIO
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
