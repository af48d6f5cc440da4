"""One request between the door and the engine: loaded, asked, and its answer passed back under the client's name."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import httpx
import msgspec
from starlette.responses import Response
from starlette.types import Send

from adapterhub.serve.door.metrics import CANCELLED, UNKNOWN, Metrics
from adapterhub.serve.door.pool import Pool
from adapterhub.serve.door.question import Question
from adapterhub.serve.door.refusal import BUSY_SECONDS, Refused, busy
from adapterhub.serve.door.relay import Events, Leash, Names, Usage, usage_of
from adapterhub.serve.door.settings import DoorSettings
from adapterhub.serve.door.table import Route
from adapterhub.words import shown

BROKEN = "broken"
"""The status of an answer that began well and ended with an error."""

_BY_THE_BASE = frozenset(("/tokenize", "/detokenize"))  # adapters have no tokenizer of their own
_QUIET = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # for proxies before this one


@dataclass
class Visit:
    """What is known of one request so far, for its answer's headers and for the metrics."""

    id: str
    shown_id: str
    began: float
    """Monotonic seconds."""
    tenant: str = UNKNOWN
    adapter: str = UNKNOWN
    digest: str | None = None
    status: int | str = CANCELLED
    ignored: tuple[str, ...] = ()
    streaming: bool = False
    """Status and headers are sent."""
    sending: bool = False
    """The client is being waited for, not the engine."""

    @property
    def headers(self) -> dict[str, str]:
        """What every answer has."""
        ignored = {"x-ignored-fields": ", ".join(self.ignored)} if self.ignored else {}
        return {"x-request-id": self.shown_id, **ignored}


@dataclass(frozen=True)
class Asked:
    """What goes to the engine. `trace` are headers that join its spans to the client's."""

    question: Question
    version: Route
    salt: str
    trace: dict[str, str]


