"""What the owner of a running server may ask of it: who is served, add, remove, move a name, load anew.

It listens on a Unix socket in a folder that only its user can open, beside the door and over the same table and pool. Below
`/v1` it answers as the door does, for every adapter and without limits: `server chat` and `server verify` go that way.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from adapterhub.errors import AdapterHubError
from adapterhub.runs import Run
from adapterhub.serve.door.metrics import Metrics
from adapterhub.serve.door.pool import Pool
from adapterhub.serve.door.refusal import Refused, busy
from adapterhub.serve.door.table import Alias, Table, Target
from adapterhub.serve.plan import Plan
from adapterhub.serve.supervise import Supervisor
from adapterhub.serve.vllm import Protection
from adapterhub.store import Store
from adapterhub.words import short

RELOAD_SECONDS = 10.0
"""How long `reload` waits for a version that others use."""


@dataclass(frozen=True)
class Traffic:
    """What the door counts, and what is counted of those who come through the control socket; and what guards both."""

    door: Metrics
    own: Metrics
    protection: Protection
    keyed: bool


class Control:
    """The changes of a running server. Each is done whole or not at all, and recorded in the run's events."""

    def __init__(
        self,
        state: Callable[[], str],
        store: Store,
        plan: Plan,
        table: Table,
        pool: Pool,
        supervisor: Supervisor,
        run: Run,
        leases: ExitStack,
        traffic: Traffic,
    ) -> None:
        self._state = state
        self._store = store
        self._plan = plan
        self._table = table
        self._pool = pool
        self._supervisor = supervisor
        self._run = run
        self._leases = leases
        self._traffic = traffic
        self._leased = {adapter.digest for adapter in plan.adapters}
        self._dropping: set[asyncio.Task[None]] = set()
        self._started = time.monotonic()
        self._one_at_a_time = asyncio.Lock()
        """Changes are judged and done in the order they came, loading included."""

    def status(self) -> dict[str, Any]:
        """Everything there is to know about the server, as data."""
        held = {one.digest: one for one in self._pool.held}
        server = self._supervisor.server
        swaps = self._traffic.door.swaps()
        never = {"loads": 0, "evictions": 0}
        return {
            "run": self._run.id,
            "state": self._state(),
            "url": self._plan.url,
            "pid": os.getpid(),
            "engine_pid": server.pid if server else None,
            "restarts": self._supervisor.restarts,
            "seconds": round(time.monotonic() - self._started, 1),
            "base": {"name": self._table.base, "path": str(self._plan.base.path)},
            "dtype": self._plan.dtype,
            "extra": list(self._plan.extra),
            "max_lora_rank": self._plan.max_lora_rank,
            "loaded": sum(one.ready for one in held.values()),
            "capacity": self._pool.capacity,
            "protection": self._traffic.protection,
            "keyed": self._traffic.keyed,
            **self._traffic.door.now(),
            "traffic": self._traffic.door.traffic(),
            "own_traffic": self._traffic.own.traffic(),
            "aliases": [
                {
                    "name": alias.name,
                    "targets": [_target(target) for target in alias.targets],
                    "earlier": [[_target(t) for t in targets] for targets in alias.earlier],
                }
                for alias in self._table.aliases
            ],
            "versions": {
                digest: {
                    "loaded": digest in held and held[digest].ready,
                    "requests": held[digest].users if digest in held else 0,
                    "pinned": digest in held and held[digest].pinned,
                    **swaps.get(short(digest), never),
                }
                for digest in sorted(self._table.digests())
            },
        }

    async def set(self, name: str, targets: list[Target], *, new: bool) -> Alias:
        """Makes `name` mean `targets`, once every one of them is loaded; requests under way keep what they began with.

        Raises:
            Refused: the name is taken (`new`) or unknown, or the engine won't load a version.
        """
        async with self._one_at_a_time:
            return await self._set(name, targets, new=new)

    async def _set(self, name: str, targets: list[Target], *, new: bool) -> Alias:
        if name == self._table.base:
            raise Refused(409, f"'{name}' is the base of this server.", kind="conflict")
        known = name in {alias.name for alias in self._table.aliases}
        if new and known:
            raise Refused(
                409, f"'{name}' is served already; `server update` moves it.", kind="conflict"
            )
        if not new and not known:
            raise self._unknown(name)
        if not new:
            _require_movable(name)
        for target in targets:
            await self._lease(target.digest)
            await self._pool.load(target.digest)
        alias = self._table.set(name, targets)
        self._run.event(
            "added" if new else "updated", name=name, targets=list(map(_target, targets))
        )
        return alias

    async def rollback(self, name: str) -> Alias:
        """Makes `name` mean what it meant before. Raises Refused where there is no such thing."""
        async with self._one_at_a_time:
            return self._rollback(name)

    def _rollback(self, name: str) -> Alias:
        if name not in {alias.name for alias in self._table.aliases}:
            raise self._unknown(name)
        alias = self._table.rollback(name)
        if alias is None:
            raise Refused(
                409, f"'{name}' has nothing earlier to go back to on this server.", kind="conflict"
            )
        self._run.event("rolled_back", name=name, targets=list(map(_target, alias.targets)))
        return alias

    async def remove(self, name: str) -> Alias:
        """Takes a name away. Its versions leave the engine once their last request is answered."""
        async with self._one_at_a_time:
            return self._remove(name)

    def _remove(self, name: str) -> Alias:
        if name not in {alias.name for alias in self._table.aliases}:
            raise self._unknown(name)
        gone = self._table.remove(name)
        for digest in gone.digests - self._table.digests():
            task = asyncio.create_task(self._pool.drop(digest))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)
        self._run.event("removed", name=name)
        return gone

    async def reload(self, digest: str) -> None:
        """Takes a version out of the engine and loads it again: what `verify` does to others' neighbours.

        Raises Refused: it isn't served, or is in use for too long.
        """
        if digest not in self._table.digests():
            raise Refused(404, "This server doesn't serve that version.", kind="not_found")
        pinned = any(held.digest == digest and held.pinned for held in self._pool.held)
        try:
            async with asyncio.timeout(RELOAD_SECONDS):
                await self._pool.drop(digest)
        except TimeoutError:
            raise busy("That version is in use all the time.", code="in_use") from None
        await (self._pool.pin if pinned else self._pool.load)(digest)

    async def _lease(self, digest: str) -> None:
        """Keeps a version from being collected for as long as the server runs."""
        if digest not in self._leased:
            held = self._store.leases.held("serve", [digest], f"at {self._plan.url}")
            await asyncio.to_thread(self._leases.enter_context, held)
            self._leased.add(digest)

    def _unknown(self, name: str) -> Refused:
        if name == self._table.base:
            return Refused(
                409, f"'{name}' is the base of this server, which stays.", kind="conflict"
            )
        near = self._table.like(name)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return Refused(404, f"This server doesn't serve '{name}'.{hint}", kind="not_found")


