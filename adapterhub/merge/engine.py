"""Recipe and parents to merged deltas, and merged deltas to an adapter of a chosen rank.

The merged delta of a module is an object that gives rows (for export, untruncated) and its best approximation of any
rank (for an adapter). Sums stay factored and never become dense; element-wise methods are streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import torch

from adapterhub.lora.adapter import Adapter, all_modules
from adapterhub.lora.dense import RowSource, best_rank, whole
from adapterhub.lora.lowrank import Spectrum, decompose, stack
from adapterhub.lora.parallel import for_each
from adapterhub.merge.deltas import Delta, load
from adapterhub.merge.recipe import SERVABLE_RANKS, Recipe

AUTO_ENERGY = 0.99
"""`--rank auto` keeps at least this share of the energy, if a rank up to its cap does."""
AUTO_CAP = 64


class MergedDelta(RowSource, Protocol):
    """One module of the result."""

    def spectrum(self, rank: int) -> Spectrum:
        """Its best approximation of at most `rank`."""
        ...

    def full(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors (b, a) of the delta, nothing cut off."""
        ...


@dataclass(frozen=True)
class SumDelta:
    """Σ wᵢ·bᵢ@aᵢ, factored."""

    shape: tuple[int, int]
    b: torch.Tensor
    a: torch.Tensor

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self.b[first:last] @ self.a

    def spectrum(self, rank: int) -> Spectrum:
        return decompose(self.b, self.a).cut(rank)

    def full(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.b, self.a


@dataclass(frozen=True)
class ElementwiseDelta:
    """A function of the parents' rows, computed when they are asked for."""

    module: str
    shape: tuple[int, int]
    parents: tuple[Delta | None, ...]
    kernel: Callable[[str, list[torch.Tensor | None]], torch.Tensor]

    def rows(self, first: int, last: int) -> torch.Tensor:
        return self.kernel(self.module, [p.rows(first, last) if p else None for p in self.parents])

    def spectrum(self, rank: int) -> Spectrum:
        return best_rank(self, rank)

    def full(self) -> tuple[torch.Tensor, torch.Tensor]:
        out, width = self.shape
        dense = whole(self)
        return (dense, torch.eye(width)) if width <= out else (torch.eye(out), dense)


@dataclass(frozen=True)
class ModuleReport:
    """How much of a module's merged delta the result holds. Energies are squared Frobenius norms."""

    module: str
    rank: int
    energy: float
    kept: float

    @property
    def share(self) -> float:
        """Share of the energy kept, 1 for an empty delta."""
        return min(1.0, self.kept / self.energy) if self.energy > 0 else 1.0


@dataclass(frozen=True)
class MergedAdapter:
    """The factors of the result, scale 1, float32, with what the truncation cost."""

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    modules: tuple[ModuleReport, ...]

    @property
    def rank(self) -> int:
        return max(report.rank for report in self.modules)

    @property
    def energy_kept(self) -> float:
        """Share of the energy of the whole merged delta."""
        total = sum(report.energy for report in self.modules)
        return min(1.0, sum(report.kept for report in self.modules) / total) if total > 0 else 1.0

    @property
    def error(self) -> float:
        """||merged - result|| / ||merged|| over all modules, by the truncation."""
        return float(max(0.0, 1.0 - self.energy_kept) ** 0.5)


@dataclass(frozen=True)
class Engine:
    """Runs a recipe on opened parents. The result is bit-identical for any number of `workers`."""

    recipe: Recipe
    adapters: Sequence[Adapter]
    workers: int | None = None
    advance: Callable[[], None] = field(default=lambda: None)

    @property
    def preparing_steps(self) -> int:
        """How often `advance` is called by `deltas`."""
        streamed = self.recipe.spec.family == "elementwise"
        if not streamed or float(self.recipe.parameters.get("density", 1.0)) >= 1:
            return 0
        return 2 * sum(len(adapter.modules) for adapter in self.adapters)

    @property
    def steps(self) -> int:
        """How often `advance` is called by `deltas` and `adapter` together."""
        return self.preparing_steps + len(all_modules(self.adapters))

    def deltas(self) -> dict[str, MergedDelta]:
        """The merged delta of every module, as objects; element-wise thresholds are found here."""
        parents = load(self.adapters)
        module, _, name = self.recipe.spec.kernel.partition(":")
        kernel: Any = getattr(import_module(module), name)
        if self.recipe.spec.family == "sum":
            weights = kernel(self.recipe.weights, self.recipe.parameters)
            return {module: _sum(module, parents, weights) for module in all_modules(self.adapters)}
        prepared = kernel(
            parents,
            self.recipe.weights,
            self.recipe.parameters,
            workers=self.workers,
            done=self.advance,
        )
        merged: dict[str, MergedDelta] = {}
        for module in all_modules(self.adapters):
            found = tuple(parent.get(module) for parent in parents)
            shape = next(delta.shape for delta in found if delta is not None)
            merged[module] = ElementwiseDelta(module, shape, found, prepared)
        return merged

    def adapter(self, deltas: Mapping[str, MergedDelta]) -> MergedAdapter:
        """The result as an adapter of the recipe's rank."""
        names = sorted(deltas)
        if self.recipe.rank == "full":
            factors = for_each(
                names, lambda name: deltas[name].full(), workers=self.workers, done=self.advance
            )
            reports = [
                ModuleReport(name, b.shape[1], 1.0, 1.0)
                for name, (b, _) in zip(names, factors, strict=True)
            ]
            return MergedAdapter(dict(zip(names, factors, strict=True)), tuple(reports))
        cap = self._auto_cap() if self.recipe.rank == "auto" else int(self.recipe.rank)
        spectra = for_each(
            names, lambda name: deltas[name].spectrum(cap), workers=self.workers, done=self.advance
        )
        rank = _auto_rank(spectra, cap) if self.recipe.rank == "auto" else cap
        chosen = {name: spectrum.cut(rank) for name, spectrum in zip(names, spectra, strict=True)}
        return MergedAdapter(
            {name: (spectrum.b, spectrum.a) for name, spectrum in chosen.items()},
            tuple(ModuleReport(name, s.b.shape[1], s.energy, s.kept) for name, s in chosen.items()),
        )

    def _auto_cap(self) -> int:
        ranks = [module.rank for adapter in self.adapters for module in adapter.modules.values()]
        return max(AUTO_CAP, *ranks)


def _sum(module: str, parents: Sequence[Mapping[str, Delta]], weights: Sequence[float]) -> SumDelta:
    terms = [
        (weight, parent[module].b, parent[module].a)
        for weight, parent in zip(weights, parents, strict=True)
        if module in parent
    ]
    b, a = stack(terms)
    return SumDelta((b.shape[0], a.shape[1]), b, a)


def _auto_rank(spectra: Sequence[Spectrum], cap: int) -> int:
    """The smallest servable rank that keeps AUTO_ENERGY of all modules together, else the largest allowed."""
    total = sum(spectrum.energy for spectrum in spectra)
    allowed = [rank for rank in SERVABLE_RANKS if rank <= cap]
    for rank in allowed:
        if sum(spectrum.cut(rank).kept for spectrum in spectra) >= AUTO_ENERGY * total:
            return rank
    return allowed[-1]
