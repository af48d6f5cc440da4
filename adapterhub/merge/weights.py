"""Deltas that need weights themselves: whole trained tensors against the base's, and DoRA's delta on its base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from adapterhub.base import BaseModel, counterpart
from adapterhub.errors import UnsupportedError
from adapterhub.formats.safetensors import TensorFile, TensorInfo
from adapterhub.lora.rows import Factored, Rows, buffer

READABLE = ("F64", "F32", "F16", "BF16")
"""What weights are where their stored values mean themselves; float8 and integers have scales somewhere else."""


class StoredRows:
    """A tensor of a file as rows (out, in), read when wanted; `transposed` where the file holds (in, out)."""

    def __init__(
        self, file: TensorFile, info: TensorInfo, device: torch.device, *, transposed: bool = False
    ) -> None:
        self._file, self._name, self._transposed = file, info.name, transposed
        stored = matrix_shape(info.shape)
        self.shape = (stored[1], stored[0]) if transposed else stored
        self.device = device

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        if self._transposed:
            values = self._file.columns(self._name, first, last).T
        else:
            width = self.shape[1]
            values = self._file.floats(self._name, first * width, (last - first) * width)
        if not values.flags.writeable:  # of which torch makes no tensor
            values = values.copy()
        out.copy_(torch.from_numpy(values).reshape(out.shape))


class Difference:
    """`whole` less `base`."""

    def __init__(self, whole: Rows, base: Rows) -> None:
        self._whole, self._base = whole, base
        self.shape, self.device = whole.shape, whole.device
        self._room = buffer(base)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        room = self._room[: last - first]
        self._whole.fill(first, last, out)
        self._base.fill(first, last, room)
        out.sub_(room)


class DoraRows:
    """What a DoRA adapter adds to its base: m·(W + ΔW)/||W + ΔW|| - W, norms per output row.

    Liu et al. 2024, DoRA, arXiv:2402.09353, equation 5, as PEFT computes it.
    """

    def __init__(self, base: Rows, delta: Factored, magnitude: torch.Tensor) -> None:
        self._base, self._delta = base, delta
        self._magnitude = magnitude  # (out,)
        self.shape, self.device = delta.shape, delta.device
        self._room = buffer(delta)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        base = self._room[: last - first]
        self._base.fill(first, last, base)
        self._delta.fill(first, last, out)
        out.add_(base)
        norms = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        out.mul_(self._magnitude[first:last, None] / norms.clamp(min=torch.finfo(norms.dtype).tiny))
        out.sub_(base)


@dataclass(frozen=True)
class BaseWeights:
    """A base whose shards are open."""

    model: BaseModel
    files: dict[Path, TensorFile]
    device: torch.device

    def rows(self, name: str, *, transposed: bool = False) -> Rows:
        """The tensor `name`. UnsupportedError where its values can't be taken as they are stored."""
        info = self.model.tensors[name]
        if info.dtype not in READABLE:
            raise UnsupportedError(
                f"The {name} of {self.model.label} is {info.dtype}, which can't be computed with.",
                why=f"It must be one of {', '.join(READABLE)}.",
                hint="Name an unquantised copy of the base: --base FOLDER_OR_REPO",
            )
        return StoredRows(self.files[info.path], info, self.device, transposed=transposed)

    def counterpart(self, saved: str) -> str | None:
        """The tensor that a whole trained tensor takes the place of; None where there is none."""
        return counterpart(self.model, saved)


@contextmanager
def opened_base(model: BaseModel, device: torch.device) -> Iterator[BaseWeights]:
    """The base's shards, open while the block runs. UnsupportedError for a quantised base."""
    if model.config.get("quantization_config"):
        raise UnsupportedError(
            f"{model.label} is quantised; its packed weights can't be computed with.",
            why="Its config.json has a quantization_config.",
            hint="Name the original base: --base FOLDER_OR_REPO",
        )
    with ExitStack() as stack:
        files = {shard: stack.enter_context(TensorFile(shard)) for shard in model.shards}
        yield BaseWeights(model, files, device)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor's shape as rows: a vector is one row."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
