"""The parents of a merge as stages: their low-rank pairs, their whole weights and biases, their DoRA magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from adapterhub.base import BaseModel, Verdict
from adapterhub.errors import FormatError, IncompatibleError, NotFoundError, UnsupportedError
from adapterhub.formats.keys import parse_key
from adapterhub.formats.peft import require_plain
from adapterhub.formats.safetensors import TensorInfo
from adapterhub.lora.adapter import Adapter
from adapterhub.lora.rows import Factored, Rows
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.stages import AdapterStage, Stage
from adapterhub.merge.weights import BaseWeights, DoraRows, matrix_shape, opened_base
from adapterhub.merge.whole import (
    WholeTensor,
    adds_up,
    all_whole,
    as_they_are,
    cannot_sum,
    kept_from,
    on_base,
    require_one_form,
    whole_reader,
    whole_tensors,
)
from adapterhub.store import Store
from adapterhub.words import some


@dataclass(frozen=True)
class Parents:
    """What a merge starts from: `recipe` names the base if its weights were needed."""

    recipe: Recipe
    stages: Mapping[str, Stage]
    whole: Mapping[str, WholeTensor]
    overridden: tuple[str, ...] = ()
    """In words, how parents don't fit the base, where that was allowed."""
    base: BaseModel | None = None
    """The base whose weights were needed."""


@contextmanager
def opened_parents(
    store: Store,
    adapters: Sequence[Adapter],
    recipe: Recipe,
    base: str | None,
    device: torch.device,
    *,
    allow_mismatch: bool = False,
) -> Iterator[Parents]:
    """The parents' stages, with the base open beside them where its weights are needed.

    Whether they are is for the parents and the recipe to say, not for `base`, so that a rebuild comes to the same.
    Raises UnsupportedError for what a merge would drop, IncompatibleError for a base that doesn't fit or whole weights
    of different shapes, UsageError or NotFoundError where a base is needed and not known.
    """
    _require_honoured(adapters, recipe)
    doras = [adapter for adapter in adapters if adapter.facts.kind == "dora"]
    kept, whole, by_value = _whole(adapters, recipe, device)
    if not doras and by_value:
        overridden: tuple[str, ...] = ()
        if base is not None:
            model = store.base_for(adapters[0].resolved, base)
            _, overridden = _fitting(store, adapters, model, allow_mismatch)
        stages = parent_stages(adapters, device, None, whole=whole)
        yield Parents(recipe, stages, as_they_are(whole) if kept is None else kept, overridden)
        return
    model = _base_of(store, adapters, base, list(whole))
    verdicts, overridden = _fitting(store, adapters, model, allow_mismatch)
    with opened_base(model, device) as weights:
        stages, tensors = stages_on(adapters, recipe, weights, verdicts)
        done = replace(recipe, base=model.fingerprint)
        yield Parents(done, stages, tensors, overridden, model)


def stages_on(
    adapters: Sequence[Adapter],
    recipe: Recipe,
    weights: BaseWeights,
    verdicts: Mapping[str, Verdict],
) -> tuple[dict[str, Stage], Mapping[str, WholeTensor]]:
    """The parents' stages with their base at hand, and the result's whole tensors: sums of values where those do.

    Args:
        verdicts: by digest, where the modules of each adapter lie in the base.
    """
    kept, whole, by_value = _whole(adapters, recipe, weights.device)
    dora = {
        one.resolved.digest: verdicts[one.resolved.digest]
        for one in adapters
        if one.facts.kind == "dora"
    }
    stages = parent_stages(
        adapters, weights.device, weights, whole=whole, values=by_value, dora=dora
    )
    if kept is not None or by_value:
        return stages, as_they_are(whole) if kept is None else kept
    lone = [name for name in whole if weights.counterpart(name) is None]
    if not adds_up(recipe, stages, lone):
        why = f"{weights.model.label} has no such weights to compare with."
        raise cannot_sum(lone, why, base=False)
    require_one_form(recipe, adapters, stages, list(whole))
    return stages, on_base(whole, weights)


def _whole(
    adapters: Sequence[Adapter], recipe: Recipe, device: torch.device
) -> tuple[dict[str, WholeTensor] | None, dict[str, TensorInfo], bool]:
    """(the whole tensors of the one adapter they are taken from, else those to merge, whether their values are summed)."""
    if recipe.saved_from is not None:
        return kept_from(adapters, recipe.saved_from, device), {}, True
    whole = all_whole(adapters)
    stages = parent_stages(adapters, device, None, whole=whole)
    return None, whole, adds_up(recipe, stages, list(whole))


