"""Deltas that are no longer of low rank (TIES and its kin), computed row by row and never held whole if they are large.

A `RowSource` gives any rows of a delta on demand. Its best low-rank approximation comes from the eigenvectors of the
Gram matrix where the smaller side is small (exact), else from a randomised range finder with power iterations
(Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4), which needs only products with row blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from adapterhub.lora.lowrank import Spectrum, balanced

TILE_VALUES = 2**22
"""Values of one row block. Fixed, since a product's last bits may depend on its shape."""
EXACT_SIDE = 1024
"""Up to this size of the smaller side the decomposition is exact."""
_OVERSAMPLING = 32
_POWER_ITERATIONS = 3
_SEED = 0x5EED  # of the range finder's test matrix: part of the definition of the result


class RowSource(Protocol):
    """A delta of which rows can be had: `shape` is (out, in)."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows [first, last) as float32, (last - first, in)."""
        ...


def blocks(source: RowSource) -> Iterator[tuple[int, torch.Tensor]]:
    """All rows in order, as (index of the first, block)."""
    out, width = source.shape
    step = max(1, TILE_VALUES // max(1, width))
    for first in range(0, out, step):
        yield first, source.rows(first, min(out, first + step))


def whole(source: RowSource) -> torch.Tensor:
    """The delta, dense: (out, in)."""
    return torch.cat([block for _, block in blocks(source)])


def best_rank(source: RowSource, rank: int) -> Spectrum:
    """The best approximation of at most `rank`, with the energy of the whole delta."""
    out, width = source.shape
    rank = min(rank, out, width)
    if min(out, width) <= EXACT_SIDE:
        return _exact(source, rank)
    return _randomised(source, rank)


def _exact(source: RowSource, rank: int) -> Spectrum:
    out, width = source.shape
    if width <= out:
        gram = torch.zeros(width, width, dtype=torch.float64)
        for _, block in blocks(source):
            gram += block.double().T @ block.double()
        v = _leading(gram, rank)  # (in, k)
        us = torch.cat([block.double() @ v for _, block in blocks(source)])  # (out, k)
        return _from_projection(us, v.T, energy=float(gram.trace()))
    dense = whole(source).double()
    gram = dense @ dense.T
    u = _leading(gram, rank)  # (out, k)
    return _transposed(_from_projection(dense.T @ u, u.T, energy=float(gram.trace())))


def _randomised(source: RowSource, rank: int) -> Spectrum:
    width = source.shape[1]
    generator = torch.Generator().manual_seed(_SEED)
    probe = torch.randn(width, min(rank + _OVERSAMPLING, width), generator=generator)  # (in, l)
    energy = 0.0
    for iteration in range(_POWER_ITERATIONS + 1):
        back = torch.zeros_like(probe)
        image = []
        energy = 0.0
        for _, block in blocks(source):
            energy += float(block.double().square().sum())
            image.append(block @ probe)
        q, _ = torch.linalg.qr(torch.cat(image))  # (out, l)
        for first, block in blocks(source):
            back += block.T @ q[first : first + block.shape[0]]
        if iteration == _POWER_ITERATIONS:
            # source ≈ q @ back.T, and the small side's SVD finishes it.
            right, s, small = torch.linalg.svd(
                back.double(), full_matrices=False
            )  # (in, l), (l,), (l, l)
            return balanced(q.double() @ small.T[:, :rank], s[:rank], right.T[:rank], energy)
        probe, _ = torch.linalg.qr(back)
    raise AssertionError("unreachable: the last iteration returns")


def _leading(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors of the `rank` largest eigenvalues, as columns in falling order."""
    vectors: torch.Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -rank:].flip(1)


def _from_projection(us: torch.Tensor, vt: torch.Tensor, energy: float) -> Spectrum:
    """From U·S (out, k) and orthonormal V' (k, in): norms of the columns are the singular values."""
    s = us.norm(dim=0)
    safe = torch.where(s > 0, s, torch.ones_like(s))
    return balanced(us / safe, s, vt, energy)


def _transposed(spectrum: Spectrum) -> Spectrum:
    return Spectrum(spectrum.a.T, spectrum.b.T, spectrum.values, spectrum.energy)
