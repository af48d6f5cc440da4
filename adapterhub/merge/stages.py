"""A recipe while it runs: stages that give the delta of any module when asked, and hold none.

A stored adapter is a stage; so is each step of a recipe, made from the stages it takes. What stays of low rank stays in
factors through all steps; what doesn't is computed tile by tile.

A kernel of the family `sum` is called as `kernel(gram, weights, parameters)` and gives the coefficients: `gram` is the
(K, K) float64 Gram matrix, None unless the method requires it. One of the family `elementwise` is called as
`kernel(job)` and gives an `Opener`; what needs all modules at once it works out there and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from threading import local
from typing import Any, Protocol

import torch

from adapterhub.lora.adapter import Adapter
from adapterhub.lora.inner import gram, spread, stacked
from adapterhub.lora.lowrank import Spectrum, total
from adapterhub.lora.rows import Factored, Rows
from adapterhub.merge.methods.combining import WeightedSum
from adapterhub.merge.recipe import Step
from adapterhub.merge.schedule import value_at
from adapterhub.merge.select import Each

Opener = Callable[[str, Sequence[Rows | None]], Rows]
"""(module, the inputs' deltas of it, None where an input doesn't change it; one does) -> the merged delta."""
Shapes = Mapping[str, tuple[int, int]]


class Stage(Protocol):
    """Deltas by module."""

    @property
    def shapes(self) -> Shapes:
        """(out, in) of every module that it changes."""
        ...

    def open(self, module: str) -> Rows | None:
        """The delta of a module, read or prepared for as long as it is worked on; None where there is none."""
        ...


def delta_of(stage: Stage, module: str) -> Rows:
    """The delta of a module that the stage is known to change; LookupError where it doesn't."""
    delta = stage.open(module)
    if delta is None:
        raise LookupError(f"no delta of {module}")
    return delta


@dataclass(frozen=True)
class Job:
    """What a kernel gets to know: the step, its inputs, and a way to do something for many modules at once."""

    step: Step
    inputs: Sequence[Stage]
    first: int
    """The number of the step's first input, counted through all steps: what random masks are keyed by."""
    layers: int
    """Layers of the model, over which gradients are spread."""
    seed: int
    each: Each

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.step.parameters

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The modules that any input changes, in order of their names."""
        found = {name: shape for stage in self.inputs for name, shape in stage.shapes.items()}
        return dict(sorted(found.items()))

    def weights(self, module: str) -> list[float]:
        """One an input; ones for a method that takes no weights."""
        given = self.step.weights or [1.0] * len(self.inputs)
        return [value_at(weight, module, self.layers) for weight in given]

    def parameter(self, name: str, module: str) -> Any:
        """The value for `module`."""
        return value_at(self.parameters[name], module, self.layers)

    def parameters_at(self, module: str) -> dict[str, Any]:
        return {name: self.parameter(name, module) for name in self.parameters}


@dataclass(frozen=True)
class AdapterStage:
    """The low-rank pairs of a stored adapter."""

    adapter: Adapter
    device: torch.device
    _last: local = field(default_factory=local, compare=False, repr=False)

    @property
    def shapes(self) -> Shapes:
        return {name: (m.out_features, m.in_features) for name, m in self.adapter.modules.items()}

    @property
    def largest_rank(self) -> int:
        return max(module.rank for module in self.adapter.modules.values())

    def open(self, module: str) -> Factored | None:
        if module not in self.adapter.modules:
            return None
        # One thread works on one module for a while, and opens it for the merge and for what it keeps of it.
        name, delta = getattr(self._last, "opened", ("", None))
        if name != module:
            factors = self.adapter.factors(module)
            sides = (torch.from_numpy(side).to(self.device) for side in (factors.b, factors.a))
            delta = Factored(*sides)
            self._last.opened = module, delta
        return delta


class SumStage:
    """Σ cᵢ ΔWᵢ: factored if all inputs are."""

    def __init__(self, job: Job, grams: Callable[[str], torch.Tensor] | None = None) -> None:
        """`grams` gives the inputs' Gram matrix of a module, where it is known without opening them."""
        self._job = job
        self.inputs = job.inputs
        self.shapes: Shapes = job.shapes
        self._kernel = _kernel(job.step)
        self._whole: torch.Tensor | None = None
        if self._needs_gram and job.parameters.get("scope") == "model":
            found = grams or (lambda name: gram(self._open(name)))
            self._whole = torch.stack(job.each(list(job.shapes), found)).sum(0)

    @property
    def _needs_gram(self) -> bool:
        return "gram" in self._job.step.spec.requires

    def _open(self, module: str) -> list[Rows | None]:
        return [stage.open(module) for stage in self._job.inputs]

    def coefficients(self, module: str, matrix: torch.Tensor | None = None) -> list[float]:
        """One an input, for `module`; `matrix` is the inputs' Gram matrix there, for methods that need one."""
        given = matrix if self._whole is None else self._whole
        found: list[float] = self._kernel(
            given, self._job.weights(module), self._job.parameters_at(module)
        )
        return found

    def open(self, module: str) -> Rows | None:
        if module not in self.shapes:
            return None
        inputs = self._open(module)
        there = [delta for delta in inputs if delta is not None]
        stack = stacked(there)
        matrix = None
        if self._needs_gram and self._whole is None:
            matrix = spread(stack.gram(), inputs) if stack else gram(inputs)
        pairs = zip(inputs, self.coefficients(module, matrix), strict=True)
        weights = [weight for delta, weight in pairs if delta is not None]
        return total(stack, weights) if stack else WeightedSum(there, weights)


class ElementwiseStage:
    """A function of the inputs' deltas, element by element."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.shapes: Shapes = job.shapes
        opener: Opener = _kernel(job.step)(job)
        self._opener = opener

    def open(self, module: str) -> Rows | None:
        if module not in self.shapes:
            return None
        return self._opener(module, [stage.open(module) for stage in self._job.inputs])


@dataclass(frozen=True)
class CutStage:
    """Another stage's deltas at their best approximation of a rank; whole tensors, which have no rank, are left whole.

    What was cut is kept: a later step may pass over it several times, and factors are small.
    """

    inner: Stage
    rank: int
    best: Callable[[Rows, int], Spectrum]
    whole: Collection[str]
    _kept: dict[str, Factored] = field(default_factory=dict, compare=False, repr=False)
    _energies: dict[str, tuple[float, float]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def shapes(self) -> Shapes:
        return self.inner.shapes

    @property
    def energy_kept(self) -> float:
        """The share of the energy that is left, of all modules opened so far."""
        before = math.fsum(before for before, _ in self._energies.values())
        kept = math.fsum(kept for _, kept in self._energies.values())
        return min(1.0, kept / before) if before > 0 else 1.0

    def open(self, module: str) -> Rows | None:
        if module in self._kept:
            return self._kept[module]
        delta = self.inner.open(module)
        if delta is None or module in self.whole:
            return delta
        found = self.best(delta, self.rank)
        self._energies[module] = found.energy, float((found.values**2).sum())
        return self._kept.setdefault(module, Factored(found.b, found.a))


def make_stage(job: Job) -> Stage:
    """The stage of a step, prepared."""
    return SumStage(job) if job.step.spec.family == "sum" else ElementwiseStage(job)


def _kernel(step: Step) -> Any:
    module, _, name = step.spec.kernel.partition(":")
    return getattr(import_module(module), name)
