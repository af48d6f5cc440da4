"""What an export will do, decided before a byte is written: which tensors change, and whether ties must be cut.

A tied model keeps one matrix for the input embedding and the head. An adapter changes only one of the two, so where
one is touched the exported model must be untied: both are written, and the configuration says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.base import HEAD_NAME, BaseModel, Verdict, claims_differ
from adapterhub.errors import IncompatibleError, OutOfSpaceError, UnsupportedError
from adapterhub.export.estimate import free_space
from adapterhub.export.whole import Replaced, beside_whole, replaced, source_of, written_as
from adapterhub.formats.safetensors import TensorInfo
from adapterhub.fsio import require_free
from adapterhub.lora.adapter import Adapter
from adapterhub.store import misfit
from adapterhub.words import human_size, some

BAKEABLE = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Target:
    """One tensor to change: the module whose delta goes in, the base tensor read, and its orientation."""

    module: str
    source: str
    transposed: bool


@dataclass(frozen=True)
class ExportPlan:
    """`targets` by the name of the tensor written; `untied` adds a head that the base doesn't store."""

    base: BaseModel
    targets: Mapping[str, Target]
    untied: bool
    overridden: tuple[str, ...]
    replaced: Replaced = field(default_factory=Replaced)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of the model to come, with its shape there, as the tensor of the base that it is made of."""
        found = dict(self.base.tensors)
        if self.untied and self.base.embedding is not None:
            twin = self.base.tensors[self.base.embedding]
            found.setdefault(HEAD_NAME, replace(twin, name=HEAD_NAME))
        for name, shape in self.replaced.shapes.items():
            found[name] = replace(found[name], shape=shape)
        return found

    def source_of(self, name: str) -> str:
        """The base's tensor that the tensor written as `name` is made of."""
        return source_of(self.base, name)

    @property
    def configuration(self) -> dict[str, Any]:
        """What config.json says otherwise than the base's."""
        told: dict[str, Any] = {}
        changed = {self.base.embedding, HEAD_NAME} & {*self.targets, *self.replaced.names}
        if self.untied or (
            changed and not self.base.tied
        ):  # some classes tie where nothing is said
            told["tie_word_embeddings"] = False
        if self.replaced.vocabulary is not None:
            told["vocab_size"] = self.replaced.vocabulary
        inner = self.base.text_config
        if deeper := {key: value for key, value in told.items() if key in inner}:
            stated = {k: v for k, v in told.items() if k in self.base.config or k not in inner}
            return {**stated, "text_config": {**inner, **deeper}}
        return told


def make_plan(
    adapters: Sequence[Adapter],
    base: BaseModel,
    verdicts: Mapping[str, Verdict],
    whole: Mapping[str, tuple[int, ...]],
    *,
    allow_mismatch: bool,
) -> ExportPlan:
    """Raises IncompatibleError where an adapter doesn't fit, UnsupportedError for weights that can't be added to.

    Args:
        verdicts: by digest, whether each adapter fits.
        whole: the whole trained tensors of the result by their names in the adapters, and their shapes.
    """
    taken = replaced(base, whole, adapters)
    placement: dict[str, str] = {}
    transposed: set[str] = set()
    overridden: list[str] = []
    for adapter in adapters:
        verdict = verdicts[adapter.resolved.digest]
        beside = beside_whole(adapter, base, verdict, whole)
        overridden += _require_fit(adapter, base, verdict, beside, allow_mismatch=allow_mismatch)
        placement.update({**verdict.placement, **beside})
        transposed |= verdict.transposed
        transposed |= {
            module for module in beside if base.stores_across(module, adapter.modules[module])
        }
    _require_floats(base, [*placement.values(), *taken.sources(base)])
    targets = {
        written_as(base, module, tensor): Target(module, tensor, module in transposed)
        for module, tensor in placement.items()
    }
    untied = base.tied and bool(
        targets.keys() & {base.embedding, HEAD_NAME}
        or HEAD_NAME in taken.names
        or base.embedding in taken.copied
    )
    plan = ExportPlan(base, targets, untied, tuple(overridden), taken.for_both_sides(base, untied))
    _require_known_ties(plan)
    for adapter in adapters:
        _require_one_form(plan, adapter)
    return plan


