"""`export` as one call: one adapter, or several merged on the way, baked into their base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel
from adapterhub.export.bake import bake
from adapterhub.export.plan import check_target, make_plan
from adapterhub.lora.adapter import opened
from adapterhub.merge.engine import Engine
from adapterhub.merge.recipe import Recipe
from adapterhub.runs import running
from adapterhub.same_base import shared_base
from adapterhub.store import Resolved, Store

ProgressFactory = Callable[[str, float], AbstractContextManager[Any]]


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
    workers: int | None = None,
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
    with lease, opened(store, parents, "exported") as adapters:
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
            sizing = Engine(recipe, adapters)
            with progress("Preparing the deltas", sizing.preparing_steps) as bar:
                deltas = Engine(recipe, adapters, workers, bar.advance).deltas()
            with progress(f"Writing {folder.name} (MB)", plan.size / 1e6) as bar:
                bake(
                    plan,
                    deltas,
                    folder,
                    record=record,
                    overwrite=overwrite,
                    advance=lambda size: bar.advance(size / 1e6),
                )
    return Exported(folder, model, len(plan.targets), len(model.tensors), plan.size, plan.untied)
