"""`merge` as one call: check the parents, run the recipe, and put the result with its recipe into the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapterhub.errors import ConflictError
from adapterhub.lora.adapter import Adapter, opened
from adapterhub.manifest import AttestationType, Manifest
from adapterhub.merge.engine import Engine, MergedAdapter
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.result import parents_dtype, write_folder
from adapterhub.names import Name, parse_name, slug
from adapterhub.runs import Run, running
from adapterhub.same_base import SharedBase, shared_base
from adapterhub.store import Added, Resolved, Store
from adapterhub.words import short

ProgressFactory = Callable[[str, float], AbstractContextManager[Any]]


@dataclass(frozen=True)
class MergeOutcome:
    """What a merge gave: the adapter in the store and what the rank cost. `created` is False when it was there already."""

    name: Name
    digest: str
    manifest: Manifest
    created: bool
    report: dict[str, Any]


def default_name(parents: Sequence[Resolved], method: str) -> Name:
    """A name made of the parents and the method, in their namespace if they share one."""
    parts = [(parent.name.name if parent.name else short(parent.digest, 8)) for parent in parents]
    namespaces = {parent.name.namespace if parent.name else "" for parent in parents}
    namespace = namespaces.pop() if len(namespaces) == 1 else ""
    return Name(namespace, slug("-".join([*parts, method])))


def merge(
    store: Store,
    parents: Sequence[Resolved],
    recipe: Recipe,
    *,
    name: str | None,
    progress: ProgressFactory,
    move: bool = False,
    allow_mismatch: bool = False,
    workers: int | None = None,
    note: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> MergeOutcome:
    """Merges `parents` by `recipe` into a new adapter of the store.

    Raises IncompatibleError for known different bases (unless allowed), UnsupportedError for what a sum of deltas would
    drop, ConflictError for a taken name. The store is then as it was.
    """
    target = parse_name(name) if name is not None else default_name(parents, recipe.method)
    base = shared_base(store, parents, allow_mismatch=allow_mismatch)
    for remark in base.remarks:
        warn(remark)
    there = _already_there(store, target, recipe, move)
    if there is not None:
        return there
    record = {"name": str(target), **recipe.document()}
    added: Added | None = None
    try:
        with (
            store.leases.held("merge", [parent.digest for parent in parents], f"into {target}"),
            running(store.runs_dir, "merge", record) as run,
            opened(store, parents, "merged") as adapters,
            _scratch(run) as folder,
        ):
            dtype = recipe.dtype or parents_dtype(adapters)
            _warn_of_precision(adapters, dtype, warn)
            merged = _compute(recipe, adapters, workers, progress)
            write_folder(folder, merged, adapters, base.claim, dtype)
            report = _report(merged)
            added = store.add_folder(
                folder,
                name=str(target),
                move=move,
                provenance=_provenance(recipe, parents, base, report),
                attestations=_inherited(base),
                op="merge",
                why=f"merge {' '.join(parent.label for parent in parents)} --method {recipe.method}",
                note=note,
            )
            run.event(
                "stored", name=str(target), digest=added.digest, energy_kept=merged.energy_kept
            )
    except KeyboardInterrupt:
        if added is None:
            raise
        raise KeyboardInterrupt(f"{target} was in the store already, and stays.") from None
    return MergeOutcome(target, added.digest, added.manifest, added.created, report)


@contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """A folder for the result until it is in the store."""
    folder = run.path / "adapter"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _compute(
    recipe: Recipe, adapters: list[Adapter], workers: int | None, progress: ProgressFactory
) -> MergedAdapter:
    sizing = Engine(recipe, adapters)
    with progress(f"Merging ({recipe.method})", sizing.steps) as bar:
        engine = Engine(recipe, adapters, workers, bar.advance)
        return engine.adapter(engine.deltas())


def _already_there(store: Store, target: Name, recipe: Recipe, move: bool) -> MergeOutcome | None:
    if store.refs.read(target) is None or move:
        return None
    with (
        store.writing(),
        store.refs.changing(),
    ):  # what a crash left is ended, and durable, before it is told of
        digest = store.refs.read(target)
    if digest is None:
        return None
    for attestation in store.attestations(digest):
        if attestation.type == "provenance" and attestation.body.get("recipe") == recipe.document():
            report = dict(attestation.body.get("report", {}))
            return MergeOutcome(target, digest, store.manifest(digest), False, report)
    raise ConflictError(
        f"The name {target} is taken by another adapter ({short(digest)}).",
        hint=f"Choose another with --name, or move it: --move (the old one stays as @{short(digest)})",
    )


def _report(merged: MergedAdapter) -> dict[str, Any]:
    return {
        "rank": merged.rank,
        "energy_kept": round(merged.energy_kept, 6),
        "error": round(merged.error, 6),
        "modules": {
            report.module: {"rank": report.rank, "energy_kept": round(report.share, 6)}
            for report in merged.modules
        },
    }


def _provenance(
    recipe: Recipe, parents: Sequence[Resolved], base: SharedBase, report: dict[str, Any]
) -> dict[str, Any]:
    return {
        "event": "merged",
        "recipe": recipe.document(),
        "parents": [{"digest": parent.digest, "name": parent.label} for parent in parents],
        "report": report,
        "allowed_mismatch": list(base.overridden),
        "engine": {"adapterhub": version("adapterhub"), "torch": version("torch")},
    }


def _inherited(base: SharedBase) -> list[tuple[AttestationType, dict[str, Any]]]:
    if base.fingerprint is None:
        return []
    body = {
        "repo": base.claim.repo,
        "revision": base.claim.revision,
        "fingerprint": base.fingerprint,
        "how": "inherited from the parents",
    }
    return [("base", body)]


def _warn_of_precision(adapters: list[Adapter], dtype: str, warn: Callable[[str], None]) -> None:
    """Says when the result can't hold what the parents hold."""
    for adapter in adapters:
        if adapter.facts.dtype == "float64" or (
            adapter.facts.dtype in ("float32", "mixed") and dtype != "float32"
        ):
            warn(
                f"{adapter.label} is {adapter.facts.dtype}; the result is rounded to {dtype} once, at the end"
            )
