"""Inner products of deltas, in float64.

From factors: <ΔWᵢ, ΔWⱼ> = Σ (BᵢᵀBⱼ) ∘ (AᵢAⱼᵀ). The products of all columns of B and of all rows of A cost (m+n)·R² for R
stacked columns; norms, the Gram matrix, the spectrum of any weighted sum and what it holds of each delta then
follow from R x R matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch

from adapterhub.lora.rows import Factored, Rows, blocks, buffer, squared_norm, tiles

_ROOM = 2**17
"""Float64 values converted at a time: a megabyte, within a second-level cache."""


class Stack:
    """Factored deltas of one module side by side: [B₁ | B₂ | ...] and [A₁; A₂; ...], of R columns and rows."""

    def __init__(self, parts: Sequence[Factored]) -> None:
        self.parts = tuple(parts)
        ends = accumulate(part.rank for part in self.parts)
        self._places = [
            slice(end - part.rank, end) for end, part in zip(ends, self.parts, strict=True)
        ]

    @cached_property
    def left(self) -> torch.Tensor:
        """BᵀB, (R, R) float64, without weights."""
        return _products([part.b.T for part in self.parts])

    @cached_property
    def right(self) -> torch.Tensor:
        """AAᵀ, (R, R) float64."""
        return _products([part.a for part in self.parts])

    def gram(self) -> torch.Tensor:
        """The K x K matrix of <ΔWᵢ, ΔWⱼ>, float64."""
        products = self.left * self.right
        owner = torch.arange(len(self.parts)).repeat_interleave(
            torch.tensor([part.rank for part in self.parts])
        )
        found = torch.zeros(len(self.parts), len(owner), dtype=torch.float64)
        found.index_add_(0, owner, products)
        return torch.zeros(len(self.parts), len(self.parts), dtype=torch.float64).index_add_(
            1, owner, found
        )

    def columns(self, weights: Sequence[float]) -> torch.Tensor:
        """The weights, one a part, for every column: (R,) float64."""
        return torch.cat(
            [
                torch.full((part.rank,), weight, dtype=torch.float64)
                for part, weight in zip(self.parts, weights, strict=True)
            ]
        )

    def place_of(self, delta: Rows) -> slice | None:
        """The columns of `delta`, if it is one of the parts."""
        for place, part in zip(self._places, self.parts, strict=True):
            if part is delta:
                return place
        return None


def _products(sides: Sequence[torch.Tensor]) -> torch.Tensor:
    """S·Sᵀ for the stack S of (rank, n) sides: (R, R) float64, added up in an order that depends on shapes alone."""
    height, width = sum(len(side) for side in sides), sides[0].shape[1]
    step = max(1, _ROOM // height)
    device = sides[0].device
    if sides[0].stride(0) == 1:  # a Bᵀ: converted as it lies in memory
        room = torch.empty(step, height, dtype=torch.float64, device=device).T
    else:
        room = torch.empty(height, step, dtype=torch.float64, device=device)
    found = torch.zeros(height, height, dtype=torch.float64, device=device)
    for first in range(0, width, step):
        piece = room[:, : min(step, width - first)]
        row = 0
        for side in sides:
            piece[row : row + len(side)].copy_(side[:, first : first + step])
            row += len(side)
        found.addmm_(piece, piece.T)
    return found.cpu()


def gram(deltas: Sequence[Rows | None]) -> torch.Tensor:
    """The K x K matrix of inner products Gᵢⱼ = <ΔWᵢ, ΔWⱼ>, float64; a missing delta is zero."""
    there = [delta for delta in deltas if delta is not None]
    stack = stacked(there)
    return spread(stack.gram() if stack else _by_tiles(there), deltas)


def stacked(deltas: Sequence[Rows]) -> Stack | None:
    """Their stack, if all are factored."""
    factored = [delta for delta in deltas if isinstance(delta, Factored)]
    return Stack(factored) if factored and len(factored) == len(deltas) else None


def spread(products: torch.Tensor, deltas: Sequence[object | None]) -> torch.Tensor:
    """The Gram matrix of `deltas` from the products of those that are there."""
    owners = torch.tensor([place for place, delta in enumerate(deltas) if delta is not None]).long()
    found = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    found[owners[:, None], owners] = products
    return found


def _by_tiles(deltas: Sequence[Rows]) -> torch.Tensor:
    found = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    rooms = [buffer(delta) for delta in deltas]
    for first, last in tiles(deltas[0].shape) if deltas else ():
        for delta, room in zip(deltas, rooms, strict=True):
            delta.fill(first, last, room[: last - first])
        flat = torch.stack([room[: last - first].flatten() for room in rooms]).double()
        found += (flat @ flat.T).cpu()
    return found


def energy(delta: Rows) -> float:
    """The squared Frobenius norm."""
    if isinstance(delta, Factored):
        return max(0.0, float(Stack([delta]).gram()))
    return sum(squared_norm(tile) for _, tile in blocks(delta))


def projected(delta: Rows, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """bᵀ·ΔW·aᵀ, (k, k) float64, for b (out, k) and a (k, in)."""
    if isinstance(delta, Factored):
        return (b.T @ delta.b).double() @ (delta.a @ a.T).double()
    left = torch.zeros(b.shape[1], delta.shape[1], dtype=torch.float64, device=delta.device)
    for first, tile in blocks(delta):
        left += (b[first : first + tile.shape[0]].T @ tile).double()
    return left @ a.T.double()
