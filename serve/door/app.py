"""The front door: an allow-list of OpenAI's routes before one engine that only this process can reach.

A request is judged (who, what, how much), routed once (name -> version), and passed on under the engine's name for that
version; the answer comes back under the name that was asked for. Whatever isn't listed here doesn't exist outside,
vLLM's routes for loading adapters among them.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
import uuid

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers, State
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from adapterhub.serve.door.exchange import BROKEN, Asked, Exchange, Visit
from adapterhub.serve.door.keys import Keys, Tenant
from adapterhub.serve.door.limits import Limits
from adapterhub.serve.door.metrics import CONTENT_TYPE, Metrics
from adapterhub.serve.door.pool import Pool
from adapterhub.serve.door.question import PASSED, judge
from adapterhub.serve.door.refusal import Refused, busy
from adapterhub.serve.door.relay import Leash
from adapterhub.serve.door.settings import DoorSettings
from adapterhub.serve.door.table import Model, Table
from adapterhub.serve.door.table import Route as Version
from adapterhub.words import shown

__all__ = ["DoorSettings", "door", "drain"]

_TRACE = ("traceparent", "tracestate")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_LONGEST_NAME = 256  # characters; the search for similar names is slow for long ones
_LOOK_SECONDS = 2.0  # for the engine's own /health and /metrics


def door(
    table: Table,
    pool: Pool,
    upstream: httpx.AsyncClient,
    keys: Keys,
    metrics: Metrics,
    settings: DoorSettings,
) -> Starlette:
    """The app. `upstream` reaches the engine and nothing else; its paths are those of OpenAI's API.

    `app.state.draining = True` refuses new requests; `drain` does that and waits for the running ones. So does
    `app.state.down = True`, for as long as the engine starts: then they are asked to come again.
    """
    state = State({"draining": False, "down": False})
    house = _Door(table, pool, upstream, keys, metrics, settings, state)
    app = Starlette(
        routes=[
            Route("/health", house.health, methods=["GET"]),
            Route("/metrics", house.metrics, methods=["GET"]),
            Route("/v1/models", house.models, methods=["GET"]),
            Route("/v1/models/{name:path}", house.model, methods=["GET"]),
            *(Route(path, _Ask(house, path), methods=["POST"]) for path in PASSED),
        ],
        exception_handlers={
            HTTPException: _no_such_route,
            Refused: _refused,
            Exception: _our_fault,
        },
    )
    app.router.redirect_slashes = False
    app.state = state
    app.state.door = house
    return app


async def drain(app: Starlette) -> bool:
    """Lets no new request in and waits for those that run; False if some didn't end in `settings.drain` seconds."""
    house: _Door = app.state.door
    app.state.draining = True
    try:
        async with asyncio.timeout(house.settings.drain):
            await house.idle.wait()
    except TimeoutError:
        return False
    return True


class _Gone(Exception):  # noqa: N818 - nobody is left to read an error
    """The client went away."""


class _Ask:
    """One of the POST routes, without Starlette's request and response around every chunk."""

    def __init__(self, house: _Door, path: str) -> None:
        self._house = house
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._house.answer(self._path, scope, receive, send)


