"""Methods on the sphere, from the K x K Gram matrix Gᵢⱼ = <ΔWᵢ, ΔWⱼ> alone.

Each result lies in the span of the deltas, so it is its K coefficients: directions are unit vectors uᵢ = ΔWᵢ/||ΔWᵢ||, a
vector Σ xᵢuᵢ is x, and its inner products are xᵀCy with the cosines C. A delta of zeros has no direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adapterhub.errors import UnsupportedError
from adapterhub.merge.methods.sums import CANCELLED

Vector = npt.NDArray[np.float64]
_COLINEAR = 1e-13
"""1 - cos² below this is rounding noise of a Gram matrix in float64."""
_NO_LENGTH = 1e-6
"""A mean of unit vectors shorter than this is noise; so is how far from opposite a direction is, in radians."""


def slerp(
    gram: torch.Tensor, weights: Sequence[float], parameters: Mapping[str, Any]
) -> list[float]:
    """sin((1-t)θ)/sinθ and sin(tθ)/sinθ (Shoemake 1985); a straight line beyond `dot_threshold`."""
    return _great_circle(gram, parameters["t"], parameters["dot_threshold"])


def nuslerp(
    gram: torch.Tensor, weights: Sequence[float], parameters: Mapping[str, Any]
) -> list[float]:
    """slerp with t = w₁ / (w₀ + w₁), one half where the weights cancel."""
    total = weights[0] + weights[1]
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    return _great_circle(gram, t, parameters["dot_threshold"])


def multislerp(
    gram: torch.Tensor, weights: Sequence[float], parameters: Mapping[str, Any]
) -> list[float]:
    """Weighted in the tangent space at the Euclidean mean direction, put back by the exponential map."""
    if len(weights) == 1:
        return [1.0]
    w = np.array(weights)
    if parameters["normalize"]:
        if abs(w.sum()) <= CANCELLED * np.abs(w).sum():
            raise _no_mean("The weights add up to 0.")
        w = w / w.sum()
    cosines, norms = _cosines(gram)
    mean_norm = _norm(w, cosines)
    if mean_norm < 1e-8:
        if (
            np.count_nonzero(norms) <= 2
        ):  # opposite ones: a straight line is all there is between them
            return [float(x) for x in w]
        raise _no_mean("The weighted directions cancel.")
    mean = w / mean_norm
    # Σ wᵢ (uᵢ - <uᵢ, m> m), and <uᵢ, m> = (C·m)ᵢ
    tangent = w - (w @ (cosines @ mean)) * mean
    angle = _norm(tangent, cosines)
    result = math.cos(angle) * mean + np.sinc(angle / math.pi) * tangent
    return _back(result * float(w @ norms), norms)


def karcher(
    gram: torch.Tensor, weights: Sequence[float], parameters: Mapping[str, Any]
) -> list[float]:
    """The point of the sphere with the least weighted squared distance to all directions, times the mean norm."""
    cosines, norms = _cosines(gram)
    w = np.array(weights)
    there = norms > 0
    total = w[there].sum()
    if not there.any() or total == 0:
        return [0.0] * len(w)
    shares = np.where(there, w, 0.0) / total
    length = _norm(shares, cosines)
    tolerance = parameters["tolerance"]
    mean = (
        shares / length if length > max(tolerance, _NO_LENGTH) else np.eye(len(w))[np.argmax(there)]
    )
    for _ in range(parameters["max_iterations"]):
        dots = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(dots)
        # θ/sinθ, 1 at θ = 0; to an opposite direction there is no shortest way, so it doesn't pull
        ways = angles < math.pi - _NO_LENGTH
        factor = np.where(ways, shares, 0.0) / np.where(ways, np.sinc(angles / math.pi), 1.0)
        tangent = factor - (factor @ dots) * mean
        step = _norm(tangent, cosines)
        if step <= tolerance:
            break
        mean = math.cos(step) * mean + np.sinc(step / math.pi) * tangent
        mean = mean / _norm(mean, cosines)
    return _back(mean * float(w @ norms), norms)


def model_stock(
    gram: torch.Tensor, weights: Sequence[float], parameters: Mapping[str, Any]
) -> list[float]:
    """t/K each, with t = K·cosθ / (1 + (K-1)·cosθ) (Jang et al. 2024, equation 3 and appendix C)."""
    cosines, _ = _cosines(gram)
    count = len(cosines)
    cosine = float(cosines[np.triu_indices(count, 1)].mean())
    denominator = 1 + (count - 1) * cosine
    t = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return [t / count] * count


def _cosines(gram: torch.Tensor) -> tuple[Vector, Vector]:
    """(K, K) cosines, 0 with a delta of zeros, and the K norms."""
    inner = gram.numpy()
    norms = np.sqrt(np.maximum(np.diag(inner), 0.0))
    safe = np.where(norms > 0, norms, 1.0)
    cosines = np.clip(inner / np.outer(safe, safe), -1.0, 1.0)
    cosines[np.diag_indices_from(cosines)] = norms > 0
    return cosines, norms


def _great_circle(gram: torch.Tensor, t: float, dot_threshold: float) -> list[float]:
    cosines, norms = _cosines(gram)
    cosine = float(cosines[0, 1])
    colinear = abs(cosine) > dot_threshold or 1 - cosine**2 <= _COLINEAR
    if colinear or not norms.all():
        return [1.0 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def _norm(x: Vector, cosines: Vector) -> float:
    return math.sqrt(max(0.0, float(x @ cosines @ x)))


def _back(x: Vector, norms: Vector) -> list[float]:
    """From coefficients of the unit vectors to coefficients of the deltas."""
    return [float(v / n) if n > 0 else 0.0 for v, n in zip(x, norms, strict=True)]


def _no_mean(why: str) -> UnsupportedError:
    return UnsupportedError(
        "multislerp can't merge these adapters: their weighted mean has no direction.",
        why=why,
        hint="Choose other weights, or --method karcher",
    )
