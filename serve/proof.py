"""What `verify` is asked about a server of ours: which names, which folders, and how its neighbours are disturbed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from adapterhub.errors import ExternalToolError, NotFoundError
from adapterhub.serve.client import Running
from adapterhub.serve.naming import version_name
from adapterhub.serve.verify import Report, Served, verify
from adapterhub.store import Store

BUSY = 503


async def prove(store: Store, client: httpx.AsyncClient, tell: Callable[[str], None]) -> Report:
    """Verifies a server before its door opens; `client` speaks with its control routes.

    Raises:
        ExternalToolError: it doesn't answer as it should; every fault is named.
    """
    status = (await client.get("/control/status")).json()
    report = await _verified(store, status, client, [], tell)
    if not report.ok:
        raise ExternalToolError(
            "The server doesn't answer as it should, so its door stays shut.",
            why="\n  ".join(map(str, report.faults)),
            hint="--no-verify opens it all the same; adapterhub server verify  looks again.",
        )
    return report


async def prove_running(
    store: Store, server: Running, names: Sequence[str], tell: Callable[[str], None]
) -> Report:
    """Verifies a running server, all of it or some names; while it asks, it loads a version anew now and then."""
    transport = httpx.AsyncHTTPTransport(uds=str(server.control))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://server", timeout=None
    ) as client:
        return await _verified(store, server.status(), client, names, tell)


async def _verified(
    store: Store,
    status: dict[str, Any],
    client: httpx.AsyncClient,
    names: Sequence[str],
    tell: Callable[[str], None],
) -> Report:
    base = status["base"]
    meant = {
        alias["name"]: [target["digest"] for target in alias["targets"]]
        for alias in status["aliases"]
    }
    if unknown := [name for name in names if name not in meant]:
        raise NotFoundError(
            f"This server doesn't serve {', '.join(unknown)}.",
            hint="`adapterhub server ls` shows what is served.",
        )
    # by version, which means the same from beginning to end whatever happens to the alias meanwhile
    chosen = {
        version_name(name, digest): digest
        for name, digests in meant.items()
        for digest in digests
        if not names or name in names
    }
    served = [
        Served(base["name"], None),
        *(Served(name, store.view(digest)) for name, digest in chosen.items()),
    ]
    return await verify(
        client,
        Path(base["path"]),
        served,
        dtype=status["dtype"],
        churn=_churn(client, list(dict.fromkeys(chosen.values()))) if chosen else None,
        tell=tell,
    )


def _churn(client: httpx.AsyncClient, digests: Sequence[str]) -> Callable[[], Awaitable[None]]:
    """Each call takes the next version out of the engine, as soon as nobody uses it, and loads it again."""
    turn = 0

    async def churn() -> None:
        nonlocal turn
        body = {"digest": digests[turn % len(digests)]}
        answer = await client.post("/control/reload", json=body)
        if answer.status_code != BUSY:  # then others use it all the time, and it stays
            answer.raise_for_status()
        turn += 1

    return churn
