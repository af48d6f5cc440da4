"""Runs vLLM as a supervised child: its output in a log file, its end tied to ours, ready when it lists every name.

`guard.py` stands between (see there). We hold the writing end of the guard's pipe; closing it, on purpose or by dying,
stops the server and everything it started.
"""

from __future__ import annotations

import errno
import http.client
import json
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
from urllib.parse import urlsplit

from adapterhub.errors import ConflictError, ExternalToolError, UsageError
from adapterhub.serve import guard as guard_script
from adapterhub.serve.invocation import Invocation
from adapterhub.serve.logs import hint_for, last_errors, last_line

GRACE_SECONDS = 15.0
"""What the server gets to finish in after SIGTERM, before SIGKILL. It takes about one second."""

_POLL_SECONDS = 0.25
_ANSWER_SECONDS = 5.0


class Server:
    """A vLLM that was started. `pid` is its process and its process group."""

    def __init__(self, guard: subprocess.Popen[bytes], log: Path) -> None:
        assert guard.stdout is not None
        self._guard = guard
        self.log = log
        line = guard.stdout.readline()  # empty where the program couldn't be run at all
        self.pid = int(line) if line.strip() else None

    def require_alive(self, when: str) -> None:
        """ExternalToolError with the log's last errors if it has ended."""
        if self._guard.poll() is not None:
            raise self._ended(when)

    def wait(self) -> None:
        """Returns never: it is over when the server dies (ExternalToolError) or we are interrupted."""
        self._guard.wait()
        raise self._ended("while it served")

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

    def _ended(self, when: str) -> ExternalToolError:
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


@contextmanager
def launched(invocation: Invocation, log: Path) -> Iterator[Server]:
    """The running server; when the block ends, however it does, so does the server."""
    sockets = tempfile.mkdtemp(
        prefix="adapterhub-"
    )  # a socket's path must be short: not in the run's folder
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
    server = Server(guard, log)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(sockets, ignore_errors=True)  # where the guard was killed and couldn't


def wait_until_ready(
    server: Server,
    url: str,
    names: Collection[str],
    *,
    seconds: float,
    tell: Callable[[float, str], None],
) -> float:
    """Seconds until /health is good and /v1/models lists every name; `tell` gets seconds and the log's last line.

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
        time.sleep(_POLL_SECONDS)
        served = served_names(url)
        missing = None if served is None else set(names) - served
    return round(time.monotonic() - started, 1)


def served_names(url: str) -> set[str] | None:
    """What the server at `url` lists under /v1/models; None while it doesn't answer or isn't healthy."""
    parts = urlsplit(url)
    key = os.environ.get("VLLM_API_KEY")
    # http.client and not urllib: a proxy set in the environment has no business between us and our own child
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=_ANSWER_SECONDS
    )
    try:
        connection.request("GET", "/health")
        with connection.getresponse() as health:
            health.read()
            if health.status != 200:
                return None
        connection.request(
            "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {}
        )
        with connection.getresponse() as answer:
            body = answer.read()
            if answer.status == 401:
                raise ExternalToolError(
                    "The server asks for a key that adapterhub doesn't know.",
                    hint="Set it for both: VLLM_API_KEY=...",
                )
            return (
                {model["id"] for model in json.loads(body)["data"]}
                if answer.status == 200
                else None
            )
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def require_free(host: str, port: int) -> None:
    """ConflictError, naming a port that is free, when somebody listens at `port` already."""
    reason = _why_not(host, port)
    if reason is None:
        return
    if reason == errno.EADDRINUSE:
        other = next(
            (p for p in range(port + 1, min(port + 100, 65536)) if _why_not(host, p) is None), None
        )
        raise ConflictError(
            f"Port {port} on {host} is in use.",
            why="Another server listens there.",
            hint=f"Take another: --port {other}" if other else "Take another with --port.",
        )
    raise UsageError(
        f"Can't listen on {host} port {port}.", why=f"{os.strerror(reason).capitalize()}."
    )


def _why_not(host: str, port: int) -> int | None:
    """The errno of listening at `port`, or None where that works."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except socket.gaierror as error:
        raise UsageError(
            f"'{host}' is no address of this machine.", why=f"{error.strerror}."
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as vLLM does: a port just left is free
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            return error.errno
    return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