def control_app(control: Control, door: ASGIApp) -> Starlette:
    """The routes of `control`, and everything that `door` answers."""

    async def status(request: Request) -> Response:
        return JSONResponse(control.status())

    async def add(body: dict[str, Any]) -> Alias:
        return await control.set(body["name"], _targets(body), new=True)

    async def update(body: dict[str, Any]) -> Alias:
        return await control.set(body["name"], _targets(body), new=False)

    async def rollback(body: dict[str, Any]) -> Alias:
        return await control.rollback(body["name"])

    async def remove(body: dict[str, Any]) -> Alias:
        return await control.remove(body["name"])

    async def reload(body: dict[str, Any]) -> None:
        await control.reload(body["digest"])

    changes: dict[str, Callable[[dict[str, Any]], Awaitable[Alias | None]]] = {
        "add": add,
        "update": update,
        "rollback": rollback,
        "remove": remove,
        "reload": reload,
    }
    return Starlette(
        routes=[
            Route("/control/status", status),
            *(
                Route(f"/control/{name}", _change(change), methods=["POST"])
                for name, change in changes.items()
            ),
            Mount("/", door),
        ]
    )


def _change(
    change: Callable[[dict[str, Any]], Awaitable[Alias | None]],
) -> Callable[[Request], Awaitable[Response]]:
    """A route that does one change and answers with the alias as it is afterwards."""

    async def answer(request: Request) -> Response:
        try:
            alias = await change(json.loads(await request.body()))
        except Refused as refused:
            return refused.as_response()
        except AdapterHubError as error:
            what = f"{error.what} {error.why}".strip()
            return Refused(500, what, kind="server_error").as_response()
        if alias is None:
            return JSONResponse({})
        return JSONResponse(
            {"name": alias.name, "targets": [_target(target) for target in alias.targets]}
        )

    return answer


def _require_movable(name: str) -> None:
    """Refused where the name says which version it means."""
    if "@" in name:
        raise Refused(409, f"'{name}' means this version for ever.", kind="conflict")


def _targets(body: dict[str, Any]) -> list[Target]:
    return [Target(one["digest"], float(one.get("weight", 1))) for one in body["targets"]]


def _target(target: Target) -> dict[str, Any]:
    return {"digest": target.digest, "weight": target.weight}
