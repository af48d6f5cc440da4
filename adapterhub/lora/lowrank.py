"""Exact low-rank algebra with torch: sums stay factored, and truncation is the best one there is.

A sum of adapters is the stacked factors ([w₁B₁ | w₂B₂], [A₁; A₂]). Thin QR of both sides and an SVD of the small
R x R core (in float64) give its singular values, hence the optimal truncation (Eckart and Young 1936) and its error,
at a cost of (m+n)R² + R³ instead of m·n·min(m, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

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


def stack(
    factors: list[tuple[float, torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact sum of w·b@a as one pair of factors: ranks add up."""
    b = torch.cat([weight * b for weight, b, _ in factors], dim=1)  # (out, R)
    a = torch.cat([a for _, _, a in factors], dim=0)  # (R, in)
    return b, a


def decompose(b: torch.Tensor, a: torch.Tensor) -> Spectrum:
    """Singular value decomposition of b @ a from its factors; directions below DROP are left out."""
    q_b, r_b = torch.linalg.qr(b)  # (out, p), (p, R) with p = min(out, R)
    q_a, r_a = torch.linalg.qr(a.T)  # (in, q), (q, R)
    core = r_b.double() @ r_a.double().T  # (p, q)
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    return balanced(q_b.double() @ u, s, vt @ q_a.double().T, energy=float((s**2).sum()))


def balanced(u: torch.Tensor, s: torch.Tensor, vt: torch.Tensor, energy: float) -> Spectrum:
    """Splits the singular values evenly between both factors and fixes the signs, so that the form is canonical.

    Args:
        u: (out, k), s: (k,) in falling order, vt: (k, in); float64.
    """
    count = max(1, int((s > DROP * s[0]).sum())) if len(s) else 0
    u, s, vt = u[:, :count], s[:count], vt[:count]
    largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    root = s.sqrt()
    return Spectrum((u * (sign * root)).float(), ((sign * root)[:, None] * vt).float(), s, energy)
