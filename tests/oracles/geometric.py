"""Methods on the sphere: a parent is a vector, of one module or (`scope` model) of all modules together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from tests.oracles.parents import Parameters, Vector, number, stacks
from tests.support.dense import Deltas


def slerp(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Shoemake 1985: sin((1-t)θ)/sinθ ΔW₀ + sin(tθ)/sinθ ΔW₁, θ the angle between the two.

    On a straight line where |cosθ| > `dot_threshold`, and where a parent is zero and makes no angle.
    """
    t, threshold = number(parameters, "t"), number(parameters, "dot_threshold")

    def merge(vectors: list[Vector]) -> Vector:
        one, other = vectors
        cosine = _cosine(one, other)
        if cosine is None or abs(cosine) > threshold:
            return _straight(one, other, t)
        return _arc(one, other, t, cosine)

    return _by_scope(parents, parameters, merge)


def nuslerp(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """mergekit's NuSLERP, flattened: slerp at t = w₁/(w₀+w₁).

    On a straight line where |cosθ| > `dot_threshold`, and in any case where 1 - cos²θ <= 1e-16.
    """
    total, threshold = weights[0] + weights[1], number(parameters, "dot_threshold")
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total

    def merge(vectors: list[Vector]) -> Vector:
        one, other = vectors
        cosine = _cosine(one, other)
        if cosine is None or abs(cosine) > threshold or 1 - cosine**2 <= 1e-16:
            return _straight(one, other, t)
        return _arc(one, other, t, cosine)

    return _by_scope(parents, parameters, merge)


def multislerp(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """mergekit's multislerp: interpolation in the tangent space at the weighted mean of the unit vectors.

    A unit vector is taken into the tangent space by orthogonal projection, u - <u,m>m, and the weighted sum of those
    back by the exponential map; then times Σ wᵢ‖ΔWᵢ‖. That sum is zero for every input (test_paper.py), so what is left
    is the direction of the mean. ValueError where three or more directions cancel out.
    """
    coefficients = np.asarray(weights, dtype=np.float64)
    if parameters["normalize"]:
        coefficients = coefficients / coefficients.sum()

    def merge(vectors: list[Vector]) -> Vector:
        if len(vectors) == 1:
            return vectors[0]
        norms = [float(np.linalg.norm(vector)) for vector in vectors]
        if not any(norms):
            return vectors[0]
        units = [_unit(vector) for vector in vectors]
        mean = _weighted(coefficients, units)
        if np.linalg.norm(mean) < 1e-8:
            if np.count_nonzero(norms) <= 2:
                return _weighted(coefficients, vectors)
            raise ValueError("the directions cancel out")
        mean = _unit(mean)
        tangent = _weighted(coefficients, [unit - (unit @ mean) * mean for unit in units])
        return float(coefficients @ norms) * _exponential(mean, tangent)

    return _by_scope(parents, parameters, merge)


def karcher(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Karcher 1977: the point m of the sphere with Σ wᵢ log_m(uᵢ) = 0, times Σ wᵢ‖ΔWᵢ‖.

    From the normalised mean (the first direction where the directions cancel out to within `tolerance`), steps of
    Σ wᵢ log_m(uᵢ) along the sphere until one is shorter than `tolerance`, at most `max_iterations`. Parents of norm zero
    have no direction; the weights of the others are made to sum to 1. ValueError where a direction is opposite to m and
    has no logarithm.
    """
    limit, tolerance = int(number(parameters, "max_iterations")), number(parameters, "tolerance")

    def merge(vectors: list[Vector]) -> Vector:
        norms = [float(np.linalg.norm(vector)) for vector in vectors]
        directed = [place for place, norm in enumerate(norms) if norm > 0]
        if len(vectors) == 1 or not directed:
            return weights[0] * vectors[0]
        units = [_unit(vectors[place]) for place in directed]
        coefficients = np.array([weights[place] for place in directed])
        coefficients = coefficients / coefficients.sum()
        mean = _weighted(coefficients, units)
        mean = units[0] if np.linalg.norm(mean) < tolerance else _unit(mean)
        for _ in range(limit):
            step = _weighted(coefficients, [_logarithm(mean, unit, tolerance) for unit in units])
            if np.linalg.norm(step) < tolerance:
                break
            mean = _unit(_exponential(mean, step))
        return float(np.dot(weights, norms)) * mean

    return _by_scope(parents, parameters, merge)


def model_stock(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Jang et al. 2024 (arXiv:2403.19522): t times the mean, t = K cosθ / (1 + (K-1) cosθ).

    cosθ is the mean of the cosines of all pairs, 0 with a zero parent. t = 0 where the denominator is below 1e-6.
    """

    def merge(vectors: list[Vector]) -> Vector:
        count = len(vectors)
        cosine = float(np.mean([_cosine(*pair) or 0.0 for pair in combinations(vectors, 2)]))
        denominator = 1 + (count - 1) * cosine
        t = count * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
        mean: Vector = np.mean(vectors, axis=0)
        return t * mean

    return _by_scope(parents, parameters, merge)


def _by_scope(
    parents: Sequence[Deltas], parameters: Parameters, merge: Callable[[list[Vector]], Vector]
) -> Deltas:
    """`merge` of every module's vectors, or of the vectors that all modules make together."""
    whole = stacks(parents)
    groups = [list(whole)] if parameters["scope"] == "model" else [[module] for module in whole]
    merged: Deltas = {}
    for group in groups:
        vectors = [
            np.concatenate([whole[module][place].ravel() for module in group])
            for place in range(len(parents))
        ]
        result, start = merge(vectors), 0
        for module in group:
            shape = whole[module].shape[1:]
            merged[module] = result[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
    return merged


def _cosine(one: Vector, other: Vector) -> float | None:
    """None where one of them is zero."""
    if not one.any() or not other.any():
        return None
    return float(np.clip(_unit(one) @ _unit(other), -1, 1))


def _unit(vector: Vector) -> Vector:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


def _weighted(coefficients: Vector, vectors: list[Vector]) -> Vector:
    total: Vector = np.einsum("i,ij->j", coefficients, np.stack(vectors))
    return total


def _straight(one: Vector, other: Vector, t: float) -> Vector:
    return (1 - t) * one + t * other


def _arc(one: Vector, other: Vector, t: float, cosine: float) -> Vector:
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)


def _exponential(point: Vector, tangent: Vector) -> Vector:
    """Where a walk of length ‖tangent‖ along the sphere from `point` ends."""
    length = float(np.linalg.norm(tangent))
    if length == 0:
        return point
    return math.cos(length) * point + math.sin(length) / length * tangent


def _logarithm(point: Vector, unit: Vector, tolerance: float) -> Vector:
    """The tangent at `point` along which the walk ends at `unit`; zero for an angle below `tolerance`."""
    cosine = float(np.clip(point @ unit, -1, 1))
    angle = math.acos(cosine)
    if angle < tolerance:
        return np.zeros_like(point)
    if math.pi - angle < 1e-7:
        raise ValueError("a direction is opposite to the mean")
    return angle / math.sin(angle) * (unit - cosine * point)
