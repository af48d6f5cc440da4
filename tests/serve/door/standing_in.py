"""A stand-in for vLLM behind the door: its routes, its errors, its way to stream; what it was asked is on record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

BASE = "org/tiny"


class Engine:
    """Answers for the base and for what was loaded; `suffix` makes every event longer. A prompt that names a mood gets it:

    wait   nothing comes until `go` is set         hang   half the events, then nothing until `go`
    die    half the events, then the connection breaks    drop   the connection breaks in an answer that comes whole
    crash  a 500 that isn't JSON                   fail   a 500 of vLLM's that names the model
    """

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.folders: dict[str, Path] = {}
        self.running = 0
        self.aborted = 0
        self.go = asyncio.Event()

    async def load(self, name: str, folder: Path) -> None:
        """As the pool asks for it."""
        self.folders[name] = folder
        self.loaded.add(name)

    async def unload(self, name: str) -> None:
        """As the pool asks for it."""
        self.loaded.discard(name)

    def app(self) -> Starlette:
        """Its HTTP side; every POST that the door knows, and one that it must not."""
        paths = ("/v1/chat/completions", "/v1/completions", "/v1/load_lora_adapter", "/tokenize")
        return Starlette(
            routes=[
                Route("/health", lambda _: Response()),
                Route("/metrics", lambda _: PlainTextResponse("vllm:requests 3\n")),
                *(Route(path, self.answer, methods=["POST"]) for path in paths),
            ]
        )

    async def answer(self, request: Request) -> Response:
        """As vLLM 0.32 answers, in compact JSON with the fields in its order."""
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        model, mood = body["model"], str(body.get("prompt", ""))
        if model != BASE and model not in self.loaded:
            return vllm_error(404, f"The model `{model}` does not exist. Valid aliases: {BASE}.")
        if request.url.path == "/tokenize":
            return JSONResponse({"count": 2, "max_model_len": 64, "tokens": [1, 2]})
        if mood == "fail":
            return vllm_error(500, f"The engine failed on {model}.")
        if mood == "crash":
            return PlainTextResponse("Internal Server Error", 500)
        if mood == "drop":
            return Breaking()
        if body.get("stream"):
            return StreamingResponse(self.events(body, mood), media_type="text/event-stream")
        self.running += 1
        try:
            if mood == "wait":
                await self.while_connected(request)
        finally:
            self.running -= 1
        choices = [{"index": 0, "text": ' "model":"x" ', "finish_reason": "length"}]
        usage = {"prompt_tokens": 5, "total_tokens": 8, "completion_tokens": 3}
        return JSONResponse({"id": "cmpl-1", "model": model, "choices": choices, "usage": usage})

    async def while_connected(self, request: Request) -> None:
        """Waits for `go`; a client that goes away is an aborted request."""
        while not self.go.is_set():
            if await request.is_disconnected():
                self.aborted += 1
                return
            await asyncio.sleep(0.01)

    async def events(self, body: dict[str, Any], mood: str) -> AsyncIterator[str]:
        """`max_tokens` events, the usage where it is asked for, and [DONE]."""
        ended, more = False, body.get("suffix") or ""
        self.running += 1
        try:
            if mood == "wait":
                await self.go.wait()
            number = body.get("max_tokens") or 4
            for place in range(number):
                if place == number // 2 and mood == "hang":
                    await self.go.wait()
                if place == number // 2 and mood == "die":
                    ended = True
                    raise ConnectionAbortedError
                yield event(model=body["model"], choices=[{"index": 0, "text": f"t{place}{more}"}])
                await asyncio.sleep(0)
            if (body.get("stream_options") or {}).get("include_usage"):
                usage = {
                    "prompt_tokens": 5,
                    "total_tokens": 5 + number,
                    "completion_tokens": number,
                }
                yield event(model=body["model"], choices=[], usage=usage)
            yield "data: [DONE]\n\n"
            ended = True
        finally:
            self.running -= 1
            self.aborted += not ended


class Breaking(Response):
    """Says how much it will send, and breaks off before that."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"100")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b'{"id":', "more_body": True})


def event(**fields: Any) -> str:
    data = json.dumps(
        {"id": "cmpl-1", "object": "text_completion", **fields}, separators=(",", ":")
    )
    return f"data: {data}\n\n"


def vllm_error(status: int, message: str) -> Response:
    error = {"message": message, "type": "NotFoundError", "param": "model", "code": status}
    return JSONResponse({"error": error}, status)


@asynccontextmanager
async def listening(app: ASGIApp, **where: Any) -> AsyncIterator[int]:
    """A server in this event loop; yields its port, where it has one."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=bool(where.get("uds")),
        **where,
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    await server.on_tick(0)  # the main loop would only wait in steps of 0.1 s
    try:
        yield 0 if where.get("uds") else server.servers[0].sockets[0].getsockname()[1]
    finally:
        state = server.server_state
        for socket in server.servers:
            socket.close()
        for connection in list(state.connections):
            connection.shutdown()
        async with asyncio.timeout(5):
            while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn tells nobody
                await asyncio.sleep(0.001)
