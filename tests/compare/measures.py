"""What two dense matrices have in common, in float64 by definitions: the reference `diff` is held against."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.dense import Matrix

Mask = npt.NDArray[np.bool_]
NOISE = 1e-6  # singular values below this share of the largest are rounding of float32 factors


def singular_values(delta: Matrix) -> npt.NDArray[np.floating[Any]]:
    values = np.linalg.svd(delta, compute_uv=False)
    return values[values > NOISE * values[0]] if values[0] > 0 else values[:0]


def effective_rank(delta: Matrix) -> float:
    share = singular_values(delta) / singular_values(delta).sum()
    return math.exp(-sum(p * math.log(p) for p in share.tolist()))


def stable_rank(delta: Matrix) -> float:
    return float((delta**2).sum() / np.linalg.norm(delta, 2) ** 2)


def angles(one: Matrix, other: Matrix) -> list[float]:
    """Principal angles between the column spaces in degrees, from the product of the orthogonal projectors onto them."""
    count = min(len(singular_values(one)), len(singular_values(other)))
    projectors = [delta @ np.linalg.pinv(delta, rcond=NOISE) for delta in (one, other)]
    cosines = np.linalg.svd(projectors[0] @ projectors[1], compute_uv=False)[:count]
    return [math.degrees(math.acos(min(1.0, cosine))) for cosine in cosines.tolist()]


def inside(one: Matrix, other: Matrix) -> float:
    """Share of the energy of `one` between the singular vectors of `other` that hold 90% of its energy."""
    u, s, vt = np.linalg.svd(other)
    energy, k = 0.0, 0
    while energy < 0.9 * float((s**2).sum()):
        energy, k = energy + float(s[k]) ** 2, k + 1
    between = u[:, :k] @ u[:, :k].T @ one @ vt[:k].T @ vt[:k]
    return float((between**2).sum() / (one**2).sum())


def top_fifth(delta: Matrix) -> tuple[Mask, Mask]:
    """Which elements are among the ⌊N/5⌋ largest (and all equal to the smallest of them); and which float32 can't tell."""
    size = np.abs(delta)
    least = np.sort(size, axis=None)[delta.size - max(1, delta.size // 5)]
    near = np.abs(size - least) <= 3e-6 * least
    return size >= least, near & (near.sum() > 1)  # one alone is the threshold itself


def signs(one: Matrix, other: Matrix) -> tuple[float, float, float]:
    """Rates of opposite signs, of all and of both top fifths; and how far rounding to float32 may move them."""
    both = (one != 0) & (other != 0)
    opposed = both & (np.sign(one) != np.sign(other))
    (first, near), (second, close) = top_fifth(one), top_fifth(other)
    top = first & second
    small = (np.abs(one) < 1e-6 * np.abs(one).max()) | (np.abs(other) < 1e-6 * np.abs(other).max())
    unsure = float((small | near | close).sum()) / max(1, int(top.sum()))
    return float(opposed.sum() / both.sum()), float((opposed & top).sum() / top.sum()), unsure
