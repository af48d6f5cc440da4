"""What a merge would keep, before it is done: prepared once for a set of adapters, then asked as often as a slider moves.

A sum of adapters is told exactly, as the merge itself would report it: all that takes is small matrices, worked out once.
An element-wise merge is told from a sample of rows.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

from adapterhub.errors import FormatError, UnsupportedError
from adapterhub.lora.adapter import Adapter, all_modules, opened
from adapterhub.lora.inner import Stack
from adapterhub.lora.parallel import for_each, one_thread
from adapterhub.lora.rows import Factored, Rows
from adapterhub.merge.ranks import auto_cap, chosen_ranks
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.remarks import lost_parents, strangers
from adapterhub.merge.report import Kept, MergeReport
from adapterhub.merge.sampled import VALUES, Sample
from adapterhub.merge.schedule import count_layers
from adapterhub.merge.select import in_turn
from adapterhub.merge.spectra import Products, Spectra
from adapterhub.merge.stages import Job, Shapes, SumStage
from adapterhub.store import Resolved, Store

T = TypeVar("T")
ProgressFactory = Callable[[str, float | None], AbstractContextManager[Any]]

_REMEMBERED = 16
"""Answers, and spectra of weights, that are kept."""


@dataclass(frozen=True)
class Estimate:
    """What a merge would report. `retained` and `subspace` are in the order of the recipe's parents; None is not known."""

    rank: int | None
    energy_kept: float | None
    retained: tuple[float | None, ...]
    subspace: tuple[float | None, ...] | None
    sampled: bool
    """Told from a sample of rows; then `energy_kept` is at least what is said, and `rows` of `of_rows` were looked at."""
    cut: bool = True
    """Whether `retained` is that of the result at its rank, rather than of the merged delta before the cut."""
    rows: int = 0
    of_rows: int = 0
    report: MergeReport | None = None
    """All of it, where it is exact."""
    remarks: tuple[str, ...] = ()
    """What the merge would warn of."""


@dataclass(frozen=True)
class _Known:
    """A parent of which only shapes are at hand."""

    shapes: Shapes

    def open(self, module: str) -> Rows | None:
        raise LookupError(f"{module} isn't open")


