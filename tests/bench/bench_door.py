"""What the front door costs a streamed chunk, beside a bare relay and no relay at all.

    python -m tests.bench.bench_door

A stand-in for the engine sends events of vLLM's size to 32 streams, one each in every step, as an engine does. Each way
is a process of its own, and what is counted is its processor time (user and system), so the client and the engine
don't matter. The bare relay is the least that Starlette and httpx can do: it knows neither names nor tenants.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.bench.timing import Timed, medians

STREAMS = 32
EVENTS = 150
STEP_SECONDS = 0.02
ROUNDS = 3
PATH = "/v1/completions"
NAME = "support/tone"
DIGEST = "a1" * 32


@dataclass(frozen=True)
class Cost(Timed):
    """Timed, with the microseconds of the processor that one chunk took."""

    chunk: float


def engine() -> Starlette:
    """The same event for every stream in every step, then the usage and [DONE]."""
    text = (
        'data: {"id":"cmpl-0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","object":"text_completion","created":1800000000,'
        f'"model":"{DIGEST}","choices":[%s]%s}}\n\n'
    )
    event = text % ('{"index":0,"text":" token","logprobs":null,"finish_reason":null}', "")
    usage = text % ("", ',"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}')

    async def events() -> AsyncIterator[str]:
        step = time.monotonic() // STEP_SECONDS
        for _ in range(EVENTS):
            step += 1
            await asyncio.sleep(step * STEP_SECONDS - time.monotonic())
            yield event
        yield usage
        yield "data: [DONE]\n\n"

    async def answer(request: Request) -> Response:
        await request.body()
        return StreamingResponse(events(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


def upstream(socket: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=STREAMS)
    transport = httpx.AsyncHTTPTransport(uds=socket, limits=limits)
    return httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=None)


def relay(socket: str) -> Starlette:
    """Bytes in, bytes out."""
    client = upstream(socket)

    async def answer(request: Request) -> Response:
        asked = client.build_request("POST", PATH, content=await request.body())
        got = await client.send(asked, stream=True)
        return StreamingResponse(got.aiter_raw(), media_type="text/event-stream")

    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])


def front(socket: str) -> Starlette:
    """The door, with a pool that has loaded everything already."""
    from adapterhub.serve.door.app import door
    from adapterhub.serve.door.keys import Keys
    from adapterhub.serve.door.metrics import Metrics
    from adapterhub.serve.door.pool import Pool
    from adapterhub.serve.door.settings import DoorSettings
    from adapterhub.serve.door.table import Table, Target
    from adapterhub.serve.door.wire import Wire

    class Loader:
        async def load(self, name: str, folder: Path) -> None: ...
        async def unload(self, name: str) -> None: ...

    table, metrics = Table("base"), Metrics()
    table.set(NAME, [Target(f"sha256:{DIGEST}")])
    pool = Pool(Loader(), lambda _: Path(), 1, "base", metrics)
    wire = httpx.AsyncClient(transport=Wire(socket), base_url="http://engine")
    return door(table, pool, wire, Keys.load(None), metrics, DoorSettings())


def serve(what: str, own: str, engines: str) -> None:
    app = engine() if what == "engine" else {"relay": relay, "door": front}[what](engines)
    uvicorn.run(app, uds=own, log_level="error", access_log=False, ws="none", lifespan="off")


@contextmanager
def running(folder: Path, what: str) -> Iterator[psutil.Process]:
    """One of the servers as a process, from when it listens."""
    own = folder / what
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_door",
        what,
        str(own),
        str(folder / "engine"),
    ]
    process = subprocess.Popen(command)
    try:
        while not own.exists():
            assert process.poll() is None, f"the {what} ended"
            time.sleep(0.02)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def read(socket: Path) -> int:
    """All streams at once, to their end; the number of events that came."""

    async def one(client: httpx.AsyncClient) -> int:
        body = {"model": NAME, "prompt": "Once", "stream": True}
        async with client.stream("POST", PATH, json=body) as answer:
            return sum([chunk.count(b"\n\n") async for chunk in answer.aiter_raw()])

    async with upstream(str(socket)) as client:
        return sum(await asyncio.gather(*(one(client) for _ in range(STREAMS))))


def measured(folder: Path, what: str, process: psutil.Process) -> Cost:
    """One round through a server, in processor time of that server."""
    before, began = process.cpu_times(), time.perf_counter()
    events = asyncio.run(read(folder / what))
    wall, after = time.perf_counter() - began, process.cpu_times()
    assert events >= STREAMS * (EVENTS + 1)
    cpu = after.user + after.system - before.user - before.system
    return Cost(what, wall, cpu, cpu / events * 1e6)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        running(Path(name), "engine") as direct,
        running(Path(name), "relay") as bare,
        running(Path(name), "door") as door,
    ):
        folder = Path(name)
        for what in ("engine", "relay", "door"):
            asyncio.run(read(folder / what))  # imports, connections, the first load
        rows = medians(
            ROUNDS,
            lambda: measured(folder, "engine", direct),
            lambda: measured(folder, "relay", bare),
            lambda: measured(folder, "door", door),
        )
    print(f"{STREAMS} streams, {EVENTS} events each, one every {STEP_SECONDS * 1000:g} ms")
    print(f"{'':12}{'wall':>10}{'cpu':>10}{'us a chunk':>14}{'x relay':>10}")
    for row in rows:
        print(
            f"{row.what:12}{row.wall:>8.2f} s{row.cpu:>8.2f} s{row.chunk:>14.1f}"
            f"{row.chunk / rows[1].chunk:>10.2f}"
        )


if __name__ == "__main__":
    serve(*sys.argv[1:]) if len(sys.argv) > 1 else main()
