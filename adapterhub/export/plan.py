"""What an export will do, decided before a byte is written: which tensors change, and whether ties must be cut.

A tied model keeps one matrix for the input embedding and the head. An adapter changes only one of the two, so where
one is touched the exported model must be untied: both are written, and the configuration says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.base import HEAD_NAME, BaseModel
from adapterhub.errors import IncompatibleError, OutOfSpaceError, UnsupportedError
from adapterhub.fsio import require_free
from adapterhub.lora.adapter import Adapter
from adapterhub.store import Store, misfit
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
    size: int
    """Bytes of all weights written."""
    overridden: tuple[str, ...]


def make_plan(
    store: Store, adapters: Sequence[Adapter], base: BaseModel, *, allow_mismatch: bool
) -> ExportPlan:
    """Raises IncompatibleError where an adapter doesn't fit, UnsupportedError for weights that can't be added to."""
    placement: dict[str, str] = {}
    transposed: set[str] = set()
    overridden: list[str] = []
    for adapter in adapters:
        verdict = store.fit(adapter.resolved, base)
        if verdict.modules_found != verdict.modules_total:
            # No flag helps: a delta without its tensor can't be written, and leaving it out would be silent.
            raise IncompatibleError(
                f"{adapter.label} doesn't fit the base {base.label}.",
                why="; ".join(verdict.reasons),
                hint="Name the base it was trained on: --base FOLDER_OR_REPO",
            )
        if not verdict.ok and not allow_mismatch:
            raise misfit(adapter.resolved, base, verdict)
        overridden += [] if verdict.ok else verdict.reasons
        placement.update(verdict.placement)
        transposed |= verdict.transposed
    _require_floats(base, placement)
    targets, untied = {}, False
    for module, tensor in placement.items():
        head = module.rpartition(".")[2] == HEAD_NAME.removesuffix(".weight")
        written = HEAD_NAME if head and tensor == base.embedding else tensor
        untied |= base.tied and (head or tensor == base.embedding)
        targets[written] = Target(module, tensor, module in transposed)
    size = sum(info.end - info.start for info in base.tensors.values())
    if untied and HEAD_NAME not in base.tensors and base.embedding is not None:
        info = base.tensors[base.embedding]
        size += info.end - info.start
    return ExportPlan(base, targets, untied, size, tuple(overridden))


def check_target(folder: Path, size: int, overwrite: bool, *, keep: Sequence[Path]) -> None:
    """ConflictError for a folder that is in use or holds any of `keep`, OutOfSpaceError when the model can't fit."""
    require_free(folder, overwrite, keep=keep, hint="Choose another folder, or say --overwrite.")
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size:
        raise OutOfSpaceError(
            f"There is no space for the model at {folder}.",
            why=f"It needs {human_size(size)}, and {human_size(free)} are free.",
            hint="Make room, or choose a folder on another disk.",
        )


def _require_floats(base: BaseModel, placement: Mapping[str, str]) -> None:
    wrong = sorted(name for name in placement.values() if base.tensors[name].dtype not in BAKEABLE)
    if wrong:
        raise UnsupportedError(
            f"{len(wrong)} weights of {base.label} are {base.tensors[wrong[0]].dtype}, which can't be added to.",
            why=f"They are {some(wrong)}; float32, float16 and bfloat16 can.",
            hint="Export into an unquantised copy of the base.",
        )
