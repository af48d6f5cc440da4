"""`export` as one call: one adapter, or several merged on the way, baked into their base."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from adapterhub.base import BaseModel
from adapterhub.export.bake import Listener, bake
from adapterhub.export.beside import beside
from adapterhub.export.checked import EVENT, Checks, Depth, attest, warning
from adapterhub.export.estimate import base_of
from adapterhub.export.form import form_of
from adapterhub.export.layout import layouts
from adapterhub.export.partial import occupied, partial_path
from adapterhub.export.plan import check_target, make_plan
from adapterhub.export.stream import Budget
from adapterhub.export.views import Chosen, choose_view, opened_view
from adapterhub.export.whole import Seen, changed_by, whole_shapes
from adapterhub.formats.peft import require_plain
from adapterhub.lora.adapter import opened
from adapterhub.lora.memory import Memory
from adapterhub.merge.device import find_device
from adapterhub.merge.engine import Engine
from adapterhub.merge.parents import stages_on
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.run import DEFAULTS, Resources, prepared
from adapterhub.merge.stages import delta_of
from adapterhub.runs import running
from adapterhub.same_base import shared_base
from adapterhub.store import Resolved, Store
from adapterhub.words import counted

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
    verified: Mapping[str, Any]
    """What was checked and found (`adapterhub.export.checked`); empty where nothing was."""
    view: Chosen
    """As what the base's weights were seen."""
    quantized: Mapping[str, Any] | None
    """What was done to the result; None where nothing was."""


def export(
    store: Store,
    parents: Sequence[Resolved],
    recipe: Recipe,
    folder: Path,
    *,
    base: str | None,
    base_view: str | None = None,
    quantize: Literal["nf4"] | None = None,
    progress: ProgressFactory,
    transfer: ProgressFactory | None = None,
    overwrite: bool = False,
    resume: bool = False,
    verify: Depth = "weights",
    allow_mismatch: bool = False,
    resources: Resources = DEFAULTS,
    note: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Writes base + merged delta, untruncated, as a model folder.

    Args:
        base_view: as what the base's weights are seen, as `views.choose_view` takes it.
        quantize: writes the sums in 4 bits.
        transfer: shows the bytes written, told one by one; as `progress` where it is left out.
        resume: goes on with what an earlier export of the same left.
        verify: how much of the model is checked before it gets its name.
        resources: of which `memory` is for the blocks of rows, all workers together.

    Raises IncompatibleError, UnsupportedError, ConflictError, OutOfSpaceError, and VerificationError where what was
    written is not what was meant; there is then nothing under the name.
    """
    shared = shared_base(store, parents, allow_mismatch=allow_mismatch)
    for remark in shared.remarks:
        warn(remark)
    model = base_of(store, parents, base)
    view = choose_view(store, parents, model, base_view)
    if view.remark is not None:
        warn(view.remark)
    lease = store.leases.held("export", [parent.digest for parent in parents], f"to {folder}")
    device = find_device(resources.device)
    resources = resources.on(device)
    with (
        lease,
        opened(store, parents, "exported", plain=False) as adapters,
        opened_view(view, model, device) as weights,
    ):
        for adapter in adapters:
            require_plain(adapter.facts, adapter.label, "exported", dora=True, whole=True)
        shapes = whole_shapes(adapters, recipe)
        verdicts = {one.resolved.digest: store.fit(one.resolved, model) for one in adapters}
        plan = make_plan(adapters, model, verdicts, shapes, allow_mismatch=allow_mismatch)
        stages, whole = stages_on(adapters, recipe, weights, verdicts)
        for remark in recipe.idle_rules({n for stage in stages.values() for n in stage.shapes}):
            warn(remark)
        form = form_of(layouts(plan, changed_by(weights, plan.replaced)), model, quantize)
        around = beside(model, parents, store.blobs.path, plan.replaced.vocabulary)
        for remark in around.remarks:
            warn(remark)
        size = sum(shard.size for shard in form.shards)
        check_target(
            folder,
            size + around.size,
            overwrite,
            keep=(model.path, store.home),
            there=occupied(partial_path(folder, overwrite=overwrite)),
        )
        record = {
            **_record(store, parents, recipe, model),
            "base_view": view.record(),
            "quantize": form.record,
            "allowed_mismatch": [*shared.overridden, *plan.overridden],
        }
        with running(store.runs_dir, "export", {"folder": str(folder), **record}) as run:
            engine = Engine(recipe, stages, resources.workers, Memory(resources.memory))
            result = prepared(engine, progress)

            seen = Seen(weights, plan.replaced, lambda name: whole[name].values(result))
            checks = Checks(recipe, adapters, result, store.view, verify, resources.workers, seen)
            report: dict[str, Any] = {}

            def check(written: Path) -> Mapping[str, Any]:
                if verify == "none" or form.record is not None:
                    return {}
                bar.update(f"Verifying {folder.name}")
                report.update(checks.run(plan, written))
                run.event("verified", bake_loss=report["bake_loss"]["total"])
                return {"verified": report}

            shards_kept = 0

            def finished(name: str, kept: bool) -> None:
                nonlocal shards_kept
                shards_kept += kept
                run.event("shard", name=name, of=len(form.shards), kept=kept)

            with (transfer or progress)(f"Writing {folder.name}", size) as bar:
                bake(
                    plan,
                    form.shards,
                    partial(delta_of, result),
                    folder,
                    files=around.files,
                    record=record,
                    budget=Budget(resources.memory, resources.workers or os.cpu_count() or 1),
                    overwrite=overwrite,
                    resume=resume,
                    write=form.writer(seen),
                    configuration=form.configuration,
                    listener=Listener(bar.advance, finished, warn),
                    check=check,
                )
    if shards_kept:
        note(
            f"{shards_kept} of {counted(len(form.shards), 'shard')} were there already, and were kept"
        )
    if report:
        told = warning(report, [parent.label for parent in parents], model.label)
        if told is not None:
            warn(told)
        if len(parents) == 1:
            attest(store, parents[0].digest, record, report, warn)
    return Exported(
        folder,
        model,
        len(plan.targets.keys() | plan.replaced.names.keys()),
        len(plan.tensors),
        size,
        plan.untied,
        report,
        view,
        form.record,
    )


def _record(
    store: Store, parents: Sequence[Resolved], recipe: Recipe, base: BaseModel
) -> dict[str, Any]:
    """What was exported, for adapterhub.json."""
    return {
        "schema": "adapterhub.export/1",
        "base": {"repo": base.repo, "revision": base.revision, "fingerprint": base.fingerprint},
        "adapters": [
            {
                "name": parent.label,
                "digest": parent.digest,
                "attestations": _told(store, parent.digest),
            }
            for parent in parents
        ],
        "recipe": {
            key: value for key, value in recipe.document().items() if key not in ("rank", "dtype")
        },
        "engine": {"adapterhub": version("adapterhub"), "torch": version("torch")},
    }


def _told(store: Store, digest: str) -> list[Mapping[str, Any]]:
    """What is attested of an adapter, but for earlier exports of it."""
    return [one.document for one in store.attestations(digest) if one.body.get("event") != EVENT]
