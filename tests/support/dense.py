"""What adapters mean, worked out densely in float64 from the raw files: the reference the product is held against.

Nothing here calls the product. Files are read with safetensors and json, scales are computed from the configuration, and
every method is written out on whole matrices from its paper.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file

Matrix = npt.NDArray[np.float64]
Deltas = dict[str, Matrix]
"""Module -> ΔW (out, in), float64."""

_FACTOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?"
)


def read_factors(
    folder: Path, *, others: dict[str, Matrix] | None = None
) -> dict[str, tuple[Matrix, Matrix, float]]:
    """Module -> (B, A, s) of a PEFT folder. Fails on a rank the file contradicts, and on any tensor that is no factor,
    unless `others` is there to take those, by the names of the base's parameters."""
    config = json.loads((folder / "adapter_config.json").read_text())
    sides: dict[str, dict[str, Matrix]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        match = _FACTOR.fullmatch(name)
        if match is None and others is not None:
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            assert plain not in others, f"{plain} is there twice"
            others[plain] = tensor.double().numpy()
            continue
        assert match is not None, f"{name} is no factor"
        sides.setdefault(match["module"], {})[match["side"]] = tensor.double().numpy()
    found = {}
    for module, pair in sides.items():
        rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
        alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        assert pair["A"].shape[0] == pair["B"].shape[1] == rank, f"{module} is not of rank {rank}"
        found[module] = (
            pair["B"],
            pair["A"],
            alpha / (math.sqrt(rank) if config.get("use_rslora") else rank),
        )
    return found


def read_deltas(folder: Path) -> Deltas:
    """Module -> s·B·A of a PEFT folder."""
    return {module: s * (b @ a) for module, (b, a, s) in read_factors(folder).items()}


def read_parts(folder: Path) -> tuple[Deltas, dict[str, Matrix]]:
    """The deltas of a PEFT folder, and its other tensors (whole weights, biases, magnitudes) by the base's names."""
    others: dict[str, Matrix] = {}
    factors = read_factors(folder, others=others)
    return {module: s * (b @ a) for module, (b, a, s) in factors.items()}, others


def weighted_sum(parents: Sequence[Deltas], weights: Sequence[float]) -> Deltas:
    """Σ wᵢ ΔWᵢ, a module that a parent lacks being zero there."""
    total: Deltas = {}
    for parent, weight in zip(parents, weights, strict=True):
        for module, delta in parent.items():
            total[module] = total.get(module, np.zeros_like(delta)) + weight * delta
    return total


@dataclass(frozen=True)
class Ties:
    """The merged task vector, and which elements float32 can't decide (module -> mask)."""

    merged: Deltas
    undecided: dict[str, npt.NDArray[np.bool_]]

    @property
    def count(self) -> int:
        return sum(int(mask.sum()) for mask in self.undecided.values())


def ties(
    parents: Sequence[Deltas],
    weights: Sequence[float],
    *,
    density: float,
    factor: float = 1.0,
    scope: str = "model",
    tolerance: float = 1e-5,
) -> Ties:
    """Algorithm 1 of Yadav et al. 2023 (arXiv:2306.01708) on τᵢ = wᵢ ΔWᵢ; `factor` is its λ.

    Elements are undecided when they lie on both sides of their parent's trim threshold within `tolerance` (relative) of
    it, so that rounding could swap them, and where the trimmed parents cancel to within `tolerance`, so that the elected
    sign is rounding.
    """
    modules = sorted({module for parent in parents for module in parent})
    shapes = {module: delta.shape for parent in parents for module, delta in parent.items()}
    undecided = {module: np.zeros(shapes[module], bool) for module in modules}
    trimmed: list[Deltas] = []
    for parent, weight in zip(parents, weights, strict=True):
        tau = {module: weight * delta for module, delta in parent.items()}
        groups = [sorted(tau)] if scope == "model" else [[module] for module in tau]
        kept: Deltas = {}
        for group in groups:
            values = np.abs(np.concatenate([tau[module].ravel() for module in group]))
            keep = max(1, math.floor(Fraction(str(density)) * len(values)))
            ordered = np.sort(values)
            threshold = ordered[len(values) - keep]
            swappable = (
                keep < len(values)
                and ordered[len(values) - keep - 1] >= threshold * (1 - tolerance) > 0
            )
            for module in group:
                size = np.abs(tau[module])
                kept[module] = np.where(size >= threshold, tau[module], 0.0)
                if swappable:
                    undecided[module] |= np.abs(size - threshold) <= tolerance * threshold
        trimmed.append(kept)
    merged: Deltas = {}
    for module in modules:
        stack = np.stack([parent[module] for parent in trimmed if module in parent])  # (K, out, in)
        mass = stack.sum(axis=0)
        elected = np.sign(mass)
        undecided[module] |= (np.abs(mass) <= tolerance * np.abs(stack).sum(axis=0)) & (mass != 0)
        agrees = (np.sign(stack) == elected) & (elected != 0)
        mean = np.where(agrees, stack, 0.0).sum(axis=0) / np.maximum(agrees.sum(axis=0), 1)
        merged[module] = factor * mean
    return Ties(merged, undecided)


def norm(deltas: Mapping[str, Matrix]) -> float:
    """Frobenius norm over all modules."""
    return math.sqrt(sum(float((delta**2).sum()) for delta in deltas.values()))


def distance(
    found: Deltas, expected: Deltas, *, apart: Mapping[str, npt.NDArray[np.bool_]] | None = None
) -> float:
    """||found - expected|| / ||expected||, elements of the mask `apart` aside; both must have the same modules."""
    assert found.keys() == expected.keys()
    difference = {module: found[module] - expected[module] for module in expected}
    if apart is not None:
        difference = {
            module: np.where(apart[module], 0.0, delta) for module, delta in difference.items()
        }
    size = norm(expected)
    return norm(difference) / size if size > 0 else norm(difference)


def change_of_gauge(
    factors: Mapping[str, tuple[Matrix, Matrix, float]], *, seed: int, condition: float = 50.0
) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """(B·R, R⁻¹·A) for a random R of the given condition number in every module; scales are left to the configuration."""
    changed = {}
    for place, (module, (b, a, _)) in enumerate(sorted(factors.items())):
        random = np.random.default_rng((seed, place))
        rank = a.shape[0]
        left, _ = np.linalg.qr(random.standard_normal((rank, rank)))
        right, _ = np.linalg.qr(random.standard_normal((rank, rank)))
        spread = np.logspace(0, math.log10(condition), rank) if rank > 1 else np.array([condition])
        changed[module] = (b @ (left * spread) @ right, (right.T / spread) @ left.T @ a)
    return changed


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """As PEFT does: the first key that, as a regular expression, matches a dotted suffix of the module's name."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
