"""Estimates against the merge itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from adapterhub.errors import UnsupportedError, UsageError
from adapterhub.lora.adapter import all_modules, opened
from adapterhub.merge.engine import Engine
from adapterhub.merge.estimate import Estimate, Estimator
from adapterhub.merge.parents import parent_stages
from adapterhub.merge.recipe import Recipe, Step, StepInput, make_recipe
from adapterhub.merge.report import Kept
from adapterhub.merge.schedule import parse_schedule
from adapterhub.merge.specs import methods
from adapterhub.store import Resolved, Store
from tests.merge.conftest import Merger, silent
from tests.support.adapters import EMBEDDING, llama_modules

torch = pytest.importorskip("torch")

SUMS = [name for name, spec in methods().items() if spec.family == "sum"]
ELEMENTWISE = [name for name, spec in methods().items() if spec.family == "elementwise"]
RANKS: tuple[str | int, ...] = (1, 3, 5, 8, "auto", "full", "energy=0.8", "energy=0.99")


@pytest.fixture
def parents(merger: Merger) -> list[Resolved]:
    """Three of different ranks and strengths that share some modules only."""
    made = (
        merger.adapter(modules=llama_modules(), rank=4, seed=1),
        merger.adapter(modules=llama_modules("q_proj", "v_proj", "up_proj"), rank=6, alpha=3, seed=2),
        merger.adapter(modules={**llama_modules("q_proj"), **EMBEDDING}, rank=2, alpha=40, seed=3),
    )  # fmt: skip
    return [merger.add(folder) for folder in made]


def recipe_of(method: str, parents: Sequence[Resolved], rank: str | int, **given: Any) -> Recipe:
    return make_recipe(method, [one.digest for one in parents], rank=rank, dtype="float32", **given)


def inputs_of(method: str, parents: list[Resolved]) -> list[Resolved]:
    """As many as the method takes."""
    return parents[: methods()[method].max_inputs]


def kept_by_the_engine(
    store: Store, parents: Sequence[Resolved], recipe: Recipe
) -> Mapping[str, Kept]:
    """What the real decomposition says of every number of directions, before anything is rounded."""
    with opened(store, parents, "merged") as adapters:
        engine = Engine(recipe, parent_stages(adapters, torch.device("cpu"), None), 1)
        result = engine.result()
        found = {}
        for name in all_modules(adapters):
            delta = result.open(name)
            assert delta is not None
            found[name] = engine._kept(name, engine._spectrum(delta, engine._cap(delta)))
        return found


def close(mine: Estimate, told: Mapping[str, Any]) -> None:
    """The report of a merge is rounded to six digits, and so is the estimate."""
    assert mine.rank == told["rank"]
    assert mine.energy_kept == pytest.approx(told["energy_kept"], abs=1.01e-6)
    assert mine.retained == pytest.approx(tuple(told["retained"]), abs=1.01e-6)
    assert (mine.subspace is None) == ("subspace" not in told)
    if mine.subspace is not None:
        assert mine.subspace == pytest.approx(tuple(told["subspace"]), abs=1.01e-6)
    assert mine.report is not None
    assert dict(mine.report.ranks) == {name: row["rank"] for name, row in told["modules"].items()}


@pytest.mark.parametrize("method", SUMS)
def test_a_sum_is_told_as_its_merge_reports_it_at_every_rank(
    merger: Merger, parents: list[Resolved], method: str
) -> None:
    mine = inputs_of(method, parents)
    estimator = Estimator.prepare(merger.store, mine, silent)
    for rank in RANKS:
        recipe = recipe_of(method, mine, rank)
        estimate = estimator.ask(recipe)
        assert not estimate.sampled
        close(estimate, merger.run(mine, recipe).report)


@pytest.mark.parametrize("method", SUMS)
def test_what_every_direction_keeps_is_the_decomposition_s_to_a_billionth(
    merger: Merger, parents: list[Resolved], method: str
) -> None:
    mine = inputs_of(method, parents)
    estimator = Estimator.prepare(merger.store, mine, silent)
    recipe = recipe_of(method, mine, "energy=1")
    estimator.ask(recipe)
    found = estimator._all_kept(recipe, estimator._weights(recipe))
    true = kept_by_the_engine(merger.store, mine, recipe)
    assert list(found) == list(true)
    for name, told in true.items():
        scale = max(told.energy, *told.norms)
        assert found[name].directions == told.directions
        assert found[name].energy == pytest.approx(told.energy, rel=1e-9)
        np.testing.assert_allclose(found[name].directions_energy, told.directions_energy, rtol=1e-9)
        np.testing.assert_allclose(found[name].norms, told.norms, rtol=1e-9)
        np.testing.assert_allclose(found[name].inner, told.inner, atol=1e-9 * scale)
        assert told.inside is not None
        np.testing.assert_allclose(
            np.array(found[name].inside), told.inside, atol=1e-9 * max(told.norms)
        )


def test_weights_of_any_size_and_sign_and_by_module_are_told_exactly(
    merger: Merger, parents: list[Resolved]
) -> None:
    estimator = Estimator.prepare(merger.store, parents, silent)
    gradient = parse_schedule([0.2, 1.5], "weights[0]", 1.0)
    rules = parse_schedule([{"modules": "q_proj", "value": -0.5}, {"value": 2.0}], "w", 1.0)
    for weights in ([1, 1, 1], [0.7, -0.3, 0], [0, 0, 0], [1e-5, 1, 30], [gradient, rules, 0.5]):
        for rank in ("auto", 4):
            recipe = recipe_of("task_arithmetic", parents, rank, weights=weights)
            close(estimator.ask(recipe), merger.run(parents, recipe).report)


def test_parents_in_another_order_or_twice_or_equal_are_told_in_that_order(
    merger: Merger, parents: list[Resolved]
) -> None:
    estimator = Estimator.prepare(merger.store, parents, silent)
    turned = parents[::-1]
    recipe = recipe_of("linear", turned, 5, weights=[1, 0.5, 0.2])
    close(estimator.ask(recipe), merger.run(turned, recipe).report)
    again = recipe_of("linear", [*parents, parents[0]], 5, weights=[1, 0.5, 0.2, 0.3])
    close(estimator.ask(again), merger.run(parents, again).report)
    whole = recipe_of("linear", [*parents, parents[0]], "full", weights=[1, 0.5, 0.2, 0.3])
    close(estimator.ask(whole), merger.run(parents, whole).report)


def test_parents_that_cancel_and_parents_of_zeros_are_told_as_the_merge_does(
    merger: Merger,
) -> None:
    one = merger.add(merger.adapter(seed=5))
    zeros = merger.add(merger.adapter(seed=6, scale=0.0))
    twin = merger.add(merger.adapter(seed=5, alpha=4))
    mine = [one, twin, zeros]
    estimator = Estimator.prepare(merger.store, mine, silent)
    for weights in ([1, -2, 1], [1, 1, 1], [0, 0, 1]):
        recipe = recipe_of("linear", mine, "auto", weights=weights)
        close(estimator.ask(recipe), merger.run(mine, recipe).report)


def test_what_the_rank_cuts_off_is_warned_of_as_the_merge_does(merger: Merger) -> None:
    strong = merger.add(merger.adapter(seed=1, rank=4, alpha=400))
    weak = merger.add(merger.adapter(seed=2, rank=4, alpha=4))
    recipe = recipe_of("linear", [strong, weak], 4, weights=[1, 1])
    estimate = Estimator.prepare(merger.store, [strong, weak], silent).ask(recipe)
    assert list(estimate.remarks) == merger.run([strong, weak], recipe).warnings
    assert "leaves out most of" in estimate.remarks[0]


def test_the_same_question_is_answered_from_memory_and_another_rank_needs_no_new_spectra(
    merger: Merger, parents: list[Resolved], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = Estimator.prepare(merger.store, parents, silent)
    first = estimator.ask(recipe_of("linear", parents, 4))
    assert estimator.ask(recipe_of("linear", parents, 4)) is first
    monkeypatch.setattr(torch.linalg, "eigh", None)
    assert (estimator.ask(recipe_of("linear", parents, 2)).energy_kept or 1) < (
        first.energy_kept or 0
    )


def test_weights_beyond_float32_are_refused_in_words(
    merger: Merger, parents: list[Resolved]
) -> None:
    estimator = Estimator.prepare(merger.store, parents, silent)
    with pytest.raises(Exception, match="beyond float32"):
        estimator.ask(recipe_of("linear", parents, 4, weights=[1e39, 1, 1]))
    with pytest.raises(UsageError, match="add up to 0"):
        estimator.ask(
            recipe_of("linear", parents, 4, weights=[1, -1, 0], parameters={"normalize": True})
        )
    steps = (Step("linear", (StepInput(parents[0].digest),), (1.0,), {}, rank=2),)
    with pytest.raises(UnsupportedError, match="one step"):
        estimator.ask(Recipe(steps))


def test_an_adapter_that_is_more_than_its_pairs_is_refused(merger: Merger) -> None:
    more = merger.add(merger.adapter(extra={"base_model.model.lm_head.weight": torch.ones(160, 64)}, modules_to_save=["lm_head"]))  # fmt: skip
    with pytest.raises(UnsupportedError, match="whole trained weights"):
        Estimator.prepare(merger.store, [more], silent)


@pytest.mark.parametrize("method", ELEMENTWISE)
def test_an_element_wise_merge_is_guessed_from_rows(merger: Merger, method: str) -> None:
    modules = dict.fromkeys(llama_modules("q_proj", "v_proj", layers=range(4)), (256, 96))
    mine = [
        merger.add(merger.adapter(modules=modules, rank=4, seed=seed, alpha=seed * 4))
        for seed in (1, 2)
    ]
    estimator = Estimator.prepare(merger.store, mine, silent, values=256 * 96 * 8 // 4)
    # Where the rank leaves little room, what the parents don't span competes with a weak parent: no row tells that.
    for rank, tolerance in (("full", 0.03), (64, 0.03), (8, 0.15), (3, 0.1)):
        recipe = recipe_of(method, mine, rank)
        estimate = estimator.ask(recipe)
        assert estimate.sampled
        assert (estimate.rows, estimate.of_rows) == (64 * 8, 256 * 8)
        told = merger.run(mine, recipe).report
        assert estimate.rank == told["rank"]
        assert estimate.subspace is None
        assert estimate.retained == pytest.approx(tuple(told["retained"]), abs=tolerance)
        assert estimate.energy_kept is not None
        assert estimate.energy_kept <= told["energy_kept"] + 0.03, "it is a bound from below"