class Estimator:
    """Answers for one set of adapters. Safe to ask from several threads."""

    def __init__(
        self,
        store: Store,
        parents: Sequence[Resolved],
        spectra: Spectra,
        shapes: Sequence[Shapes],
        cap: int,
        remarks: Sequence[str],
        values: int,
    ) -> None:
        self._store, self.parents = store, tuple(parents)
        self._spectra, self._cap, self._values = spectra, cap, values
        self._places = {parent.digest: place for place, parent in enumerate(parents)}
        self._known = [_Known(one) for one in shapes]
        self._layers = count_layers(spectra.products)
        self._remarks = tuple(remarks)
        self._sample: Sample | None = None
        self._kept, self._answers = _Recent[dict[str, Kept]](), _Recent[Estimate]()
        self._lock = Lock()

    @classmethod
    def prepare(
        cls,
        store: Store,
        parents: Sequence[Resolved],
        progress: ProgressFactory,
        *,
        values: int = VALUES,
    ) -> Estimator:
        """Reads the adapters once. UnsupportedError for one that is more than its low-rank pairs.

        Args:
            values: elements of each adapter that are looked at for an element-wise method.
        """
        parents = list({parent.digest: parent for parent in parents}.values())
        with opened(store, parents, "estimated") as adapters:
            names = all_modules(adapters)
            with progress("Reading the adapters", len(names)) as bar:
                found = for_each(
                    names, lambda name: _products(name, adapters), workers=None, done=bar.advance
                )
            shapes = [
                {name: (m.out_features, m.in_features) for name, m in one.modules.items()}
                for one in adapters
            ]
            cap = auto_cap(max(m.rank for m in one.modules.values()) for one in adapters)
            remarks = list(strangers(adapters))
        with one_thread():
            spectra = Spectra(dict(zip(names, found, strict=True)))
        return cls(store, parents, spectra, shapes, cap, remarks, values)

    def ask(self, recipe: Recipe, progress: ProgressFactory | None = None) -> Estimate:
        """What `recipe` would give; its parents are those that this was prepared for, in any order.

        UnsupportedError for a recipe of several steps. The first question about an element-wise method reads rows.
        """
        if len(recipe.steps) != 1 or recipe.steps[0].rank is not None:
            raise UnsupportedError("Only a recipe of one step can be estimated.")
        key = json.dumps([recipe.document(), recipe.seed], sort_keys=True)
        return self._answers.get(key, lambda: self._answer(recipe, progress))

    def _answer(self, recipe: Recipe, progress: ProgressFactory | None) -> Estimate:
        if recipe.steps[0].spec.family == "sum":
            with one_thread():
                return self._exact(recipe)
        sample = self._rows(progress)
        found = sample.guess(recipe)
        return Estimate(
            found.rank,
            found.energy_kept,
            found.retained,
            None,
            sampled=True,
            cut=found.cut,
            rows=sample.rows,
            of_rows=sample.of_rows,
            remarks=self._remarks,
        )

    # Sums: exact

    def _exact(self, recipe: Recipe) -> Estimate:
        weights = self._weights(recipe)
        try:
            kept = self._all_kept(recipe, weights)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise FormatError(
                "The merge can't be decomposed: its values are beyond float32.",
                why=str(error),
                hint="Look at the weights, and at lambda.",
            ) from error
        order = [self._places[digest] for digest in recipe.parents]
        told = {name: _ordered(one, order) for name, one in kept.items()}
        ranks = (
            [one.directions for one in told.values()]
            if recipe.rank == "full"
            else chosen_ranks(recipe.rank, list(told.values()), self._cap)
        )
        report = MergeReport.of(told, ranks, recipe.parents, {})
        document = report.document()
        subspace = document.get("subspace")
        labels = [self.parents[place].label for place in order]
        return Estimate(
            document["rank"],
            document["energy_kept"],
            tuple(document["retained"]),
            tuple(subspace) if subspace is not None else None,
            sampled=False,
            report=report,
            remarks=(*self._remarks, *lost_parents(recipe, document, labels)),
        )

    def _all_kept(
        self, recipe: Recipe, weights: Mapping[str, Sequence[float]]
    ) -> Mapping[str, Kept]:
        if recipe.rank == "full":
            inputs = [self._places[str(one.digest)] for one in recipe.steps[0].inputs]
            directions = {
                name: sum(one.ranks[place] for place in inputs)
                for name, one in self._spectra.products.items()
            }
            return self._spectra.uncut(weights, directions)
        key = json.dumps(list(weights.values()))
        return self._kept.get(key, lambda: self._spectra.kept(weights))

    def _weights(self, recipe: Recipe) -> dict[str, list[float]]:
        """The coefficient of each parent, by module: the method's own kernel on the Gram matrices."""
        (step,) = recipe.steps
        places = [self._places[str(one.digest)] for one in step.inputs]
        products = self._spectra.products

        def gram(name: str) -> torch.Tensor:
            return products[name].gram[places][:, places]

        known = [self._known[place] for place in places]
        stage = SumStage(Job(step, known, 0, self._layers, recipe.seed, in_turn), gram)
        found = {}
        for name in products:
            weights = [0.0] * len(self.parents)
            for place, one in zip(places, stage.coefficients(name, gram(name)), strict=True):
                weights[place] += one
            found[name] = weights
        return found

    # Element by element: sampled

    def _rows(self, progress: ProgressFactory | None) -> Sample:
        with self._lock:
            if self._sample is None:
                total = len(self._spectra.products)
                with opened(self._store, self.parents, "estimated") as adapters:
                    if progress is None:
                        found = Sample.draw(adapters, self._cap, values=self._values)
                    else:
                        with progress("Reading a sample of rows", total) as bar:
                            found = Sample.draw(
                                adapters, self._cap, values=self._values, done=bar.advance
                            )
                self._sample = found
            return self._sample


class _Recent(Generic[T]):
    """The answers given last, by question."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, T] = OrderedDict()
        self._changing = Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The answer to `key`, made where it isn't there."""
        with self._changing:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()
        with self._changing:
            self._found[key] = made
            while len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return made


def _products(name: str, adapters: Sequence[Adapter]) -> Products:
    factors = [one.factors(name) if name in one.modules else None for one in adapters]
    parts = [
        Factored(torch.from_numpy(one.b), torch.from_numpy(one.a)) for one in factors if one is not None
    ]  # fmt: skip
    return Products.of(Stack(parts), tuple(one.rank if one is not None else 0 for one in factors))


def _ordered(kept: Kept, order: Sequence[int]) -> Kept:
    """The parents in another order."""
    return Kept(
        kept.energy,
        kept.directions_energy,
        [kept.norms[place] for place in order],
        [kept.inner[place] for place in order],
        None if kept.inside is None else [kept.inside[place] for place in order],
    )
