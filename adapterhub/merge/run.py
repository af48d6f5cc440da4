"""`merge` as one call: check the parents, run the recipe, and put the result with its recipe into the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adapterhub.lora.adapter import Adapter, all_modules, opened
from adapterhub.lora.memory import DEFAULT, Memory
from adapterhub.lora.parallel import one_thread
from adapterhub.manifest import AttestationType, Manifest
from adapterhub.merge.device import find_device
from adapterhub.merge.done import find_done, report_of
from adapterhub.merge.engine import Engine
from adapterhub.merge.naming import result_name
from adapterhub.merge.parents import Parents, opened_parents
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.remarks import command_of, lost_parents, strangers
from adapterhub.merge.result import parents_dtype, write_folder
from adapterhub.merge.spool import Spool
from adapterhub.merge.stages import Stage
from adapterhub.names import Name
from adapterhub.runs import Run, running
from adapterhub.same_base import SharedBase, shared_base
from adapterhub.store import Added, Resolved, Store

ProgressFactory = Callable[[str, float | None], AbstractContextManager[Any]]


@dataclass(frozen=True)
class MergeOutcome:
    """What a merge gave: the adapter in the store and what the rank cost. `created` is False when it was there already."""

    name: Name
    digest: str
    manifest: Manifest
    created: bool
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Resources:
    """What a merge may use; the result doesn't depend on it (but for the device)."""

    workers: int | None = None
    memory: int = DEFAULT
    """Bytes of dense deltas held at a time."""
    device: str = "cpu"

    def on(self, device: torch.device) -> Resources:
        """One worker on a GPU, which is parallel by itself."""
        return replace(self, workers=1) if device.type == "cuda" else self


DEFAULTS = Resources()


