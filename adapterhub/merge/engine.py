"""Recipe and stages to an adapter of a chosen rank, with what it keeps of the merge and of each parent.

Modules are worked on one by one, several at a time; each is read, merged, decomposed and put aside before the next, so
that memory depends on the largest module and not on the model. The result is bit-identical for any number of workers
and any memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch

from adapterhub.errors import FormatError
from adapterhub.lora.dense import best_rank
from adapterhub.lora.inner import gram
from adapterhub.lora.lowrank import Spectrum, decompose
from adapterhub.lora.memory import Memory
from adapterhub.lora.parallel import for_each
from adapterhub.lora.rows import Factored, Rows, whole
from adapterhub.merge.ranks import auto_cap, chosen_ranks
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.report import Kept, MergeReport
from adapterhub.merge.schedule import count_layers
from adapterhub.merge.spool import Spool
from adapterhub.merge.stages import CutStage, Job, Stage, delta_of, make_stage

T = TypeVar("T")

DENSE_CAP = 512
"""Directions looked for where `energy=SHARE` is asked of a delta that isn't of low rank."""


@dataclass
class Engine:
    """Runs a recipe on the stages of its parents, by digest."""

    recipe: Recipe
    parents: Mapping[str, Stage]
    workers: int | None = None
    memory: Memory = field(default_factory=Memory)
    progress: Callable[[float], None] = lambda _: None
    """Called with the number of modules worked through, as it happens."""
    _cuts: dict[str, CutStage] = field(default_factory=dict, init=False)
    """Of the steps that have a rank of their own, by name."""

    def each(self, items: Sequence[str], work: Callable[[str], T]) -> list[T]:
        """[work(item) for item in items], several at a time, counted as progress."""
        return for_each(items, work, workers=self.workers, done=lambda: self.progress(1))

    def result(self) -> Stage:
        """The last step, prepared; what earlier steps and the method need of all modules at once is worked out here."""
        found: dict[str, Stage] = {}
        uncut = {name for stage in self.parents.values() for name in getattr(stage, "whole", ())}
        stage: Stage | None = None
        first = 0
        for step in self.recipe.steps:
            inputs = [
                self.parents[one.digest] if one.digest is not None else found[str(one.step)]
                for one in step.inputs
            ]
            job = Job(step, inputs, first, self._layers, self.recipe.seed, self.each)
            stage = make_stage(job)
            if step.rank is not None:
                stage = self._cuts[step.name] = CutStage(stage, step.rank, self._spectrum, uncut)
            found[step.name] = stage
            first += len(inputs)
        assert stage is not None, "a recipe has a step"
        return stage

    @property
    def looks_at_all_modules(self) -> bool:
        """Whether `result` passes over all modules, which may take long."""
        steps = self.recipe.steps
        return any(
            s.parameters.get("trim_scope") == "model" or s.parameters.get("scope") == "model"
            for s in steps
        )

    def factors(self, result: Stage, spool: Spool, names: Sequence[str]) -> MergeReport:
        """Puts the factors of the modules `names` into `spool` and decides their ranks."""
        if self.recipe.rank == "full":
            kept = self.each(names, partial(self._put_whole, result, spool))
            ranks = [one.directions for one in kept]
        else:
            kept = self.each(names, partial(self._put, result, spool))
            ranks = chosen_ranks(self.recipe.rank, kept, self._auto_cap)
        cuts = {name: stage.energy_kept for name, stage in self._cuts.items()}
        return MergeReport.of(dict(zip(names, kept, strict=True)), ranks, list(self.parents), cuts)

    def _put(self, result: Stage, spool: Spool, module: str) -> Kept:
        delta = delta_of(result, module)
        try:
            spectrum = self._spectrum(delta, self._cap(delta))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise FormatError(
                f"The merged {module} can't be decomposed: its values are beyond float32.",
                why=str(error),
                hint="Look at the weights, at lambda, and at what is compared: adapterhub diff",
            ) from error
        spool.put(module, spectrum.b, spectrum.a)
        return self._kept(module, spectrum)

    def _put_whole(self, result: Stage, spool: Spool, module: str) -> Kept:
        """Nothing cut off: the stacked factors, or the dense delta beside an identity."""
        delta = delta_of(result, module)
        stages = [stage.open(module) for stage in self.parents.values()]
        inner = gram([delta, *stages])
        if isinstance(delta, Factored):
            b, a = delta.b, delta.a
        else:
            dense = whole(delta)
            out, width = dense.shape
            b, a = (dense, torch.eye(width)) if width <= out else (torch.eye(out), dense)
        spool.put(module, b, a)
        return Kept.all_of(inner.numpy(), b.shape[1])

    def _kept(self, module: str, spectrum: Spectrum) -> Kept:
        """What each number of directions keeps of the merge and of the parents."""
        energies = (spectrum.values**2).cumsum(0).cpu().numpy()
        norms, inner, inside = [], [], []
        roots = spectrum.values.clamp(min=0).sqrt()
        safe = torch.where(roots > 0, roots, 1.0)
        for stage in self.parents.values():
            delta = stage.open(module)
            if delta is None:
                norms.append(0.0)
                inner.append(np.zeros(len(energies)))
                inside.append(np.zeros(len(energies)))
                continue
            norm, small = spectrum.seen(delta)
            norms.append(norm)
            inner.append(small.diagonal().cumsum(0).cpu().numpy())
            squares = (small / safe[:, None] / safe[None, :]) ** 2  # of U'ΔWV
            inside.append(squares.cumsum(0).cumsum(1).diagonal().cpu().numpy())
        return Kept(spectrum.energy, energies, norms, inner, inside)

    def _spectrum(self, delta: Rows, rank: int) -> Spectrum:
        if isinstance(delta, Factored):
            return decompose(delta, rank)
        return best_rank(delta, rank, self.memory)

    def _cap(self, delta: Rows) -> int:
        """The most directions that the result may have."""
        rank = self.recipe.rank
        if isinstance(rank, int):
            return rank
        if rank == "auto":
            return self._auto_cap
        return delta.rank if isinstance(delta, Factored) else DENSE_CAP

    @cached_property
    def _auto_cap(self) -> int:
        return auto_cap(getattr(stage, "largest_rank", 0) for stage in self.parents.values())

    @cached_property
    def _layers(self) -> int:
        return count_layers(name for stage in self.parents.values() for name in stage.shapes)
