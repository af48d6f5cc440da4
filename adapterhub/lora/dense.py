"""The best approximation of low rank of a delta that isn't: exact where a side is small, else randomised.

Randomised: block power iterations on ΔWᵀΔW from a fixed random start, with more columns than wanted (Halko, Martinsson
and Tropp 2011, arXiv:0909.4061, section 4.5), until another pass adds next to no energy. It needs only products with
tiles, and holds the delta whole only within the memory budget; the result has the same bits either way.
"""

from __future__ import annotations

import math

import torch

from adapterhub.lora.lowrank import Spectrum, balanced
from adapterhub.lora.memory import Memory
from adapterhub.lora.rows import Held, Rows, blocks, squared_norm, whole

EXACT_SIDE = 640
"""Up to this size of the smaller side the decomposition is exact."""
OVERSAMPLING = 32
_MOST_PASSES = 8
_SETTLED = 1e-4
"""A pass that adds less than this share to the energy found is the last."""
_SEED = 0x5EED  # of the random start: part of the definition of the result


def best_rank(delta: Rows, rank: int, memory: Memory) -> Spectrum:
    """The best approximation of at most `rank`, with the energy of the whole delta."""
    out, width = delta.shape
    rank = min(rank, out, width)
    if min(out, width) <= EXACT_SIDE:
        return _exact(delta, rank)
    with memory.reserved(4 * out * width) as held:
        return _randomised(Held(whole(delta)) if held else delta, rank)


def _exact(delta: Rows, rank: int) -> Spectrum:
    """From the eigenvectors of the smaller side's Gram matrix, in float64."""
    out, width = delta.shape
    if width <= out:
        gram = torch.zeros(width, width, dtype=torch.float64, device=delta.device)
        for _, tile in blocks(delta):
            gram += tile.double().T @ tile.double()
        v = _leading(gram, rank)  # (in, k)
        us = torch.cat([tile.double() @ v for _, tile in blocks(delta)])  # (out, k)
        return _from_projection(us, v, energy=float(gram.trace()))
    dense = whole(delta).double()
    gram = dense @ dense.T
    u = _leading(gram, rank)  # (out, k)
    found = _from_projection(dense.T @ u, u, energy=float(gram.trace()))
    return Spectrum(found.a.T, found.b.T, found.values, found.energy)


def _randomised(delta: Rows, rank: int) -> Spectrum:
    out, width = delta.shape
    columns = min(rank + OVERSAMPLING, out, width)
    start = torch.randn(width, columns, generator=torch.Generator().manual_seed(_SEED))
    probe = torch.linalg.qr(start.to(delta.device))[0]  # (in, l)
    energy, found, scale = 0.0, 0.0, 0.0
    for turn in range(_MOST_PASSES):
        back = torch.zeros_like(probe)  # (in, l): scale·ΔWᵀΔW·probe
        for _, tile in blocks(delta):
            if turn == 0:
                energy += squared_norm(tile)
                scale = scale or _power_of_two(tile)
            back.addmm_(tile.T, tile @ probe * scale)
        # probeᵀ·ΔWᵀΔW·probe: its largest eigenvalues are the energy that the probe finds.
        ritz = torch.linalg.eigvalsh(probe.T.double() @ back.double() / (scale or 1.0))
        before, found = found, float(ritz[-rank:].clamp(min=0).sum())
        probe = torch.linalg.qr(back)[0]
        if turn and found - before <= _SETTLED * found:
            break
    image = torch.cat([tile @ probe for _, tile in blocks(delta)])  # (out, l)
    q, r = torch.linalg.qr(image)
    u, s, vt = torch.linalg.svd(r.double())
    return balanced(q, u[:, :rank], s[:rank], vt[:rank], probe, energy)


def _power_of_two(tile: torch.Tensor) -> float:
    """About the inverse of the tile's size, without rounding, so that squares of it stay within float32; 0 for zeros."""
    largest = float(tile.abs().max())
    if not 0 < largest < math.inf:
        return 0.0
    return 2.0 ** max(-126, min(126, -math.frexp(largest)[1]))


def _leading(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Eigenvectors of the `rank` largest eigenvalues, as columns in falling order."""
    vectors: torch.Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors[:, -rank:].flip(1)


def _from_projection(us: torch.Tensor, v: torch.Tensor, energy: float) -> Spectrum:
    """From U·S (out, k) and orthonormal V (in, k): norms of the columns are the singular values."""
    s = us.norm(dim=0)
    u = us / torch.where(s > 0, s, torch.ones_like(s))
    core = torch.eye(len(s), dtype=s.dtype, device=s.device)
    return balanced(u.float(), core, s, core, v.float(), energy)
