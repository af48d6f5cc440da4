"""Changing what a running server serves: checked as `serve` checks before it starts, then asked of the server.

Every refusal is the server's own, or the preflight's; nothing is changed then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.serve.client import Running
from adapterhub.serve.naming import public_names
from adapterhub.serve.preflight import Problem, attest_overridden, check, refuse
from adapterhub.serve.status import shares
from adapterhub.store import Resolved, Store
from adapterhub.words import short

_MOST_SHARE = 1e6

Remark = Callable[[str], None]
"""Told what a person should know."""


def add(
    store: Store, server: Running, names: Sequence[str], *, allow_mismatch: bool, remark: Remark
) -> list[dict[str, Any]]:
    """Serves more adapters; for each its name, and what it means."""
    resolved = [
        (public_names(name, found), found) for name in names for found in [store.resolve(name)]
    ]
    wanted = {labels[0]: adapter for labels, adapter in resolved}
    _check(store, server, wanted, allow_mismatch, remark)
    return [
        said(server.change("add", name=labels[0], targets=[{"digest": adapter.digest}]))
        for labels, adapter in resolved
    ]


def update(
    store: Store,
    server: Running,
    name: str,
    to: Sequence[str],
    *,
    allow_mismatch: bool,
    remark: Remark,
) -> dict[str, Any]:
    """Lets a served name mean `to` (ADAPTER or ADAPTER=SHARE, several split it); without any, what the store means by it."""
    wanted = [share_of(word) for word in to or [name]]
    resolved = [(word, store.resolve(word), share) for word, share in wanted]
    _check(store, server, {word: adapter for word, adapter, _ in resolved}, allow_mismatch, remark)
    targets = [{"digest": adapter.digest, "weight": share} for _, adapter, share in resolved]
    return said(server.change("update", name=name, targets=targets))


def rollback(server: Running, name: str) -> dict[str, Any]:
    """Lets a served name mean what it meant before."""
    return said(server.change("rollback", name=name))


def remove(server: Running, name: str) -> dict[str, Any]:
    """Stops serving a name. Requests under way are answered to their end."""
    return said(server.change("remove", name=name))


def said(alias: Mapping[str, Any]) -> dict[str, Any]:
    """What a name means now, in words."""
    return {
        "name": alias["name"],
        "versions": [
            short(target["digest"]) + ("" if share == "all" else f" {share}")
            for target, share in zip(alias["targets"], shares(alias), strict=True)
        ],
    }


def share_of(word: str) -> tuple[str, float]:
    """`tone:v2=0.9` -> ("tone:v2", 0.9); without a share, 1."""
    name, separator, share = word.partition("=")
    try:
        weight = float(share) if separator else 1.0
    except ValueError:
        weight = -1.0
    if not 0 < weight <= _MOST_SHARE:
        raise UsageError(
            f"'{word}' has no share between 0 and {_MOST_SHARE:,.0f}.",
            hint="--to tone:v1=0.9 --to tone:v2=0.1",
        )
    return name, weight


def _check(
    store: Store,
    server: Running,
    adapters: Mapping[str, Resolved],
    allow_mismatch: bool,
    remark: Remark,
) -> None:
    """Everything that `serve` checks before it starts, and that the server has room for the rank."""
    status = server.status()
    problems: list[Problem] = []
    overridden = []
    for label, adapter in adapters.items():
        base = store.base_for(adapter, status["base"]["path"])
        found = check(store, adapter, label, base, status["extra"])
        problems += found.problems
        if found.rank > status["max_lora_rank"]:
            raise IncompatibleError(
                f"{label} has rank {found.rank}; this server was started for {status['max_lora_rank']} at most.",
                hint=f"Start the server again with --max-rank {found.rank}.",
            )
        for told in found.remarks:
            remark(f"{label}: {told}")
        overridden.append((adapter.digest, base, found.misfits))
    refuse(problems, list(adapters), allow_mismatch=allow_mismatch)
    for digest, base, reasons in overridden:
        attest_overridden(store, digest, base, reasons)
