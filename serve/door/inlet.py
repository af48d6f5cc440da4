"""What uvicorn lets in unbounded, bounded: the head of a request has a size and a time.

Without it a client that sends half a head holds a connection for ever, and one that sends headers without end holds
memory, both before any key is asked for.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 64 * 1024
"""Bytes of a request's line and headers, together with what came in one piece with them."""
HEAD_SECONDS = 10.0
"""Until a request's head is here, once the connection is made or its first byte has come."""
MOST_CONNECTIONS = 4096
"""Open at once; more are answered 503."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's own, which closes the connection of a head that is too long or too slow."""

    _head: int = 0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The first head is due."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes before the end of a head."""
        if self._waiting is not None:
            self._head += len(data)
        super().data_received(data)
        if self._waiting is not None and self._head > MOST_HEAD:
            self._give_up()

    def on_message_begin(self) -> None:
        """A further request on a kept connection: its head is due."""
        if self._waiting is None:
            self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """It is here in time."""
        self._head_is_here()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head = 0
        self._waiting = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._give_up)

    def _head_is_here(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._head_is_here()
        if self.transport is not None:
            self.transport.abort()


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: each client is one, and each answer another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        wanted = 65536 if hard == resource.RLIM_INFINITY else hard
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
