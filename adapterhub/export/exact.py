"""What adapters add to a weight, computed a second time: in float64, from their stored factors and configuration.

Nothing here goes through the merge engine or the writer, so a mistake in either shows as a difference. Only where a
recipe is no plain weighted sum do the deltas come from its result: then the writing is checked, and not the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from adapterhub.formats.keys import parse_key
from adapterhub.formats.patterns import match_pattern
from adapterhub.lora.adapter import Adapter
from adapterhub.lora.rows import Factored, Rows, tiles
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.schedule import Schedule
from adapterhub.merge.stages import Stage, delta_of

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

FLOAT32 = 2.0**-24
"""The relative error of one rounding to float32, at most."""


@dataclass(frozen=True)
class Exact:
    """Values (n, m) in float64, and how far from each of them a computation in float32 may end."""

    values: Values
    slack: Values


class Delta(Protocol):
    """What is added to one weight, of which some outputs (rows of ΔW) or inputs (columns) can be had."""

    @property
    def by_outputs(self) -> bool:
        """Whether only outputs can be had."""
        ...

    def stretches(self, count: int) -> list[tuple[int, int]] | None:
        """[first, last) of what can be had together, where it can't be had one by one."""
        ...

    def at(self, indices: Indices, base: Values, *, outputs: bool) -> Exact:
        """The delta at these outputs, (n, in), or inputs, (n, out); `base` are the base's own values there."""
        ...


class Deltas(Protocol):
    """Where expected deltas come from."""

    @property
    def independent(self) -> bool:
        """Whether they are computed from the adapters alone, without the merge."""
        ...

    def of(self, module: str) -> Delta: ...


def deltas_of(recipe: Recipe, adapters: Sequence[Adapter], result: Stage) -> Deltas:
    """The deltas of `recipe`: from the adapters where it is a plain weighted sum, else from `result`, its last step."""
    weights = plain_weights(recipe)
    return FromMerge(result) if weights is None else FromAdapters(adapters, weights)


def plain_weights(recipe: Recipe) -> dict[str, float] | None:
    """digest -> c of ΔW = Σ c·ΔWᵢ; None where the recipe is anything else."""
    step = recipe.steps[0]
    numbers = [*step.weights, *step.parameters.values()]
    if len(recipe.steps) > 1 or step.rank is not None:
        return None
    if any(isinstance(number, Schedule) for number in numbers):
        return None
    given = [float(weight) for weight in step.weights if not isinstance(weight, Schedule)]
    match step.method:
        case "linear" | "cat":
            total = sum(given) if step.parameters.get("normalize") else 1.0
            found = [weight / total for weight in given]
        case "task_arithmetic":
            found = [step.parameters["lambda"] * weight for weight in given]
        case "negate":
            found = [-step.parameters["lambda"]]
        case "lerp":
            found = [1.0 - step.parameters["t"], step.parameters["t"]]
        case _:
            return None
    if len({one.digest for one in step.inputs}) < len(step.inputs):
        return None  # what cancels between two terms of one adapter is rounded where it is added, term by term
    return {str(one.digest): weight for one, weight in zip(step.inputs, found, strict=True)}


@dataclass(frozen=True)
class FromAdapters:
    """Σ c·ΔWᵢ, with ΔWᵢ = s·B·A, or what DoRA makes of that."""

    adapters: Sequence[Adapter]
    weights: Mapping[str, float]
    independent: bool = True

    def of(self, module: str) -> Delta:
        terms = [
            _term(adapter, module, self.weights[adapter.resolved.digest])
            for adapter in self.adapters
            if module in adapter.modules
        ]
        return Terms(terms)


@dataclass(frozen=True)
class FromMerge:
    """What a merge gives."""

    result: Stage
    independent: bool = False

    def of(self, module: str) -> Delta:
        delta = delta_of(self.result, module)
        if not isinstance(delta, Factored):
            return Tiled(delta)
        b, a = (side.cpu().double().numpy() for side in (delta.b, delta.a))
        return Terms([Term(b, a, 1.0)])


