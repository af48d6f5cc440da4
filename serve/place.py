"""Where a server listens, on a port or on a Unix socket, and what it answers when asked whether it is ready."""

from __future__ import annotations

import http.client
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from adapterhub.errors import ExternalToolError

ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """`url` is where HTTP is spoken; with `uds` the connection goes through that socket, and the host means nothing."""

    url: str
    uds: Path | None = None

    def health(self) -> int | None:
        """The status of /health; None where nothing answers in time."""
        connection = self._connection()
        try:
            return _health(connection)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def served_names(self) -> set[str] | None:
        """What the server lists under /v1/models; None while it doesn't answer or isn't healthy.

        Raises ExternalToolError where it asks for a key that isn't known here.
        """
        key = os.environ.get("VLLM_API_KEY")
        connection = self._connection()
        try:
            if _health(connection) != 200:
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
            if answer.status != 200:
                return None
            return {model["id"] for model in json.loads(body)["data"]}
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        # http.client and not urllib: a proxy set in the environment has no business between us and our own child
        if self.uds is not None:
            return UnixConnection(self.uds)
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)


def _health(connection: http.client.HTTPConnection) -> int:
    connection.request("GET", "/health")
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


class UnixConnection(http.client.HTTPConnection):
    """HTTP through a Unix socket."""

    def __init__(self, path: Path, seconds: float = ANSWER_SECONDS) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        """Connects to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