def _require_fit(
    adapter: Adapter,
    base: BaseModel,
    verdict: Verdict,
    beside: Mapping[str, str],
    *,
    allow_mismatch: bool,
) -> Sequence[str]:
    """What is overridden, in words. `beside` are the modules that fit the whole weights they came with, not the base's."""
    if len(verdict.placement) + len(beside) != verdict.modules_total:
        # No flag helps: a delta without its tensor can't be written, and leaving it out would be silent.
        raise IncompatibleError(
            f"{adapter.label} doesn't fit the base {base.label}.",
            why="; ".join(verdict.reasons),
            hint="Name the base it was trained on: --base FOLDER_OR_REPO",
        )
    foreign = verdict.fingerprint == "different" or (
        verdict.fingerprint == "unknown" and claims_differ(adapter.facts.config.base, base.claim)
    )
    if verdict.ok or (beside and not foreign):
        return ()
    if not allow_mismatch:
        raise misfit(adapter.resolved, base, verdict)
    return verdict.reasons


def _require_known_ties(plan: ExportPlan) -> None:
    """UnsupportedError where a tensor of the vocabulary changes, and it isn't known with which other it is one."""
    base = plan.base
    if not base.tied or base.embedding is not None:
        return
    size = base.config.get("vocab_size", base.text_config.get("vocab_size"))
    touched = [
        name
        for name in (*plan.targets, *plan.replaced.names)
        if plan.tensors[name].shape[0] == size
    ]
    if touched:
        raise UnsupportedError(
            f"{base.label} ties its head to its embedding, and which tensor that is can't be told.",
            why=f"The adapters change {some(touched)}, so both would have to be written apart.",
            hint="Merge adapters that leave embedding and head alone, or serve this one unmerged.",
        )


def _require_one_form(plan: ExportPlan, adapter: Adapter) -> None:
    """Refuses a pair that was trained beside another weight than the one it would be added to."""
    for written, target in plan.targets.items():
        module = adapter.modules.get(target.module)
        if module is None:
            continue
        shape = (module.out_features, module.in_features)
        there = plan.tensors[written].shape
        if there != (shape[::-1] if target.transposed else shape):
            raise IncompatibleError(
                f"{adapter.label}'s {target.module} doesn't fit the whole weight of another adapter.",
                why=f"It is for {list(shape)}; the weight that is written has {list(there)}.",
                hint="Merge adapters of one vocabulary.",
            )
        if adapter.facts.kind == "dora" and written in plan.replaced.names:
            raise UnsupportedError(
                f"{adapter.label} is a DoRA adapter of {target.module}, whose whole weight is replaced, too.",
                why="What DoRA adds depends on the weight it was trained beside.",
                hint=f"Serve it unmerged with PEFT: adapterhub checkout {adapter.label} DIR",
            )


def check_target(
    folder: Path, size: int, overwrite: bool, *, keep: Sequence[Path], there: int = 0
) -> None:
    """ConflictError for a folder that is in use or holds any of `keep`, OutOfSpaceError when `size` bytes can't fit.

    `there` are the bytes that an earlier, unfinished export takes: they are kept, or make room.
    """
    require_free(folder, overwrite, keep=keep, hint="Choose another folder, or say --overwrite.")
    free = free_space(folder)
    if free + there < size:
        raise OutOfSpaceError(
            f"There is no space for the model at {folder}.",
            why=f"It needs {human_size(size)}, and {human_size(free + there)} are free.",
            hint="Make room, or choose a folder on another disk.",
        )


def _require_floats(base: BaseModel, changed: Iterable[str]) -> None:
    wrong = sorted({name for name in changed if base.tensors[name].dtype not in BAKEABLE})
    if wrong:
        raise UnsupportedError(
            f"{len(wrong)} weights of {base.label} are {base.tensors[wrong[0]].dtype}, which can't be added to.",
            why=f"They are {some(wrong)}; float32, float16 and bfloat16 can.",
            hint="Export into an unquantised copy of the base.",
        )