@dataclass(frozen=True)
class Term:
    """weight·B·A with the scale in B; with a magnitude (out,), weight·(m·(W + B·A)/||W + B·A|| - W) as in DoRA."""

    b: Values
    a: Values
    weight: float
    magnitude: Values | None = None


@dataclass(frozen=True)
class Terms:
    """Their sum."""

    terms: Sequence[Term]

    @property
    def by_outputs(self) -> bool:
        return any(term.magnitude is not None for term in self.terms)

    def stretches(self, count: int) -> list[tuple[int, int]] | None:
        return None

    def at(self, indices: Indices, base: Values, *, outputs: bool) -> Exact:
        values, slack = np.zeros_like(base), np.zeros_like(base)
        # A float32 product of rank r errs by at most r + 1 roundings of Σ|b||a|, each further term and the weight by one.
        roundings = sum(term.a.shape[0] for term in self.terms) + len(self.terms) + 3
        for term in self.terms:
            left, right = (term.b[indices], term.a) if outputs else (term.a.T[indices], term.b.T)
            product = _product(left, right)
            spread = _product(np.abs(left), np.abs(right))
            spread *= roundings * FLOAT32
            if term.magnitude is not None:
                product, spread = _dora(base, product, spread, term.magnitude[indices])
            values += term.weight * product
            slack += abs(term.weight) * spread
        return Exact(values, slack)


@dataclass(frozen=True)
class Tiled:
    """Rows of a merge, tile by tile as they are written: their last bits depend on the tile, so nothing is left open."""

    rows: Rows
    by_outputs: bool = True

    def stretches(self, count: int) -> list[tuple[int, int]] | None:
        return list(tiles(self.rows.shape))

    def at(self, indices: Indices, base: Values, *, outputs: bool) -> Exact:
        first, last = int(indices[0]), int(indices[-1]) + 1
        out = torch.empty(last - first, self.rows.shape[1], device=self.rows.device)
        self.rows.fill(first, last, out)
        values = out.cpu().double().numpy()
        return Exact(values, np.zeros_like(values))


def _term(adapter: Adapter, module: str, weight: float) -> Term:
    found = adapter.modules[module]
    b, a = (adapter.file.array(one.name).astype(np.float64) for one in (found.b, found.a))
    magnitude = None
    if adapter.facts.document.get("use_dora"):
        wanted = f"{module}.lora_magnitude_vector.weight"
        stored = next(key for key in adapter.file.infos if parse_key(key).canonical == wanted)
        magnitude = adapter.file.array(stored).astype(np.float64).reshape(-1)
    return Term(_scale(adapter, module, a.shape[0]) * b, a, weight, magnitude)


def _scale(adapter: Adapter, module: str, rank: int) -> float:
    """alpha/r, or alpha/√r (rsLoRA), by the configuration as it was stored."""
    document = adapter.facts.document
    patterns = document.get("alpha_pattern") or {}
    key = match_pattern(patterns, module)
    alpha = document.get("lora_alpha") if key is None else patterns[key]
    divisor = math.sqrt(rank) if document.get("use_rslora") else rank
    return float(8 if alpha is None else alpha) / divisor  # 8 is PEFT's default


def _product(left: Values, right: Values) -> Values:
    """left @ right. By torch, whose threads are those it was told; numpy's stand in the way of those that verify."""
    found: Values = torch.mm(*map(torch.from_numpy, (left, right))).numpy()
    return found


def _dora(base: Values, delta: Values, slack: Values, magnitude: Values) -> tuple[Values, Values]:
    """(m·V/||V|| - W, how far float32 may be from it), V = W + delta, norms per output.

    Liu et al. 2024, DoRA, arXiv:2402.09353, equation 5.
    """
    whole = base + delta
    norms = np.linalg.norm(whole, axis=1, keepdims=True)
    share = magnitude[:, None] / np.maximum(norms, np.finfo(np.float32).tiny)
    scaled = share * whole
    # A float32 norm of n values errs by some √n roundings; sum, quotient, product and difference add a few.
    roundings = math.sqrt(base.shape[1]) + 8
    open_ = np.abs(share) * slack + FLOAT32 * (roundings * np.abs(scaled) + np.abs(base))
    return scaled - base, open_
