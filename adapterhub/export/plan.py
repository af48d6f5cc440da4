"""What an export will do, decided before a byte is written: which tensors change, and whether ties must be cut.

A tied model keeps one matrix for the input embedding and the head. An adapter changes only one of the two, so where
one is touched the exported model must be untied: both are written, and the configuration says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.base import HEAD_NAME, BaseModel
from adapterhub.errors import IncompatibleError, OutOfSpaceError, UnsupportedError
from adapterhub.export.whole import Replaced, beside_whole, replaced, source_of
from adapterhub.formats.safetensors import TensorInfo
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
        if self.untied:
            told["tie_word_embeddings"] = False
        if self.replaced.vocabulary is not None:
            told["vocab_size"] = self.replaced.vocabulary
        inner = self.base.config.get("text_config")
        if isinstance(inner, dict) and (deeper := {k: v for k, v in told.items() if k in inner}):
            stated = {k: v for k, v in told.items() if k in self.base.config or k not in inner}
            return {**stated, "text_config": {**inner, **deeper}}
        return told


def make_plan(
    store: Store,
    adapters: Sequence[Adapter],
    base: BaseModel,
    whole: Mapping[str, tuple[int, ...]],
    *,
    allow_mismatch: bool,
) -> ExportPlan:
    """Raises IncompatibleError where an adapter doesn't fit, UnsupportedError for weights that can't be added to.

    Args:
        whole: the whole trained tensors of the result by their names in the adapters, and their shapes.
    """
    taken = replaced(base, whole, adapters)
    placement: dict[str, str] = {}
    transposed: set[str] = set()
    overridden: list[str] = []
    for adapter in adapters:
        verdict = store.fit(adapter.resolved, base)
        there = {**verdict.placement, **beside_whole(adapter, base, verdict, whole)}
        if len(there) != verdict.modules_total:
            # No flag helps: a delta without its tensor can't be written, and leaving it out would be silent.
            raise IncompatibleError(
                f"{adapter.label} doesn't fit the base {base.label}.",
                why="; ".join(verdict.reasons),
                hint="Name the base it was trained on: --base FOLDER_OR_REPO",
            )
        shapes_only = len(there) > len(verdict.placement) and verdict.fingerprint != "different"
        if not verdict.ok and not shapes_only and not allow_mismatch:
            raise misfit(adapter.resolved, base, verdict)
        overridden += [] if verdict.ok or shapes_only else verdict.reasons
        placement.update(there)
        transposed |= verdict.transposed
        transposed |= {
            module
            for module in there.keys() - verdict.placement.keys()
            if adapter.modules[module].embedding or base.is_conv1d(module)
        }
    _require_floats(base, [*placement.values(), *taken.sources(base)])
    targets = {}
    for module, tensor in placement.items():
        head = module.rpartition(".")[2] == HEAD_NAME.removesuffix(".weight")
        written = HEAD_NAME if head and tensor == base.embedding else tensor
        targets[written] = Target(module, tensor, module in transposed)
    untied = base.tied and bool(
        targets.keys() & {base.embedding, HEAD_NAME}
        or HEAD_NAME in taken.names
        or base.embedding in taken.copied
    )
    return ExportPlan(base, targets, untied, tuple(overridden), taken.for_both_sides(base, untied))


def check_target(
    folder: Path, size: int, overwrite: bool, *, keep: Sequence[Path], there: int = 0
) -> None:
    """ConflictError for a folder that is in use or holds any of `keep`, OutOfSpaceError when `size` bytes can't fit.

    `there` are the bytes that an earlier, unfinished export takes: they are kept, or make room.
    """
    require_free(folder, overwrite, keep=keep, hint="Choose another folder, or say --overwrite.")
    existing = folder.absolute().parent
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
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
