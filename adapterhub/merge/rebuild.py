"""A merged adapter derived again from its attested recipe: is it what it says it is?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adapterhub.errors import NotFoundError, UnsupportedError
from adapterhub.formats.peft import WEIGHTS_NAME, read_facts, scan_values
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.lora.adapter import Adapter, opened
from adapterhub.lora.inner import gram
from adapterhub.merge.done import recipes_of
from adapterhub.merge.parents import opened_parents
from adapterhub.merge.recipe import parse_recipe
from adapterhub.merge.run import ProgressFactory, Resources, compute
from adapterhub.merge.stages import AdapterStage
from adapterhub.same_base import shared_base
from adapterhub.store import Resolved, Store
from adapterhub.words import short


@dataclass(frozen=True)
class Rebuilt:
    """The content digest it has, and the one the recipe gives now."""

    content: str
    rebuilt: str
    engine: str
    """What made it."""
    why: str

    @property
    def same(self) -> bool:
        return self.content == self.rebuilt


def rebuild(
    store: Store,
    merged: Resolved,
    *,
    base: str | None,
    progress: ProgressFactory,
    resources: Resources,
    warn: Callable[[str], None],
) -> Rebuilt:
    """Runs the recipe of `merged` again and compares the tensors; the store stays as it is.

    UnsupportedError where it wasn't merged here, NotFoundError where a parent is gone, and what a merge raises.
    """
    known = recipes_of(store, merged.digest)
    if not known:
        raise UnsupportedError(
            f"{merged.label} has no recipe: it wasn't merged by adapterhub.",
            hint=f"adapterhub show {merged.label}",
        )
    recipe = parse_recipe(known[0])
    parents = [_parent(store, merged, digest) for digest in recipe.parents]
    shared = shared_base(store, parents, allow_mismatch=True)  # it was allowed then
    engine = _engine(store, merged.digest)
    with store.tensors(merged, verify=True):
        pass  # what is compared are the bytes that are there, not what the manifest says of them
    with (
        store.leases.held("merge", [merged.digest, *recipe.parents], f"rebuilding {merged.label}"),
        tempfile.TemporaryDirectory() as scratch,
        opened(store, parents, "merged", plain=False) as adapters,
        opened_parents(
            store, adapters, recipe, base, torch.device("cpu"), allow_mismatch=True
        ) as start,
    ):
        folder = Path(scratch)
        compute(folder, start, adapters, shared, resources, progress, warn)
        with TensorFile(folder / WEIGHTS_NAME) as file:
            facts = read_facts(folder / CONFIG_NAME, file)
            content, _ = scan_values(facts, file)
            apart = 0.0
            if content != merged.manifest.content:
                with store.tensors(merged) as stored:
                    apart = _apart(
                        Adapter(merged, store.facts(merged), stored), Adapter(merged, facts, file)
                    )
        changed_base = recipe.base is not None and start.recipe.base != recipe.base
    here = f"adapterhub {version('adapterhub')}, torch {version('torch')}, cpu"
    why = f"the tensors differ: the deltas by {apart:.1g} of their norm"
    if changed_base:
        why += "; another base was given than the one it was merged on"
    elif engine != here:
        why += f"; it was made by {engine}; here is {here}, which may round otherwise"
    else:
        why += "; the versions are the same, so up to 1e-6 is another type of processor, and more is another merge"
    return Rebuilt(merged.manifest.content, content, engine, why)


def _apart(one: Adapter, other: Adapter) -> float:
    """||ΔW - ΔW'||/||ΔW|| over all modules."""
    stages = [AdapterStage(adapter, torch.device("cpu")) for adapter in (one, other)]
    inner = torch.zeros(2, 2, dtype=torch.float64)
    for name in sorted({*one.modules, *other.modules}):
        inner += gram([stage.open(name) for stage in stages])
    squared = inner[0, 0] - 2 * inner[0, 1] + inner[1, 1]
    return float((squared.clamp(min=0) / inner[0, 0].clamp(min=1e-300)).sqrt())


def _parent(store: Store, merged: Resolved, digest: str) -> Resolved:
    try:
        return store.resolve(f"@{digest.removeprefix('sha256:')}")
    except NotFoundError as error:
        raise NotFoundError(
            f"A parent of {merged.label} is not in the store: {short(digest)}.",
            why=error.what,
            hint=f"adapterhub lineage {merged.label}",
        ) from None


def _engine(store: Store, digest: str) -> str:
    """Which versions made it, in words."""
    found: dict[str, Any] = {}
    for attestation in store.attestations(digest):
        engine = attestation.body.get("engine")
        if attestation.type == "provenance" and isinstance(engine, dict):
            found = engine
    versions = [f"{name} {found.get(name, '?')}" for name in ("adapterhub", "torch")]
    return ", ".join([*versions, str(found.get("device", "cpu"))])