def merge(
    store: Store,
    parents: Sequence[Resolved],
    recipe: Recipe,
    *,
    name: str | None,
    progress: ProgressFactory,
    move: bool = False,
    redo: bool = False,
    base: str | None = None,
    allow_mismatch: bool = False,
    resources: Resources = DEFAULTS,
    note: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> MergeOutcome:
    """Merges `parents` (those that `recipe` names, in its order) into a new adapter of the store.

    A recipe whose result is in the store already is not run again, unless `redo`. Raises IncompatibleError for known
    different bases (unless allowed), UnsupportedError for what a merge of deltas would drop, ConflictError for a taken
    name. The store is then as it was.
    """
    shared = shared_base(store, parents, allow_mismatch=allow_mismatch)
    for remark in shared.remarks:
        warn(remark)
    result = result_name(store, parents, recipe, name, move=move)
    target = result.name
    record = {"name": str(target), **recipe.document()}
    added: Added | None = None
    why = command_of(recipe, {parent.digest: parent.label for parent in parents})
    device = find_device(resources.device, heavy=_is_heavy(recipe, parents))
    resources = resources.on(device)
    try:
        with (
            store.leases.held("merge", [parent.digest for parent in parents], f"into {target}"),
            opened(store, parents, "merged", plain=False) as adapters,
        ):
            for remark in strangers(adapters):
                warn(remark)
            if is_identity(recipe) and adapters[0].facts.beyond_lora(whole=True):
                note(f"one adapter at weight 1 is that adapter: {target} is {adapters[0].label}")
                return _tagged(store, target, parents[0].digest, recipe, move=move, why=why)
            with opened_parents(
                store, adapters, recipe, base, device, allow_mismatch=allow_mismatch
            ) as start:
                if not move and start.recipe.base is not None:
                    result.require_same(store, start.recipe)
                done = None if redo else find_done(store, start.recipe, preferred=result.there)
                if done is not None:
                    return _tagged(store, target, done, start.recipe, move=move, why=why)
                if start.base is not None:
                    note(f"deltas that need the base's weights are taken on {start.base.label}")
                with running(store.runs_dir, "merge", record) as run, _scratch(run) as folder:
                    report = compute(folder, start, adapters, shared, resources, progress, warn)
                    for remark in lost_parents(recipe, report, [a.label for a in adapters]):
                        warn(remark)
                    added = store.add_folder(
                        folder,
                        name=str(target),
                        move=move or redo,  # the name is free, or this recipe's
                        provenance=_provenance(start, parents, shared, report, device),
                        attestations=_told_base(shared, start),
                        op="merge",
                        why=why,
                        note=note,
                    )
                    run.event(
                        "stored",
                        name=str(target),
                        digest=added.digest,
                        energy_kept=report["energy_kept"],
                    )
    except KeyboardInterrupt:
        if added is None:
            raise
        raise KeyboardInterrupt(f"{target} was in the store already, and stays.") from None
    return MergeOutcome(target, added.digest, added.manifest, added.created, report)


def compute(
    folder: Path,
    start: Parents,
    adapters: Sequence[Adapter],
    shared: SharedBase,
    resources: Resources,
    progress: ProgressFactory,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Runs the recipe and writes the result into the existing `folder`; gives the report."""
    recipe = start.recipe
    dtype = recipe.dtype or parents_dtype(adapters)
    _warn_of_precision(adapters, dtype, warn)
    names = all_modules(adapters)
    for remark in recipe.idle_rules({n for stage in start.stages.values() for n in stage.shapes}):
        warn(remark)
    spooled = folder / "factors"
    engine = Engine(recipe, start.stages, resources.workers, Memory(resources.memory))
    with spooled.open("w+b") as file:
        spool = Spool(file, spooled)
        result = prepared(engine, progress)
        with progress(f"Merging ({recipe.method})", len(names)) as bar:
            engine.progress = bar.advance
            report = engine.factors(result, spool, names)
        with one_thread():
            write_folder(
                folder, spool, report.ranks, start.whole, result, adapters, shared.claim, dtype
            )
    spooled.unlink()
    return report.document()


def prepared(engine: Engine, progress: ProgressFactory) -> Stage:
    """The recipe's last step, with progress where passes over all modules come first."""
    if not engine.looks_at_all_modules:
        return engine.result()
    with progress("Preparing", None) as bar:
        engine.progress = bar.advance
        return engine.result()


def is_identity(recipe: Recipe) -> bool:
    """Whether the result is the one parent as it is: a single step that takes it with weight 1, nothing cut off."""
    step = recipe.steps[-1]
    if len(recipe.steps) > 1 or step.rank is not None or len(step.inputs) > 1:
        return False
    if step.spec.family != "sum":
        return False
    if step.weights not in ((), (1.0,)) or recipe.rank not in ("auto", "full"):
        return False
    if recipe.dtype or recipe.dora:  # somebody wants another form of it
        return False
    return step.method != "negate" and step.parameters.get("lambda", 1.0) == 1.0


@contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """A folder for the result until it is in the store."""
    folder = run.path / "adapter"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tagged(
    store: Store, target: Name, digest: str, recipe: Recipe, *, move: bool, why: str
) -> MergeOutcome:
    """The name given to an adapter that is there already. What a crash left is ended first, and durable.

    StoreDamagedError where its bytes are no longer those that were merged.
    """
    with store.tensors(store.resolve(f"@{digest.removeprefix('sha256:')}"), verify=True):
        pass
    with store.writing(), store.refs.changing() as change:
        change.set(target, digest, op="merge", why=why, move=move)
    report = report_of(store, digest, recipe)
    return MergeOutcome(target, digest, store.manifest(digest), False, report)


def _is_heavy(recipe: Recipe, parents: Sequence[Resolved]) -> bool:
    """Whether a GPU pays: element-wise work on a large model."""
    parameters = sum(p.manifest.lora.parameters for p in parents if p.manifest.lora)
    return parameters > 10**7 and any(s.spec.family == "elementwise" for s in recipe.steps)


def _provenance(
    start: Parents,
    parents: Sequence[Resolved],
    base: SharedBase,
    report: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    return {
        "event": "merged",
        "recipe": start.recipe.document(),
        "parents": [{"digest": parent.digest, "name": parent.label} for parent in parents],
        "report": report,
        "allowed_mismatch": [*base.overridden, *start.overridden],
        "engine": {
            "adapterhub": version("adapterhub"),
            "torch": version("torch"),
            "device": device.type,
        },
    }


def _told_base(shared: SharedBase, start: Parents) -> list[tuple[AttestationType, dict[str, Any]]]:
    """The base of the result: what all parents share, or what deltas were taken on."""
    fingerprint, claim, how = shared.fingerprint, shared.claim, "inherited from the parents"
    if fingerprint is None and start.base is not None and not start.overridden:
        fingerprint, claim = start.base.fingerprint, start.base.claim
        how = "its weights were used in the merge"
    if fingerprint is None:
        return []
    body = {"repo": claim.repo, "revision": claim.revision, "fingerprint": fingerprint, "how": how}
    return [("base", body)]


def _warn_of_precision(
    adapters: Sequence[Adapter], dtype: str, warn: Callable[[str], None]
) -> None:
    """Says when the result can't hold what the parents hold."""
    for adapter in adapters:
        if adapter.facts.dtype == "float64" or (
            adapter.facts.dtype in ("float32", "mixed") and dtype != "float32"
        ):
            warn(
                f"{adapter.label} is {adapter.facts.dtype}; the result is rounded to {dtype} once, at the end"
            )
