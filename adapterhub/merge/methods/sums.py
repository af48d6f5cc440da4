"""Methods whose coefficients are given: ΔW = Σ cᵢ ΔWᵢ. No Gram matrix is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adapterhub.errors import UsageError

Coefficients = list[float]
CANCELLED = 1e-9
"""Weights whose sum is less than this share of their magnitudes cancel, but for rounding."""


def linear(
    gram: torch.Tensor | None, weights: Sequence[float], parameters: Mapping[str, Any]
) -> Coefficients:
    """The weights themselves, or divided by their sum."""
    if not parameters.get("normalize", False):
        return list(weights)
    total = sum(weights)
    if abs(total) <= CANCELLED * sum(map(abs, weights)):
        raise UsageError(
            "The weights add up to 0, so they can't be normalised.",
            why=f"They are {list(weights)}.",
            hint="Leave --normalize out, or choose other weights.",
        )
    return [weight / total for weight in weights]


def task_arithmetic(
    gram: torch.Tensor | None, weights: Sequence[float], parameters: Mapping[str, Any]
) -> Coefficients:
    """λ·wᵢ (Ilharco et al. 2023, section 2)."""
    return [parameters["lambda"] * weight for weight in weights]


def negate(
    gram: torch.Tensor | None, weights: Sequence[float], parameters: Mapping[str, Any]
) -> Coefficients:
    """-λ."""
    return [-parameters["lambda"]]


def lerp(
    gram: torch.Tensor | None, weights: Sequence[float], parameters: Mapping[str, Any]
) -> Coefficients:
    """1 - t and t."""
    return [1.0 - parameters["t"], parameters["t"]]
