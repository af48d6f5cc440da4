"""HTTP to the engine over its Unix socket, at a third of what httpx' own transport takes for each chunk of a stream.

That one starts and stops reading for every piece (two system calls), parses in Python and passes each chunk through seven
generators: 50-80 microseconds. Here whatever has arrived is one piece, and a C parser reads it. It does what the door needs:
requests with a whole body, answers as streams, connections that are kept.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import httptools
import httpx

_MOST_UNREAD = 256 * 1024
"""Bytes of an answer that wait here for a slow client; then the engine has to wait."""


class Wire(httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient`. `keep`: connections that stay open for the next request.

    Raises, from requests: httpx.ConnectError, ConnectTimeout, ReadTimeout, RemoteProtocolError, as httpx' own.
    """

    def __init__(self, socket: str | Path, keep: int = 64) -> None:
        self._socket = str(socket)
        self._keep = keep
        self._idle: deque[_Connection] = deque()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends the request; returns when the answer's headers are here."""
        timeouts = request.extensions.get("timeout", {})
        text = await _written(request)
        connection = self._kept() or await self._connected(timeouts.get("connect"))
        try:
            await connection.ask(text, timeouts.get("read"))
        except BaseException:
            connection.close()
            raise
        return httpx.Response(
            connection.status,
            headers=connection.headers,
            stream=_Body(connection, self, timeouts.get("read")),
        )

    async def aclose(self) -> None:
        """Closes what is kept."""
        while self._idle:
            self._idle.pop().close()

    def done(self, connection: _Connection) -> None:
        """An answer was read, or given up: the connection waits for the next request, or goes."""
        if connection.reusable and len(self._idle) < self._keep:
            self._idle.append(connection)
        else:
            connection.close()

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may time out
            if connection.reusable:
                return connection
            connection.close()
        return None

    async def _connected(self, seconds: float | None) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_unix_connection(_Connection, self._socket)
        except TimeoutError as error:
            raise httpx.ConnectTimeout("The engine takes no connection.") from error
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection


class _Body(httpx.AsyncByteStream):
    """What follows the headers, in the pieces that it came in."""

    def __init__(self, connection: _Connection, wire: Wire, seconds: float | None) -> None:
        self._connection = connection
        self._wire = wire
        self._seconds = seconds
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection, seconds = self._connection, self._seconds
        while True:
            piece = connection.take()
            if piece:
                yield piece
            elif connection.complete:
                return
            else:
                await connection.more(seconds)

    async def aclose(self) -> None:
        """Given up before its end, it takes its connection along, which the engine notices."""
        if not self._closed:
            self._closed = True
            self._wire.done(self._connection)


class _Connection(asyncio.Protocol):
    """One connection, and the parser's callbacks for the answer that is under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = False
        self._paused = False
        self._begin()
        self.complete = True

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: list[bytes] = []
        self._unread = 0
        self._headed = False
        self._keeps_alive = True
        self._error: Exception | None = None
        self.complete = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    # For the transport

    @property
    def reusable(self) -> bool:
        """Whether the next request may go this way."""
        return self.complete and not self._lost and self._error is None and self._keeps_alive

    async def ask(self, text: bytes, seconds: float | None) -> None:
        """Sends a request and waits for the headers of its answer."""
        self._begin()
        assert self._transport is not None
        self._transport.write(text)
        while not self._headed:
            await self.more(seconds)

    def take(self) -> bytes:
        """All that has come since; empty where nothing has."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces, self._unread = [], 0
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._lost:
                self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def more(self, seconds: float | None) -> None:
        """Waits until something happens.

        Raises:
            httpx.ReadTimeout: nothing did.
            httpx.RemoteProtocolError: the connection is lost, or what came is no HTTP.
        """
        if self._lost or self._error is not None:
            what = self._error or "The engine closed the connection before its answer's end."
            raise httpx.RemoteProtocolError(str(what))
        self._waiter = self._loop.create_future()
        try:
            if seconds is None:
                await self._waiter
            else:
                async with asyncio.timeout(seconds):
                    await self._waiter
        except TimeoutError as error:
            raise httpx.ReadTimeout("The engine says nothing.") from error
        finally:
            self._waiter = None

    def close(self) -> None:
        """Closes it at once."""
        if self._transport is not None:
            self._transport.abort()

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """The parser calls the methods below."""
        if self.complete:  # nothing was asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._error = error
            self.close()
        else:
            if self._unread > _MOST_UNREAD and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed it, or we did. An answer without a length ends this way."""
        self._lost = True
        if self._headed and not self.complete and exc is None and self._ends_with_connection:
            self.complete = True
        self._wake()

    # For the parser

    def on_message_begin(self) -> None:
        """After an answer like 100, the real one. After the real one there is none."""
        if self.complete:
            raise ValueError("The engine answers more than it was asked.")
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of them."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """All of them."""
        self.status = self._parser.get_status_code()
        self._headed = self.status >= 200
        self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """A chunk, or a part of one."""
        self._pieces.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        """The end, where it could be told."""
        self.complete = self._headed

    @property
    def _ends_with_connection(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return not names & {b"content-length", b"transfer-encoding"}

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


async def _written(request: httpx.Request) -> bytes:
    """The request as bytes, its body included."""
    body = await request.aread()
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    for name, value in request.headers.raw:
        if b"\r" in value or b"\n" in value:
            raise httpx.LocalProtocolError("A header's value has a line break.")
        if name.lower() not in (b"content-length", b"transfer-encoding", b"connection"):
            lines.append(b"%s: %s" % (name, value))
    lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
