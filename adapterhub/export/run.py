"""`export` as one call: one adapter, or several merged on the way, baked into their base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel
from adapterhub.export.bake import bake
from adapterhub.export.plan import check_target, make_plan
from adapterhub.formats.peft import require_plain
from adapterhub.lora.adapter import opened
from adapterhub.lora.memory import Memory
from adapterhub.lora.parallel import one_thread
from adapterhub.merge.device import find_device
from adapterhub.merge.engine import Engine
from adapterhub.merge.parents import parent_stages
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.run import DEFAULTS, Resources, prepared
from adapterhub.merge.stages import delta_of
from adapterhub.merge.weights import opened_base
from adapterhub.runs import running
from adapterhub.same_base import shared_base
from adapterhub.store import Resolved, Store

ProgressFactory = Callable[[str, float | None], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Exported:
    """What was written where."""

    folder: Path
    base: BaseModel
    tensors_changed: int
    tensors_total: int
    size: int
    untied: bool


def export(
    store: Store,
    parents: Sequence[Resolved],
    recipe: Recipe,
    folder: Path,
    *,
    base: str | None,
    progress: ProgressFactory,
    overwrite: bool = False,
    allow_mismatch: bool = False,
    resources: Resources = DEFAULTS,
    warn: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Writes base + merged delta, untruncated, as a model folder.

    Raises IncompatibleError, UnsupportedError, ConflictError, OutOfSpaceError; there is then nothing under the name.
    """
    shared = shared_base(store, parents, allow_mismatch=allow_mismatch)
    for remark in shared.remarks:
        warn(remark)
    # The first that says which base it belongs to speaks for all: `shared_base` has checked that none contradicts.
    speaker = next((parent for parent in parents if parent.manifest.base.repo), parents[0])
    model = store.base_for(speaker, base)
    lease = store.leases.held("export", [parent.digest for parent in parents], f"to {folder}")
    device = find_device(resources.device)
    resources = resources.on(device)
    with (
        lease,
        opened(store, parents, "exported", plain=False) as adapters,
        opened_base(model, device) as weights,
    ):
        for adapter in adapters:
            require_plain(adapter.facts, adapter.label, "exported", dora=True)
        plan = make_plan(store, adapters, model, allow_mismatch=allow_mismatch)
        check_target(folder, plan.size, overwrite, keep=(model.path, store.home))
        overridden = [*shared.overridden, *plan.overridden]
        record = {
            "schema": "adapterhub.export/1",
            "base": {
                "repo": model.repo,
                "revision": model.revision,
                "fingerprint": model.fingerprint,
            },
            "adapters": [{"name": parent.label, "digest": parent.digest} for parent in parents],
            "recipe": {
                key: value
                for key, value in recipe.document().items()
                if key not in ("rank", "dtype")
            },
            "allowed_mismatch": overridden,
            "engine": {"adapterhub": version("adapterhub"), "torch": version("torch")},
        }
        with running(store.runs_dir, "export", {"folder": str(folder), **record}):
            dora = {
                a.resolved.digest: store.fit(a.resolved, model)
                for a in adapters
                if a.facts.kind == "dora"
            }
            stages = parent_stages(adapters, weights.device, weights, dora=dora)
            for remark in recipe.idle_rules({n for stage in stages.values() for n in stage.shapes}):
                warn(remark)
            engine = Engine(recipe, stages, resources.workers, Memory(resources.memory))
            result = prepared(engine, progress)
            with progress(f"Writing {folder.name} (MB)", plan.size / 1e6) as bar, one_thread():
                bake(
                    plan,
                    partial(delta_of, result),
                    folder,
                    record=record,
                    overwrite=overwrite,
                    advance=lambda size: bar.advance(size / 1e6),
                )
    return Exported(folder, model, len(plan.targets), len(model.tensors), plan.size, plan.untied)
