"""Exact low-rank algebra with torch: sums stay factored, and truncation is the best one there is.

A sum of adapters is the stacked factors ([w₁B₁ | w₂B₂], [A₁; A₂]). Thin QR of both sides and an SVD of the small
R x R core (in float64) give its singular values, hence the optimal truncation (Eckart and Young 1936) and its error,
at a cost of (m+n)R² + R³ instead of m·n·min(m, n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapterhub.lora.rows import Factored

DROP = 1e-6
"""Directions below this share of the largest singular value are rounding noise of float32."""


@dataclass(frozen=True)
class Spectrum:
    """A delta by its singular values: b (out, k), a (k, in) balanced, with b @ a its best rank-k approximation.

    `values` are the k largest singular values (float64), `energy` the squared Frobenius norm of the whole delta.
    """

    b: torch.Tensor
    a: torch.Tensor
    values: torch.Tensor
    energy: float

    def cut(self, rank: int) -> Spectrum:
        """The best approximation of at most `rank` (at least one direction is kept, if only of zeros)."""
        rank = min(rank, self.b.shape[1])
        return Spectrum(self.b[:, :rank], self.a[:rank], self.values[:rank], self.energy)

    @property
    def kept(self) -> float:
        """Energy of the approximation."""
        return float((self.values**2).sum())


def stack(deltas: Sequence[Factored], weights: Sequence[float]) -> Factored:
    """The exact sum of w·b@a as one pair of factors: ranks add up."""
    b = torch.cat([weight * delta.b for weight, delta in zip(weights, deltas, strict=True)], dim=1)
    return Factored(b, torch.cat([delta.a for delta in deltas], dim=0))


def decompose(delta: Factored, rank: int | None = None) -> Spectrum:
    """The `rank` (or all) leading singular directions of b @ a; those below DROP are left out."""
    q_b, r_b = torch.linalg.qr(delta.b)  # (out, p), (p, R) with p = min(out, R)
    q_a, r_a = torch.linalg.qr(delta.a.T)  # (in, q), (q, R)
    core = r_b.double() @ r_a.double().T  # (p, q)
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    energy = float((s**2).sum())
    return balanced(q_b, u[:, :rank], s[:rank], vt[:rank], q_a, energy)


def balanced(
    q_b: torch.Tensor,
    u: torch.Tensor,
    s: torch.Tensor,
    vt: torch.Tensor,
    q_a: torch.Tensor,
    energy: float,
) -> Spectrum:
    """Splits the singular values evenly between both factors and fixes the signs, so that the form is canonical.

    Args:
        q_b: (out, p) and q_a: (in, q), float32, orthonormal columns.
        u: (p, k), s: (k,) in falling order, vt: (k, q): the core's decomposition, float64.
    """
    count = max(1, int((s > DROP * s[0]).sum())) if len(s) else 0
    root = s[:count].sqrt()
    b = q_b @ (u[:, :count] * root).float()
    a = (root[:, None] * vt[:count]).float() @ q_a.T
    largest = b.gather(0, b.abs().argmax(dim=0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0)
    return Spectrum(b * sign, a * sign[:, None], s[:count], energy)