def _require_honoured(adapters: Sequence[Adapter], recipe: Recipe) -> None:
    approximate = recipe.dora == "approximate"
    for adapter in adapters:
        if adapter.facts.kind == "dora" and not approximate:
            names = " ".join(one.label for one in adapters)
            raise UnsupportedError(
                f"{adapter.label} is a DoRA adapter: its delta depends on its base and is of full rank.",
                why="A merge with others, or with a weight, can't be a DoRA adapter again.",
                hint=f"Merge into a model, exactly: adapterhub export {names} --method {recipe.method} -o DIR"
                "   or into the best plain LoRA: --dora approximate",
            )
        require_plain(adapter.facts, adapter.label, "merged", dora=approximate, whole=True)


def _base_of(
    store: Store, adapters: Sequence[Adapter], base: str | None, whole: Sequence[str]
) -> BaseModel:
    """The base named, or the one that the first adapter belongs to of which that is known."""
    parents = [adapter.resolved for adapter in adapters]
    speaker = next(
        (p for p in parents if p.manifest.base.repo or store.known_fingerprint(p.digest)),
        parents[0],
    )
    try:
        return store.base_for(speaker, base)
    except NotFoundError as error:
        if base is None and whole:
            why = f"The base is needed, and not here: {error.what}"
            raise cannot_sum(whole, why, base=True) from None
        raise


def _fitting(
    store: Store, adapters: Sequence[Adapter], model: BaseModel, allow_mismatch: bool
) -> tuple[dict[str, Verdict], tuple[str, ...]]:
    """Where the modules of each adapter lie in the base, by digest; and what was overridden."""
    found = {}
    for adapter in adapters:
        verdict = store.require_fit(adapter.resolved, model, allow_mismatch=allow_mismatch)
        found[adapter.resolved.digest] = verdict
    reasons = [reason for verdict in found.values() if not verdict.ok for reason in verdict.reasons]
    return found, tuple(dict.fromkeys(reasons))


@dataclass(frozen=True)
class ParentStage:
    """A stored adapter: `pairs`, and beside them whole tensors by their names."""

    pairs: AdapterStage
    whole: Mapping[str, tuple[tuple[int, int], Callable[[], Rows]]]
    """(shape as rows, what opens it)."""
    dora: Callable[[str, Factored], Rows] | None

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        return {**self.pairs.shapes, **{name: shape for name, (shape, _) in self.whole.items()}}

    @property
    def largest_rank(self) -> int:
        return self.pairs.largest_rank

    def open(self, module: str) -> Rows | None:
        if module in self.whole:
            return self.whole[module][1]()
        delta = self.pairs.open(module)
        return self.dora(module, delta) if self.dora is not None and delta is not None else delta


def parent_stages(
    adapters: Sequence[Adapter],
    device: torch.device,
    base: BaseWeights | None,
    *,
    whole: Collection[str] = (),
    values: bool = False,
    dora: Mapping[str, Verdict] | None = None,
) -> dict[str, Stage]:
    """A stage for every adapter, by digest.

    Args:
        base: what whole tensors are taken against; without it, or with `values`, they are their values themselves.
        whole: the names of the whole tensors that take part.
        dora: by digest, where the modules of each DoRA adapter lie in `base`.
    """
    found: dict[str, Stage] = {}
    against = None if values else base
    for adapter in adapters:
        tensors = whole_tensors(adapter) if whole else {}
        readers = {
            name: (matrix_shape(info.shape), whole_reader(adapter, name, info, against, device))
            for name, info in tensors.items()
        }
        verdict = (dora or {}).get(adapter.resolved.digest)
        on_its_base = _dora_on(adapter, base, verdict) if base is not None and verdict else None
        found[adapter.resolved.digest] = ParentStage(
            AdapterStage(adapter, device), readers, on_its_base
        )
    return found


def _dora_on(
    adapter: Adapter, base: BaseWeights, verdict: Verdict
) -> Callable[[str, Factored], Rows]:
    names = {parse_key(name).canonical: name for name in adapter.file.infos}
    keys = {module: f"{module}.lora_magnitude_vector.weight" for module in adapter.modules}
    wrong = [
        module
        for module, key in keys.items()
        if key not in names
        or adapter.file.infos[names[key]].count != adapter.modules[module].out_features
    ]
    if wrong:
        raise FormatError(
            f"{adapter.label} is a DoRA adapter without a fitting magnitude for {some(wrong)}.",
            why="A DoRA adapter has one number for every output of every module.",
        )
    if lost := [module for module in adapter.modules if module not in verdict.placement]:
        raise IncompatibleError(
            f"{adapter.label} is a DoRA adapter, and {base.model.label} lacks what it changes.",
            why=f"What DoRA adds depends on the base's weights: {some(lost)}.",
            hint="Name the base it was trained on: --base FOLDER_OR_REPO",
        )

    def opened(module: str, delta: Factored) -> Rows:
        weight = base.rows(verdict.placement[module], transposed=module in verdict.transposed)
        values = adapter.file.floats(names[keys[module]], 0, delta.shape[0])
        return DoraRows(weight, delta, torch.from_numpy(values.copy()).to(delta.device))

    return opened
