"""Recipes of several steps: a step takes an earlier one's result whole, and the last one's is the merge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.torch import load_file

from adapterhub.export.run import export
from tests.merge.conftest import silent
from tests.merge.recipes import Cook
from tests.oracles import ORACLES, resolved, undecided
from tests.support.adapters import llama_modules
from tests.support.dense import Deltas, distance

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.merge.recipe import Recipe, Step
    from tests.merge.conftest import Merger
    from tests.oracles.masks import Mask

SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"rank": 4, "modules": llama_modules("q_proj", "v_proj")},
    "b": {"rank": 9, "modules": llama_modules("q_proj", "up_proj"), "use_rslora": True},
    "c": {"rank": 2, "modules": llama_modules("q_proj", "up_proj", "o_proj"), "alpha": 3},
}

STEPS = {
    "factored into factored": """
  - {name: x, method: slerp, adapters: [a, b], parameters: {t: 0.3}}
  - {method: karcher, adapters: [{step: x, weight: 2}, c]}""",
    "factored into dense": """
  - {name: x, method: task_arithmetic, adapters: [a, b], weights: [1, -0.5]}
  - {method: ties, adapters: [{step: x}, c], parameters: {density: 0.4}}""",
    "dense into a sum": """
  - {name: x, method: ties, adapters: [a, b], parameters: {density: 0.4}}
  - {method: linear, adapters: [{step: x, weight: 0.7}, {adapter: c, weight: -1}]}""",
    "dense into a sum that measures": """
  - {name: x, method: breadcrumbs, adapters: [a, b], parameters: {density: 0.5}}
  - {method: multislerp, adapters: [{step: x, weight: 0.7}, {adapter: c, weight: 0.2}]}""",
    "dense into a sum that measures the whole model": """
  - {name: x, method: ties, adapters: [a, b]}
  - {method: slerp, adapters: [{step: x}, c], parameters: {scope: model, t: 0.4}}""",
    "dense into dense": """
  - {name: x, method: ties, adapters: [a, b], parameters: {density: 0.6}}
  - {method: ties, adapters: [{step: x, weight: 2}, c], parameters: {density: 0.3}}""",
    "dense into dense by module": """
  - {name: x, method: magnitude_prune, adapters: [a, b], parameters: {density: 0.6}}
  - {method: sce, adapters: [{step: x}, c], parameters: {select_topk: 0.5}}""",
    "a whole model's sum before a whole model's trim": """
  - {name: x, method: model_stock, adapters: [a, b, c], parameters: {scope: model}}
  - {method: breadcrumbs_ties, adapters: [{step: x}, c], parameters: {trim_scope: model, density: 0.5}}""",
    "three steps, one of them twice": """
  - {name: x, method: ties, adapters: [a, b], parameters: {density: 0.5}}
  - {name: y, method: negate, adapters: [{step: x}]}
  - {method: ties, adapters: [{step: y, weight: 0.5}, {step: x}, c], parameters: {trim_scope: module, density: 0.7}}""",
    "chance after chance": """
  - {name: x, method: dare_linear, adapters: [a, b], parameters: {density: 0.5}}
  - {name: y, method: dare_ties, adapters: [{step: x}, c], parameters: {trim_scope: module, trim: 0.6}}
  - {method: della, adapters: [{step: y}, a], parameters: {density: 0.6}}
