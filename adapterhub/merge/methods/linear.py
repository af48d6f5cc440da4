"""Methods whose result is a weighted sum of the parents' deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def coefficients(weights: Sequence[float], parameters: Mapping[str, float | str]) -> list[float]:
    """ΔW = Σ wᵢ ΔWᵢ: the weights themselves (Ilharco et al. 2023, section 2)."""
    return list(weights)
