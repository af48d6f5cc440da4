"""Deltas of one module in a few dimensions: norms, angles, ranks and overlaps without ever forming a delta.

With thin QRs of the stacked factors, [B₁|…|B_K] = Q·R and [A₁;…;A_K]ᵀ = P·T, every delta is ΔWᵢ = Q·(RᵢTᵢᵀ)·Pᵀ. Q and P
are orthonormal, so norms, singular values and angles of the deltas are those of the small cores RᵢTᵢᵀ, and Q and P
themselves are never needed. Everything is in float64: the only rounding before it is the adapters' own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adapterhub.lora.adapter import Array, Factors

Matrix = npt.NDArray[np.float64]

DROP = 1e-6
"""Directions below this share of the largest singular value are rounding noise of float32 factors."""

LEADING = 0.9
"""The leading subspaces of a delta are those of its largest singular values that hold this share of its energy."""

_BLOCK_ROWS = 512


@dataclass(frozen=True)
class Core:
    """A delta's singular value decomposition in bases that all deltas of the module share: u (p, k), s (k,), v (q, k).

    s falls and is above zero; k = 0 for a delta of zeros.
    """

    u: Matrix
    s: Matrix
    v: Matrix

    @property
    def norm(self) -> float:
        """Frobenius norm of the delta."""
        return math.sqrt(float((self.s**2).sum()))

    @property
    def rank(self) -> int:
        return len(self.s)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 for a delta of zeros."""
        if not self.rank:
            return 0.0
        share = self.s / self.s.sum()
        return math.exp(-float((share * np.log(share)).sum()))

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖² over the square of its largest singular value; 0 for a delta of zeros."""
        return float(((self.s / self.s[0]) ** 2).sum()) if self.rank else 0.0

    @property
    def leading(self) -> int:
        """How many directions, largest first, hold LEADING of the energy."""
        energy = np.cumsum(self.s**2)
        return int(np.searchsorted(energy, LEADING * energy[-1])) + 1 if self.rank else 0


@dataclass(frozen=True)
class Encounter:
    """Two deltas of one module, neither of them zero.

    `angles_out` are the principal angles between their column spaces, `angles_in` between their row spaces: degrees, rising,
    as many as the smaller rank. `inside` is the share of the first one's energy in the leading subspaces (U, V) of the
    second, ‖UᵀΔW₁V‖²/‖ΔW₁‖², and the other way round.
    """

    inner: float
    angles_out: tuple[float, ...]
    angles_in: tuple[float, ...]
    inside: tuple[float, float]


def cores(factors: Sequence[Factors]) -> list[Core]:
    """The deltas of one module, in the order given."""
    left = _triangle([pair.b for pair in factors])  # (p, R)
    right = _triangle([pair.a.T for pair in factors])  # (q, R)
    found, first = [], 0
    for pair in factors:
        last = first + pair.rank
        found.append(_core(left[:, first:last], right[:, first:last]))
        first = last
    return found


def encounter(one: Core, other: Core) -> Encounter:
    """How two deltas of one module lie to each other; the cores must come from one call of `cores`."""
    out = one.u.T @ other.u  # (k1, k2)
    into = one.v.T @ other.v  # (k1, k2)
    return Encounter(
        inner=float(one.s @ (out * into) @ other.s),
        angles_out=_angles(out),
        angles_in=_angles(into),
        inside=(
            _inside(one, out[:, : other.leading], into[:, : other.leading]),
            _inside(other, out[: one.leading].T, into[: one.leading].T),
        ),
    )


def _triangle(parts: Sequence[Array]) -> Matrix:
    """R of the thin QR of the columns of all `parts` (n, rᵢ) side by side: (min(n, Σrᵢ), Σrᵢ).

    First blocks of rows, which fit into the processor's cache, then the stacked triangles of the blocks (TSQR, Demmel et
    al. 2012, SIAM J. Sci. Comput. 34): as stable as one QR, and several times faster than one of long thin columns.
    """
    height, width = parts[0].shape[0], sum(part.shape[1] for part in parts)
    rows = max(_BLOCK_ROWS, 2 * width)
    blocks = -(-height // rows)
    rows = min(rows, height)
    stacked = np.zeros((blocks * rows, width))  # rows of zeros at the end change no R
    first = 0
    for part in parts:
        stacked[:height, first : first + part.shape[1]] = part
        first += part.shape[1]
    if blocks > 1:
        stacked = _r(stacked.reshape(blocks, rows, width)).reshape(-1, width)
    return _r(stacked)


def _r(matrix: Matrix) -> Matrix:
    """R of the QR of a matrix, or of each of a stack of them."""
    triangle: Any = np.linalg.qr(matrix, mode="r")  # numpy's types know only of (Q, R)
    found: Matrix = triangle
    return found


def _core(left: Matrix, right: Matrix) -> Core:
    """The SVD of left @ right.T from the SVD of a rank x rank matrix."""
    out, above = np.linalg.qr(left)
    into, below = np.linalg.qr(right)
    u, s, vt = np.linalg.svd(above @ below.T)
    kept = int((s > DROP * s[0]).sum()) if len(s) else 0
    return Core((out @ u)[:, :kept], s[:kept], (into @ vt.T)[:, :kept])


def _angles(products: Matrix) -> tuple[float, ...]:
    cosines = np.linalg.svd(products, compute_uv=False)
    return tuple(np.degrees(np.arccos(np.minimum(cosines, 1.0))).tolist())


def _inside(core: Core, out: Matrix, into: Matrix) -> float:
    """Share of the energy that is left between projections; out (k, l) and into (k, l) are products of the bases."""
    share = core.s / core.norm
    return min(1.0, float((((out.T * share) @ into) ** 2).sum()))
