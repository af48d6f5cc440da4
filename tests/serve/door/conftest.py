"""A door between real sockets: a client on TCP, the stand-in for vLLM on a Unix socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from adapterhub.serve.door.app import door
from adapterhub.serve.door.keys import Keys
from adapterhub.serve.door.metrics import Metrics
from adapterhub.serve.door.pool import Pool
from adapterhub.serve.door.settings import DoorSettings
from adapterhub.serve.door.table import Table, Target
from adapterhub.serve.door.wire import Wire
from tests.serve.door.standing_in import BASE, Engine, listening

TONE, TERMS, OTHER = (f"sha256:{digit * 64}" for digit in "abc")


@dataclass
class House:
    """Everything around one door. `client` asks it; `engine` is what it asks."""

    client: httpx.AsyncClient
    engine: Engine
    table: Table
    pool: Pool
    app: Starlette

    async def ask(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        """POSTs JSON; headers go under `headers`."""
        headers = fields.pop("headers", None)
        return await self.client.post(path, json=fields, headers=headers)

    async def events(self, **fields: Any) -> list[Any]:
        """The events of a streamed completion, parsed."""
        answer = await self.ask(stream=True, **fields)
        assert answer.status_code == 200, answer.text
        lines = answer.text.split("\n\n")
        assert lines[-1] == ""
        assert all(line.startswith("data: ") for line in lines[:-1])
        texts = [line.removeprefix("data: ") for line in lines[:-1]]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]

    async def metric(self, name: str, headers: dict[str, str] | None = None) -> float:
        """The value of one series, labels and all; 0 where it isn't there."""
        text = (await self.client.get("/metrics", headers=headers)).text
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
        return float(values[0]) if values else 0.0


Opener = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    """opened(keys=, capacity=, **limits of DoorSettings): a house with support/tone and legal/terms in its table."""

    @asynccontextmanager
    async def open_door(
        keys: Keys | None = None, capacity: int = 4, **limits: Any
    ) -> AsyncIterator[House]:
        engine, table, metrics = Engine(), Table(BASE, started=7), Metrics()
        table.set("support/tone", [Target(TONE)])
        table.set("legal/terms", [Target(TERMS)])
        pool = Pool(engine, lambda digest: Path(digest[-4:]), capacity, BASE, metrics)
        socket = str(tmp_path / "vllm.sock")
        async with (
            listening(engine.app(), uds=socket),
            httpx.AsyncClient(transport=Wire(socket), base_url="http://vllm") as upstream,
        ):
            app = door(
                table, pool, upstream, keys or Keys.load(None), metrics, DoorSettings(**limits)
            )
            async with (
                listening(app, port=0) as port,
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
            ):
                yield House(client, engine, table, pool, app)
                engine.go.set()

    return open_door
