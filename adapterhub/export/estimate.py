"""What an export would write, before anything is opened for arithmetic: which base, how many bytes, whether they fit.

Without torch, so that a form can ask while somebody types. The export itself decides with what it has opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.base import HEAD_NAME, BaseModel
from adapterhub.export.beside import beside
from adapterhub.export.partial import finished_shards, occupied, partial_path
from adapterhub.fsio import require_free
from adapterhub.same_base import shared_base
from adapterhub.store import Resolved, Store, misfit

_BYTES_OF_A_WEIGHT = {"nf4": 0.5 + 1 / 64, "gptq": 0.5 + 2.5 / 128, "awq": 0.5 + 2.5 / 128}
"""In 4 bits: half a byte, and its share of a block's scale."""
_BESIDE_A_MATRIX = {"nf4": 1800}
"""Bytes that every matrix brings along: the tables of its scales, and their names in the header."""
_HEADER_GROWS = 4096
"""Bytes by which a header with one more tensor is longer: it is filled up to a disk block (`export.layout`)."""
_KEPT_WHOLE = ("embed", "lm_head", "wte", "wpe")
"""Parts of names: what 4 bits leave as it is, beside everything that is no matrix."""


@dataclass(frozen=True)
class Estimate:
    """What is known before an export."""

    base: BaseModel
    size: int
    """Bytes that will lie in the folder."""
    exact: bool
    """False where they depend on what can't be told from headers alone."""
    free: int
    """Bytes of the disk, those of the unfinished export included."""
    untied: bool
    """A head is written that the base doesn't store."""
    shards: int
    finished: int
    """Shards of an export of this folder that was cut short: `--resume` keeps them."""
    remarks: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the disk has room."""
        return self.size <= self.free


def estimate(
    store: Store,
    parents: Sequence[Resolved],
    folder: Path,
    *,
    base: str | None = None,
    quantize: str | None = None,
    overwrite: bool = False,
    allow_mismatch: bool = False,
) -> Estimate:
    """What an export of these adapters into `folder` would write.

    Raises what the export would raise: IncompatibleError for adapters of another base, NotFoundError for a base that
    isn't here, ConflictError for a folder that is in use. A lack of room is told, not raised.
    """
    shared = shared_base(store, parents, allow_mismatch=allow_mismatch)
    model = base_of(store, parents, base)
    touched: set[str] = set()
    whole = any(parent.manifest.lora and parent.manifest.lora.modules_to_save for parent in parents)
    for parent in parents:
        verdict = store.fit(parent, model)
        # Whole weights may fit where the base's don't: the export itself looks closer.
        if not (verdict.ok or allow_mismatch or whole):
            raise misfit(parent, model, verdict)
        touched |= set(verdict.placement.values())
    require_free(
        folder,
        overwrite,
        keep=(model.path, store.home),
        hint="Choose another folder, or say --overwrite.",
    )
    around = beside(model, parents, store.blobs.path, None)
    untied = model.tied and bool(touched & {model.embedding, HEAD_NAME})
    unfinished = partial_path(folder, overwrite=overwrite)
    return Estimate(
        base=model,
        size=_weights(model, quantize, untied=untied) + around.size,
        exact=quantize is None and not whole,
        free=free_space(folder) + occupied(unfinished),
        untied=untied,
        shards=len(model.shards),
        finished=finished_shards(unfinished),
        remarks=(*shared.remarks, *around.remarks),
    )


def base_of(store: Store, parents: Sequence[Resolved], base: str | None) -> BaseModel:
    """The base to export into: the one named, else the parents' own, which they were found to share."""
    # The first that says which base it belongs to speaks for all: `shared_base` has checked that none contradicts.
    speaker = next((parent for parent in parents if parent.manifest.base.repo), parents[0])
    return store.base_for(speaker, base)


def free_space(folder: Path) -> int:
    """Free bytes of the disk on which a new `folder` would lie."""
    existing = folder.absolute().parent
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def _weights(model: BaseModel, quantize: str | None, *, untied: bool) -> int:
    size = sum(path.stat().st_size for path in model.shards)
    if untied and model.embedding is not None and HEAD_NAME not in model.tensors:
        twin = model.tensors[model.embedding]
        size += twin.end - twin.start + _HEADER_GROWS
    if quantize is None:
        return size
    smaller = _BYTES_OF_A_WEIGHT[quantize]
    for info in model.tensors.values():
        if len(info.shape) == 2 and not any(part in info.name for part in _KEPT_WHOLE):
            size -= info.end - info.start - int(info.count * smaller)
            size += _BESIDE_A_MATRIX.get(quantize, 0)
    return size