seed: 11""",
    "a cut sum": """
  - {name: x, method: linear, adapters: [a, b], rank: 3}
  - {method: linear, adapters: [{step: x}, c]}""",
    "a cut that is dense": """
  - {name: x, method: ties, adapters: [a, b], rank: 5, parameters: {density: 0.5}}
  - {method: linear, adapters: [{step: x, weight: 2}, c]}""",
    "a cut before a trim": """
  - {name: x, method: ties, adapters: [a, b], rank: 5, parameters: {density: 0.5}}
  - {method: ties, adapters: [{step: x}, c], parameters: {trim_scope: module, density: 0.5}}""",
    "a cut at the end": """
  - {method: ties, adapters: [a, b], rank: 5, parameters: {density: 0.5}}""",
}  # fmt: skip
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def dense(recipe: Recipe, parents: dict[str, Deltas]) -> tuple[Deltas, dict[str, Mask]]:
    """The recipe on whole float64 matrices, and the elements that rounding may have decided otherwise."""
    found: dict[str, tuple[Deltas, dict[str, Mask]]] = {}
    before = 0
    for step in recipe.steps:
        inputs = [
            (parents[one.digest], {}) if one.digest else found[str(one.step)] for one in step.inputs
        ]
        deltas, weights = [d for d, _ in inputs], weights_of(step)
        if step.method in RANDOM:  # inputs that were there before are counted
            deltas, weights = [{} for _ in range(before)] + deltas, [0.0] * before + weights
        before += len(inputs)
        parameters = resolved(step.method, **step.parameters)
        merged = ORACLES[step.method](deltas, weights, parameters, recipe.seed)
        apart = undecided(step.method, deltas, weights, parameters, recipe.seed)
        for _, masks in inputs:
            apart |= {module: apart[module] | mask for module, mask in masks.items()}
        if step.rank is not None:
            merged = {module: best(delta, step.rank) for module, delta in merged.items()}
        found[step.name] = merged, apart
    return found[recipe.steps[-1].name]


def weights_of(step: Step) -> list[float]:
    """One an input; no case here has schedules."""
    return [float(weight) for weight in step.weights or [1.0] * len(step.inputs)]  # type: ignore[arg-type]


def best(delta: Any, rank: int) -> Any:
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.fixture
def cook(merger: Merger) -> Cook:
    return Cook(merger, {n: merger.adapter(seed=s, **SETTINGS[n]) for s, n in enumerate(SETTINGS)})


def expected(cook: Cook, text: str) -> tuple[Deltas, dict[str, Mask]]:
    by_digest = {cook.parents[name].digest: cook.deltas[name] for name in SETTINGS}
    return dense(cook.recipe(text), by_digest)


@pytest.mark.parametrize("case", STEPS)
def test_steps_are_the_methods_one_after_another(cook: Cook, case: str) -> None:
    text = f"steps:{STEPS[case]}"
    wanted, apart = expected(cook, text)
    assert sum(mask.sum() for mask in apart.values()) <= 1e-3 * sum(m.size for m in apart.values())
    assert distance(cook(text).deltas, wanted, apart=apart) < 2e-5


@pytest.mark.parametrize(
    "case", ["dense into dense", "chance after chance", "a cut before a trim", "factored into factored"]
)  # fmt: skip
def test_steps_have_the_same_bits_for_any_workers_and_memory(cook: Cook, case: str) -> None:
    text = f"steps:{STEPS[case]}"
    first = cook(text, workers=1)
    assert cook(text, workers=3, memory=1).content == first.content
    if "seed" in text:
        assert cook(text.replace("seed: 11", "seed: 12")).content != first.content


def test_a_step_keeps_what_a_merge_of_its_own_would_cut_off(cook: Cook) -> None:
    """Two ranks of 4 and 9 make 13 in q_proj: nothing of that is lost on the way."""
    whole = cook("steps:\n  - {name: x, method: cat, adapters: [a, b]}\n  - {method: linear, adapters: [{step: x}]}")  # fmt: skip
    at_once = cook("method: cat\nadapters: [a, b]")
    assert distance(whole.deltas, at_once.deltas) < 1e-6


def test_a_cut_by_rank_ends_where_it_says(cook: Cook) -> None:
    merged = cook(f"steps:{STEPS['a cut at the end']}")
    for delta in merged.deltas.values():
        assert np.linalg.matrix_rank(delta, tol=1e-5) == 5
    assert set(merged.report["modules"]) == set(merged.deltas)


def test_what_a_step_cuts_off_is_told(cook: Cook) -> None:
    text = f"steps:{STEPS['a cut before a trim']}"
    first = "steps:\n  - {method: ties, adapters: [a, b], parameters: {density: 0.5}}"
    deltas, _ = expected(cook, first)
    before = sum(float((delta**2).sum()) for delta in deltas.values())
    kept = sum(float((best(delta, 5) ** 2).sum()) for delta in deltas.values())
    told = cook(text).report["steps"]
    assert told == {"x": {"energy_kept": pytest.approx(kept / before, abs=1e-5)}}
    assert "steps" not in cook("method: ties\nadapters: [a, b]").report


def test_a_recipe_of_steps_is_exported_untruncated(
    cook: Cook, tiny_llama: Path, tmp_path: Path
) -> None:
    text = f"steps:{STEPS['dense into dense']}\nrank: 1\n"
    wanted, apart = expected(cook, text)
    recipe = cook.recipe(text)
    parents = [next(p for p in cook.parents.values() if p.digest == d) for d in recipe.parents]
    export(
        cook.merger.store, parents, recipe, tmp_path / "model", base=str(tiny_llama), progress=silent
    )  # fmt: skip
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tiny_llama, tmp_path / "model")
    )
    added = {name: (after[name].double() - before[name].double()).numpy() for name in before}
    changed = {n.removesuffix(".weight"): d for n, d in added.items() if d.any()}
    assert changed.keys() == wanted.keys()
    for module, delta in wanted.items():
        error = np.where(apart[module], 0.0, changed[module] - delta)
        assert np.abs(error).max() <= 1e-6, "one rounding of the float32 weight"
