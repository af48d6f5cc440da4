"""Exact low-rank algebra with torch: sums stay factored, and truncation is the best one there is.

A sum of adapters is the stacked factors ([w₁B₁ | w₂B₂], [A₁; A₂]) of R columns. Its singular values and vectors come from
the R x R matrices BᵀB and AAᵀ, whence the optimal truncation (Eckart and Young 1936) and its error, at a cost of
(m+n)R² + R³ instead of m·n·min(m, n). Those matrices square what is small; but in float64, of float32 factors, they tell
directions down to 1e-8 of the largest apart, where a QR of the factors themselves in float32 would end at 1e-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapterhub.lora.inner import Stack, energy, projected
from adapterhub.lora.rows import Factored, Rows

DROP = 1e-6
"""Directions below this share of the largest singular value are rounding noise of float32."""
NOISE = 1e-15
"""What is below this share of the largest square is rounding noise of float64."""


@dataclass(frozen=True)
class Sum(Factored):
    """Σ wᵢΔWᵢ as stacked factors, which knows what it was made of."""

    stack: Stack
    columns: torch.Tensor
    """The weight of every column, (R,) float64."""


@dataclass(frozen=True)
class Basis:
    """The directions of a spectrum in terms of a stack's factors: b = [B₁ | B₂ | ...]·left and a = right·[A₁; A₂; ...]."""

    stack: Stack
    left: torch.Tensor
    """(R, k) float64."""
    right: torch.Tensor
    """(k, R) float64."""


@dataclass(frozen=True)
class Spectrum:
    """A delta by its singular values: b (out, k), a (k, in) balanced, with b @ a its best rank-k approximation.

    `values` are the k largest singular values (float64), `energy` the squared Frobenius norm of the whole delta.
    """

    b: torch.Tensor
    a: torch.Tensor
    values: torch.Tensor
    energy: float
    basis: Basis | None = None

    def seen(self, delta: Rows) -> tuple[float, torch.Tensor]:
        """||ΔW||² of another delta, and bᵀ·ΔW·aᵀ, (k, k) float64. Next to free for what this one was summed up from."""
        place = self.basis.stack.place_of(delta) if self.basis else None
        if self.basis is None or place is None:
            return energy(delta), projected(delta, self.b, self.a)
        left, right = self.basis.stack.left, self.basis.stack.right
        norm = float((left[place, place] * right[place, place]).sum())
        inside = (self.basis.left.T @ left[:, place]) @ (right[place] @ self.basis.right.T)
        return max(0.0, norm), inside


def total(stack: Stack, weights: Sequence[float]) -> Sum:
    """The exact sum of w·ΔW over a stack, with a weight for each part, as one pair of factors: ranks add up."""
    b = torch.cat(
        [weight * part.b for weight, part in zip(weights, stack.parts, strict=True)], dim=1
    )
    a = torch.cat([part.a for part in stack.parts], dim=0)
    return Sum(b, a, stack, stack.columns(weights))


def decompose(delta: Factored, rank: int | None = None) -> Spectrum:
    """The `rank` (or all) leading singular directions of b @ a; those below DROP are left out.

    torch.linalg.LinAlgError where a sum's factors are beyond float32.
    """
    whole = delta if isinstance(delta, Sum) else total(Stack([delta]), [1.0])
    stack = whole.stack
    left = whole.columns[:, None] * stack.left * whole.columns  # BᵀB, weights and all
    if float(left.diagonal().max()) > torch.finfo(torch.float32).max ** 2:
        raise torch.linalg.LinAlgError("the weighted factors overflow float32")  # type: ignore[attr-defined]
    even = evened(left.diagonal(), stack.right.diagonal())
    left, right = even[:, None] * left * even, stack.right / even[:, None] / even
    squares, v = torch.linalg.eigh(left)
    used = squares > NOISE * squares[-1]
    roots = squares[used].sqrt()  # singular values of B
    v = v[:, used]
    half = roots[:, None] * v.T  # B = U·half with orthonormal U, so that BA = U·(half·A)
    squares, p = torch.linalg.eigh(half @ right @ half.T)
    squares = squares.where(
        squares > NOISE * left.trace() * right.trace(), 0.0
    )  # all that cancelled
    values = squares.sqrt().flip(0)[:rank]
    values = values[values > DROP * values[:1]]
    if not len(values):
        return _nothing(delta)
    p, root = p.flip(1)[:, : len(values)], values.sqrt()
    to_b = even[:, None] * (v / roots @ p * root)  # (R, k)
    to_a = p.T @ half / root[:, None] / even  # (k, R)
    b = (to_b.T.to(whole.b) @ whole.b.T).T
    a = to_a.to(whole.a) @ whole.a
    sign = _signs(b)
    basis = Basis(stack, whole.columns[:, None] * to_b * sign.cpu(), to_a * sign[:, None].cpu())
    size = max(0.0, float((left * right).sum()))
    return Spectrum(b.mul_(sign), a.mul_(sign[:, None]), values, size, basis)


def evened(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """What each column of B is multiplied with, and each row of A divided by, so that both are equally long, (..., R).

    How a delta's size is shared between B and A says nothing about it, and may be very uneven. `left` and `right` are
    the squared lengths, the diagonals of BᵀB and AAᵀ.
    """
    return torch.where((left > 0) & (right > 0), (right / left).pow(0.25), 1.0)


def _nothing(delta: Factored) -> Spectrum:
    """One direction of zeros: an adapter needs one."""
    out, width = delta.shape
    b, a = torch.zeros(out, 1), torch.zeros(1, width)
    return Spectrum(b.to(delta.b), a.to(delta.a), torch.zeros(1, dtype=torch.float64), 0.0)


def _signs(b: torch.Tensor) -> torch.Tensor:
    """-1 for each column whose largest value is negative, else 1: turned so, the form is canonical."""
    largest = b.gather(0, b.abs().argmax(dim=0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0)


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
    sign = _signs(b)
    return Spectrum(b * sign, a * sign[:, None], s[:count], energy)
