"""Finds running servers through their leases, and talks to their control sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from adapterhub.chat_template import template_in
from adapterhub.errors import ExternalToolError, NotFoundError, UsageError
from adapterhub.serve.place import UnixConnection
from adapterhub.store import Store

SERVER_FILE = "server.json"
"""In the run's folder while a server runs behind its door: its process, address and control socket."""

_SECONDS = 360.0
"""For an answer: loading an adapter from a cold disk is the longest there is."""

_STATUS_SECONDS = 5.0


@dataclass(frozen=True)
class Running:
    """A server that runs on this machine. `control` is its private socket."""

    run: str
    folder: Path
    pid: int
    url: str
    control: Path

    def client(self) -> httpx.Client:
        """Speaks with the control socket, where `/v1` is the door without limits."""
        transport = httpx.HTTPTransport(uds=str(self.control))
        return httpx.Client(transport=transport, base_url="http://server", timeout=_SECONDS)

    def status(self) -> dict[str, Any]:
        """What it serves now. Raises ExternalToolError where it doesn't say so in time."""
        document: dict[str, Any] = self._asked("GET", "/control/status", seconds=_STATUS_SECONDS)
        return document

    def has_template(self) -> bool:
        """Whether it can be asked in turns: its base has a chat template, or it was started with one."""
        status = self.status()
        given = any(word.startswith("--chat-template") for word in status["extra"])
        return given or template_in(Path(status["base"]["path"])) is not None

    def change(self, what: str, **body: object) -> dict[str, Any]:
        """Asks for one change. Raises ExternalToolError in the server's own words where it refuses."""
        document: dict[str, Any] = self._asked("POST", f"/control/{what}", body)
        return document

    @property
    def port(self) -> str:
        """What `--server` takes for it."""
        return self.url.rpartition(":")[2]

    def stop(self) -> None:
        """Tells it to end: running answers finish first. Nothing happens where it has ended already."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def _asked(self, method: str, path: str, body: object = None, seconds: float = _SECONDS) -> Any:
        connection = UnixConnection(self.control, seconds)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ExternalToolError(
                f"The server at {self.url} doesn't answer.",
                why=f"{self.control}: {str(error) or type(error).__name__}.",
                hint=f"Look what it does:  adapterhub server logs --server {self.run}",
            ) from error
        finally:
            connection.close()
        if answer.status == 200:
            return json.loads(text)
        try:
            what = str(json.loads(text)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            what = f"The server at {self.url} failed ({answer.status})."
        raise (NotFoundError if answer.status == 404 else ExternalToolError)(
            what, hint="`adapterhub server ls` shows what is served."
        )


def servers(store: Store) -> list[Running]:
    """Every server that runs on this machine behind its door, oldest first."""
    alive = {lease.pid for lease in store.leases.live() if lease.kind == "serve"}
    found = []
    for file in sorted(store.runs_dir.glob(f"serve-*/{SERVER_FILE}")):
        try:
            said = json.loads(file.read_text())
        except FileNotFoundError:  # it has just ended
            continue
        if said["pid"] in alive:
            folder = file.parent
            found.append(
                Running(folder.name, folder, said["pid"], said["url"], Path(said["control"]))
            )
    return found


def the_server(store: Store, which: str | None) -> Running:
    """The one meant by `which`: a run's id or its beginning, a port or a URL; None: the only one there is.

    Raises:
        NotFoundError: there is none, or none such.
        UsageError: there are several.
    """
    running = servers(store)
    if not running:
        raise NotFoundError(
            "No server is running.",
            why="Servers started with --direct can't be changed while they run, and aren't found.",
            hint="Start one:  adapterhub serve NAME...",
        )
    lines = "\n  ".join(f"{one.run}  {one.url}" for one in running)
    if which is None:
        if len(running) > 1:
            raise UsageError(
                f"{len(running)} servers are running.",
                why=lines,
                hint=f"Say which:  --server {running[0].port}",
            )
        return running[0]
    meant = [one for one in running if which in (one.url, one.port) or one.run.startswith(which)]
    if len(meant) != 1:
        raise NotFoundError(
            f"{'No server' if not meant else 'More than one server'} is meant by '{which}'.",
            why=f"Running:\n  {lines}",
            hint="Name a run, a port or a URL.",
        )
    return meant[0]