class _Door:
    def __init__(
        self,
        table: Table,
        pool: Pool,
        upstream: httpx.AsyncClient,
        keys: Keys,
        metrics: Metrics,
        settings: DoorSettings,
        state: State,
    ) -> None:
        self._table = table
        self._exchange = Exchange(pool, upstream, metrics, settings)
        self._upstream = upstream
        self._keys = keys
        self._metrics = metrics
        self.settings = settings
        self.state = state
        self._limits = Limits(settings)
        self._secret = secrets.token_bytes(32)
        self._running = 0
        self.idle = asyncio.Event()
        self.idle.set()
        metrics.watch(
            held=lambda: sum(held.ready for held in pool.held),
            running=lambda: self._limits.running,
            waiting=lambda: self._limits.waiting,
        )

    # What is read

    async def health(self, request: Request) -> Response:
        """200 when requests are answered; no key is needed."""
        if self.state.draining:
            return JSONResponse({"status": "draining"}, 503)
        if self.state.down:
            return JSONResponse({"status": "the engine is starting"}, 503)
        try:
            answer = await self._upstream.get("/health", timeout=_LOOK_SECONDS)
        except httpx.TransportError:
            return JSONResponse({"status": "the engine is starting"}, 503)
        if answer.status_code != 200:
            return JSONResponse({"status": "the engine is not well"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """The door's numbers and the engine's.

        With a key file, a key marked `metrics` is needed, from this machine too: behind a proxy everybody is.
        """
        tenant = self._keys.who(request.headers.get("authorization"))
        if not tenant.metrics:
            raise Refused(
                403, "This key may not read the metrics.", kind="permission_error", code="forbidden"
            )
        text = self._metrics.text()
        try:
            answer = await self._upstream.get("/metrics", timeout=_LOOK_SECONDS)
        except httpx.TransportError:
            return Response(text, media_type=CONTENT_TYPE)
        return Response(
            text + (answer.content if answer.status_code == 200 else b""), media_type=CONTENT_TYPE
        )

    async def models(self, request: Request) -> Response:
        """What the key may use."""
        tenant = self._keys.who(request.headers.get("authorization"))
        found = [
            self._card(model)
            for model in self._table.models()
            if tenant.may(model.name, self._table.base)
        ]
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One of them; an earlier version too, which isn't listed any more but still answers."""
        tenant = self._keys.who(request.headers.get("authorization"))
        version = self._found(request.path_params["name"], tenant, "")
        listed = self._table.models()
        known = {model.name: model for model in listed}
        earlier = Model(version.name, version.digest, False, listed[0].created)
        return JSONResponse(self._card(known.get(version.name, earlier)))

    def _card(self, model: Model) -> dict[str, object]:
        of_base = model.name == self._table.base
        length, about = self.settings.max_model_len, self.settings.about
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "adapterhub",
            "root": model.digest or model.name,
            "parent": None if of_base else self._table.base,
            **({} if length is None else {"max_model_len": length}),
            **({"adapterhub": dict(about)} if of_base and about else {}),
        }

    # What is asked

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """One request from its first byte to its last, counted."""
        headers = Headers(scope=scope)
        ours, theirs = uuid.uuid4().hex, headers.get("x-request-id", "")
        visit = Visit(ours, theirs if _REQUEST_ID.fullmatch(theirs) else ours, time.monotonic())
        self._running += 1
        self.idle.clear()
        try:
            await self._ask(visit, path, headers, scope, receive, send)
        except Refused as refused:
            visit.status = refused.status
            await refused.as_response(visit.headers)(scope, receive, send)
        except _Gone:
            pass
        except Exception:
            visit.status = 500
            raise
        finally:
            self._running -= 1
            if not self._running:
                self.idle.set()
            seconds = time.monotonic() - visit.began
            self._metrics.answered(visit.adapter, visit.digest, visit.tenant, visit.status, seconds)

    async def _ask(
        self, visit: Visit, path: str, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if self.state.draining:
            raise busy("The server is stopping.", code="draining")
        if self.state.down:
            raise busy("The server is starting.", code="engine_starting")
        tenant = self._keys.who(headers.get("authorization"))
        visit.tenant = tenant.name
        self._limits.count(tenant)
        question = judge(path, await _body(headers, receive, self.settings), self.settings)
        visit.ignored = question.ignored
        who = tenant.name if tenant.keyed else (scope.get("client") or ("",))[0]
        version = self._found(question.model or self._table.base, tenant, f"{who}\0{question.user}")
        visit.adapter, visit.digest = version.name.partition("@")[0] or version.name, version.digest
        trace = {name: headers[name] for name in _TRACE if name in headers}
        asked = Asked(question, version, self._salt(tenant, question.salt), trace)
        leash = Leash(receive, self.settings.first_byte_seconds)
        try:
            async with leash, self._limits.place(tenant, question.answers):
                last = await self._exchange.answer(visit, asked, leash, send)
        except TimeoutError:
            if leash.gone or visit.sending:
                raise _Gone from None
            last = self._too_slow(visit)
        if isinstance(last, Response):
            await last(scope, receive, send)
        else:
            await send({"type": "http.response.body", "body": last, "more_body": False})

    def _found(self, name: str, tenant: Tenant, sticky: str) -> Version:
        """Who answers to `name`.

        Raises:
            Refused: 403 for every name the key may not use, whether it exists or not; else 404.
        """
        if not tenant.may(name, self._table.base):
            raise Refused(
                403,
                f"This key may not use the model {shown(name)}.",
                kind="permission_error",
                code="model_not_allowed",
                param="model",
            )
        short_enough = len(name) <= _LONGEST_NAME
        version = self._table.route(name, sticky) if short_enough else None
        if version is not None:
            return version
        like = [
            other
            for other in (self._table.like(name) if short_enough else ())
            if tenant.may(other, self._table.base)
        ]
        raise Refused(
            404,
            f"The model {shown(name)} does not exist."
            + (f" Did you mean {' or '.join(like)}?" if like else ""),
            code="model_not_found",
            param="model",
        )

    def _salt(self, tenant: Tenant, theirs: str) -> str:
        """What keeps a tenant's cached prompts apart: from response times one could guess another's prompts."""
        if not tenant.keyed:
            return theirs
        return hmac.new(
            self._secret, f"{tenant.name}\0{theirs}".encode(), hashlib.sha256
        ).hexdigest()

    def _too_slow(self, visit: Visit) -> bytes:
        """What ends a stream that stands still. Refused 504 where nothing was sent yet."""
        self._metrics.failed(visit.adapter, "timeout")
        error = Refused(
            504, "The engine took too long.", kind="engine_error", code="engine_timeout"
        )
        if not visit.streaming:
            raise error
        visit.status = BROKEN
        return error.as_event()


async def _body(headers: Headers, receive: Receive, settings: DoorSettings) -> bytes:
    """The whole body.

    Raises:
        Refused: not JSON by its type (415), too long (413), too slow (408).
        _Gone: the client left before its end.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Send JSON, with the header `Content-Type: application/json`.")
    length = headers.get("content-length", "")
    too_long = Refused(
        413,
        f"The body may have {settings.max_body} bytes.",
        code="body_too_long",
        headers={"Connection": "close"},
    )
    if length.isdecimal() and int(length[:20]) > settings.max_body:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                body += message.get("body", b"")
                if len(body) > settings.max_body:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refused(
            408,
            f"The body didn't come in {settings.body_seconds:g} seconds.",
            headers={"Connection": "close"},
        ) from None


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.as_response()


def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = (
        f"{request.method} isn't allowed here."
        if error.status_code == 405
        else f"There is no {shown(request.url.path)} here."
    )
    return Refused(
        error.status_code, message, code="unknown_url", headers=dict(error.headers or {})
    ).as_response()


def _our_fault(request: Request, error: Exception) -> Response:
    return Refused(500, "The server failed.", kind="server_error").as_response()
