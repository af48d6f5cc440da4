"""Deltas by rows. A delta that is of low rank stays in factors; any other is computed tile by tile when it is wanted.

Tiles are small enough for a core's cache, which is what makes element-wise work fast, and of fixed height for a given
width, since a product's last bits depend on its shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

TILE_VALUES = 2**17
"""Values of one tile: half a megabyte of float32, so that a handful of them lie in a second-level cache."""


class Rows(Protocol):
    """The delta of one module, (out, in), of which rows can be had as float32."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def device(self) -> torch.device: ...

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        """Writes rows [first, last) into `out` (last - first, in), which is contiguous float32."""
        ...


@dataclass(frozen=True)
class Factored:
    """b @ a, with b (out, rank) and a (rank, in) in float32, the scale in b."""

    b: torch.Tensor
    a: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    @property
    def device(self) -> torch.device:
        return self.b.device

    @property
    def rank(self) -> int:
        return self.b.shape[1]

    @property
    def across(self) -> Factored:
        """The transpose, of which rows can be had as they are stored: (b·a)ᵀ = aᵀ·bᵀ."""
        return Factored(self.a.T.contiguous(), self.b.T.contiguous())

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        torch.mm(self.b[first:last], self.a, out=out)


@dataclass(frozen=True)
class Held:
    """A delta held whole: (out, in) float32."""

    whole: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.whole.shape[0], self.whole.shape[1]

    @property
    def device(self) -> torch.device:
        return self.whole.device

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        out.copy_(self.whole[first:last])


def _height(shape: tuple[int, int]) -> int:
    """Rows of one tile."""
    out, width = shape
    return min(out, max(1, TILE_VALUES // max(1, width)))


def tiles(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(first, last) of every tile, in order."""
    out = shape[0]
    step = _height(shape)
    for first in range(0, out, max(1, step)):
        yield first, min(out, first + step)


def buffer(rows: Rows) -> torch.Tensor:
    """Room for one tile."""
    return torch.empty(_height(rows.shape), rows.shape[1], device=rows.device)


def blocks(rows: Rows) -> Iterator[tuple[int, torch.Tensor]]:
    """All rows in order, as (index of the first, tile). A tile is overwritten by the next one."""
    if isinstance(rows, Held):
        for first, last in tiles(rows.shape):
            yield first, rows.whole[first:last]
        return
    room = buffer(rows)
    for first, last in tiles(rows.shape):
        tile = room[: last - first]
        rows.fill(first, last, tile)
        yield first, tile


def whole(rows: Rows) -> torch.Tensor:
    """The delta, dense: (out, in) float32."""
    if isinstance(rows, Held):
        return rows.whole
    dense = torch.empty(rows.shape, device=rows.device)
    for first, last in tiles(rows.shape):
        rows.fill(first, last, dense[first:last])
    return dense


def squared_norm(tile: torch.Tensor) -> float:
    """The squared Frobenius norm of float32 values, summed in float64."""
    return float(torch.linalg.vector_norm(tile, dtype=torch.float64)) ** 2
