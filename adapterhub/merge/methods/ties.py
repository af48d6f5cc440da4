"""TIES-Merging (Yadav et al. 2023, arXiv:2306.01708, algorithm 1), streamed.

A weight scales its adapter: merging ΔW with weight w is merging w·ΔW with weight 1, so the paper's algorithm runs on
the τᵢ = wᵢΔWᵢ unchanged. Trim keeps the ⌊density·N⌋ largest magnitudes (and all equal to the smallest of them), N being
the elements of the modules that the adapter changes; elect takes sgn(Σᵢ τ̂ᵢ), nothing where that is 0; merge averages
the τ̂ᵢ that carry the elected sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from adapterhub.merge.deltas import Delta
from adapterhub.merge.select import magnitude_thresholds

Kernel = Callable[[str, list[torch.Tensor | None]], torch.Tensor]
"""(module, the parents' rows of it or None) -> the merged rows."""


def prepare(
    parents: Sequence[Mapping[str, Delta]],
    weights: Sequence[float],
    parameters: Mapping[str, float | str],
    *,
    workers: int | None = None,
    done: Callable[[], None] = lambda: None,
) -> Kernel:
    """Finds the trim thresholds (two passes over all deltas) and returns the element-wise kernel."""
    density, scope = float(parameters["density"]), str(parameters["trim_scope"])
    thresholds = [
        magnitude_thresholds(
            parent, density, per_module=scope == "module", workers=workers, done=done
        )
        for parent in parents
    ]
    return partial(
        merge_rows, weights=list(weights), thresholds=thresholds, scale=float(parameters["lambda"])
    )


def merge_rows(
    module: str,
    rows: list[torch.Tensor | None],
    *,
    weights: list[float],
    thresholds: list[dict[str, float]],
    scale: float,
) -> torch.Tensor:
    """Rows of the merged delta. `rows[i]` (n, in) are parent i's, None where it doesn't change `module`."""
    trimmed = []
    for block, weight, threshold in zip(rows, weights, thresholds, strict=True):
        if block is not None:
            trimmed.append(torch.where(block.abs() >= threshold[module], block * weight, 0.0))
    stacked = torch.stack(trimmed)  # (K, n, in)
    # In float64, so that deltas which cancel elect nothing, whatever their order.
    elected = stacked.sum(dim=0, dtype=torch.float64).sign()
    agrees = (stacked.sign() == elected) & (elected != 0)
    total = torch.where(agrees, stacked, 0.0).sum(dim=0)
    return total * (scale / agrees.sum(dim=0).clamp(min=1))
