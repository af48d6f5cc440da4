"""Sums with given weights."""

from __future__ import annotations

from collections.abc import Sequence

from tests.oracles.parents import Parameters, number
from tests.support.dense import Deltas, weighted_sum


def linear(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Σ wᵢ ΔWᵢ; with `normalize` the weights are divided by their sum (Wortsman et al. 2022, arXiv:2203.05482)."""
    total = sum(weights) if parameters["normalize"] else 1.0
    return weighted_sum(parents, [weight / total for weight in weights])


def task_arithmetic(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """λ Σ wᵢ ΔWᵢ (Ilharco et al. 2023, arXiv:2212.04089)."""
    return weighted_sum(parents, [number(parameters, "lambda") * weight for weight in weights])


def negate(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """-λ ΔW of the only parent."""
    return weighted_sum(parents, [-number(parameters, "lambda")])


def lerp(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """(1-t) ΔW₀ + t ΔW₁."""
    t = number(parameters, "t")
    return weighted_sum(parents, [1 - t, t])


def cat(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Σ wᵢ ΔWᵢ: PEFT stacks the factors, [w₁s₁B₁ | w₂s₂B₂]·[A₁; A₂]."""
    return weighted_sum(parents, weights)