class Exchange:
    """The engine's side of the door. `upstream` reaches the engine and nothing else."""

    def __init__(
        self, pool: Pool, upstream: httpx.AsyncClient, metrics: Metrics, settings: DoorSettings
    ) -> None:
        self._pool = pool
        self._upstream = upstream
        self._metrics = metrics
        self._settings = settings

    async def answer(
        self, visit: Visit, asked: Asked, leash: Leash, send: Send
    ) -> Response | bytes:
        """Asks the engine: its answer, or what ends the stream that was passed on already.

        The engine may have put an adapter out behind the pool's back; then it is loaded and asked once more.

        Raises:
            Refused: it is away (503), ended before it had begun to answer (502), or the pool refuses.
        """
        first = await self._once(visit, asked, leash, send, again=True)
        if first is not None:
            return first
        second = await self._once(visit, asked, leash, send, again=False)
        assert second is not None
        return second

    async def _once(
        self, visit: Visit, asked: Asked, leash: Leash, send: Send, *, again: bool
    ) -> Response | bytes | None:
        """As `answer`; with `again`, None where the engine has forgotten the adapter."""
        question = asked.question
        digest = None if question.path in _BY_THE_BASE else asked.version.digest
        async with self._pool.using(digest) as name:
            names = Names(name, asked.version.name)
            response = await self._sent(visit, asked, question.written(name, asked.salt))
            try:
                kind = response.headers.get("content-type", "")
                if response.status_code == 200 and kind.startswith("text/event-stream"):
                    events = Events(names, question.usage)
                    return await self._stream(visit, response, events, leash, send)
                body = await self._whole(visit, response)
            finally:
                await response.aclose()
            if again and digest and response.status_code == 404 and names.is_unknown(body):
                self._pool.forget(digest)
                return None
            return self._answered(visit, response, body, names)

    async def _sent(self, visit: Visit, asked: Asked, body: bytes) -> httpx.Response:
        """The engine's answer up to its headers.

        A connection that was kept open may be closed by the engine in the moment it is used: then a new one is made.
        """
        request = self._upstream.build_request(
            "POST",
            asked.question.path,
            content=body,
            headers={
                "content-type": "application/json",
                "accept-encoding": "identity",
                "x-request-id": visit.id,
                **asked.trace,
            },
            timeout=httpx.Timeout(None, connect=self._settings.connect_seconds),
        )
        try:
            try:
                return await self._upstream.send(request, stream=True)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                return await self._upstream.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            self._metrics.failed(visit.adapter, "away")
            raise busy("The engine is starting.", code="engine_starting") from error
        except httpx.TransportError as error:
            raise self._died(visit) from error

    async def _stream(
        self, visit: Visit, response: httpx.Response, events: Events, leash: Leash, send: Send
    ) -> bytes:
        """Passes events on as they come; returns what is to be sent last, which is nothing or an error."""
        between = self._settings.between_seconds
        await send(_start(200, {**visit.headers, **_QUIET, "content-type": "text/event-stream"}))
        visit.streaming = True
        feed, now = events.feed, asyncio.get_running_loop().time
        first = True
        try:
            async for chunk in response.stream:  # type: ignore[union-attr] # the client is async
                out = feed(chunk)
                if out:
                    visit.sending = True
                    await send({"type": "http.response.body", "body": out, "more_body": True})
                    visit.sending = False
                    if first and not out.startswith(b":"):  # a comment only says that it lives
                        first = False
                        leash.started(between)
                        self._metrics.first_token(visit.adapter, time.monotonic() - visit.began)
                leash.moved = now()
        except httpx.TransportError:
            pass
        finally:
            at_least = Usage(0, max(0, events.count - 1))
            self._used(visit, events.usage or at_least)
        visit.status = BROKEN if events.failed or not events.complete else 200
        if events.failed:
            self._metrics.failed(visit.adapter, "error event")
        if events.complete or events.failed:
            return b""
        return self._died(visit).as_event()

    async def _whole(self, visit: Visit, response: httpx.Response) -> bytes:
        try:
            return await response.aread()
        except httpx.TransportError as error:
            raise self._died(visit) from error

    def _answered(
        self, visit: Visit, response: httpx.Response, body: bytes, names: Names
    ) -> Response:
        """An answer that came as a whole, under the client's name; an error in OpenAI's shape."""
        visit.status = response.status_code
        headers = dict(visit.headers)
        if response.status_code < 400:
            usage = usage_of(body)
            if usage is not None:
                self._used(visit, usage)
            body = names.in_answer(body)
        else:
            if response.status_code >= 500:
                self._metrics.failed(visit.adapter, f"status {response.status_code}")
            if not _is_error(body):
                text = shown(body.decode("utf-8", "replace"))
                return Refused(
                    response.status_code, f"The engine answered {text}", kind="engine_error"
                ).as_response(headers)
            body = names.in_error(body)
            if "retry-after" in response.headers:
                headers["retry-after"] = response.headers["retry-after"]
        kind = response.headers.get("content-type", "application/json")
        return Response(body, response.status_code, {**headers, "content-type": kind})

    def _used(self, visit: Visit, usage: Usage) -> None:
        self._metrics.used(
            visit.adapter,
            visit.digest,
            visit.tenant,
            usage.prompt_tokens,
            usage.completion_tokens or 0,
        )

    def _died(self, visit: Visit) -> Refused:
        self._metrics.failed(visit.adapter, "died")
        return Refused(
            502,
            "The engine ended before its answer did.",
            kind="engine_error",
            code="engine_died",
            headers={"Retry-After": str(BUSY_SECONDS)},
        )


def _start(status: int, headers: dict[str, str]) -> dict[str, object]:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": pairs}


class _Error(msgspec.Struct):
    error: dict[str, object]


def _is_error(body: bytes) -> bool:
    """Whether it has OpenAI's shape already."""
    try:
        msgspec.json.decode(body, type=_Error)
    except ValueError:
        return False
    return True
