"""Weights and parameters that differ from module to module: by name, by layer, as gradients."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import UsageError
from adapterhub.merge.schedule import Schedule, layer_of, parse_schedule
from tests.merge.recipes import Cook
from tests.oracles import ORACLES, resolved, undecided
from tests.support.adapters import HEAD, llama_modules
from tests.support.dense import distance

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

LAYERS = 5
MODULES = {**llama_modules("q_proj", "up_proj", layers=range(LAYERS)), **HEAD}


def at(layer: int | None, leaf: str = "mlp.up_proj") -> str:
    return "lm_head" if layer is None else f"model.layers.{layer}.{leaf}"


def values(schedule: Any, *layers: int | None, of: int = LAYERS) -> list[float]:
    found = parse_schedule(schedule, "x", 9.0)
    assert isinstance(found, Schedule)
    again = parse_schedule(json.loads(json.dumps(found.document())), "x", -1.0)
    assert again == found, "as a recipe says it, it is the same"
    return [found.at(at(layer), of) for layer in layers]


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("model.layers.3.mlp.up_proj", 3),
        ("layers.12.x", 12),
        ("3.x", 3),
        ("model.layers.3.experts.7.w1", 3),
        ("lm_head", None),
        ("v2.x", None),
        ("h.4", None),
    ],
)
def test_the_layer_is_the_first_number_of_a_name(module: str, layer: int | None) -> None:
    assert layer_of(module) == layer


def test_a_gradient_is_a_straight_line_from_the_first_layer_to_the_last() -> None:
    assert values([0, 1], 0, 1, 2, 3, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert values([0, 1, 0], 0, 1, 2, 3, 4) == [0, 0.5, 1, 0.5, 0]
    assert values([0, 1, 0], 0, 1, 2, 3, of=4) == pytest.approx([0, 2 / 3, 2 / 3, 0])
    assert values([1, 3], 0, of=1) == [1], "a model of one layer has its beginning"
    assert values([2], 0, 4) == [2, 2]
    assert values([0, 1], None) == [9], "what is in no layer has the default"


def test_the_first_rule_that_fits_counts() -> None:
    rules = [
        {"modules": "up_proj", "layers": [1, 3], "value": [0, 1]},
        {"layers": 3, "value": 7},
        {"modules": "lm_head|q_proj", "value": 5},
    ]
    assert values(rules, 0, 1, 2, 3, 4, None) == [9, 0, 0.5, 1, 9, 5]
    assert values([*rules, {"value": 2}], 0, 3, None) == [2, 1, 5]
    assert values([{"layers": 3, "value": 7}, {"value": [0, 1]}], 2, 3, None) == [0.5, 7, 9]
    assert values([{"layers": [4, 4], "value": [3, 6]}], 4) == [3]


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("up_proj", True),
        ("mlp.up_proj", True),
        (r"model\.layers\.\d\.mlp\..*", True),
        ("down_proj|up_proj", True),
        (".*mlp.*", True),
        ("proj", False),
        ("p_proj", False),
        ("mlp", False),
        ("up_proj.", False),
    ],
)
def test_a_pattern_means_a_whole_name_or_its_end_from_a_dot_on(pattern: str, fits: bool) -> None:
    found = values([{"modules": pattern, "value": 1}], 0)
    assert found == [1 if fits else 9]


def test_a_pattern_that_runs_away_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapterhub.merge.schedule._PATTERN_SECONDS", 0.05)
    runaway = parse_schedule([{"modules": "(.*?,){30}x", "value": 1}], "x", 0.0)
    assert isinstance(runaway, Schedule)
    with pytest.raises(UsageError, match="takes too long"):
        runaway.at("a," * 60, 1)


SCHEDULES = {
    "linear": "weights: [[0, 1], [{modules: q_proj, value: -1}, {layers: [1, 3], value: [2, 0]}]]",
    "task_arithmetic": "parameters: {lambda: [{modules: lm_head, value: 0.1}, {value: [1, 3]}]}",
    "slerp": "parameters: {t: [0, 1, 0.5]}",
    "slerp of the model": "parameters: {t: [0, 1, 0.5], scope: model}",
    "ties": (
        "weights: [1, [0.5, 2]]\nparameters: {lambda: [{modules: up_proj, value: 2}], density: 0.4}"
    ),
    "ties by module": "parameters: {trim_scope: module, density: [{layers: 2, value: 1}, {value: [0.1, 0.9]}]}",
    "dare_linear": "seed: 3\nweights: [[0, 1], 1]\nparameters: {density: [0.3, 1]}",
    "della": "parameters: {density: [0.3, 0.6], epsilon: 0.2}",
    "breadcrumbs_ties": "parameters: {gamma: [0, 0.2], density: [{modules: q_proj, value: 0.5}]}",
    "sce": "parameters: {select_topk: [0.1, 1]}",
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_every_module_is_merged_with_its_own_numbers(merger: Merger, case: str) -> None:
    """Against the dense merge in float64, done once for each module with that module's numbers."""
    settings: dict[str, dict[str, Any]] = {"a": {"rank": 4}, "b": {"rank": 3, "scale": 0.08}}
    cook = Cook(
        merger,
        {
            name: merger.adapter(seed=seed, modules=MODULES, **more)
            for seed, (name, more) in enumerate(settings.items())
        },
    )
    text = f"method: {case.split(maxsplit=1)[0]}\nadapters: [a, b]\n{SCHEDULES[case]}"
    (step,) = cook.recipe(text).steps
    whole = "model" in (step.parameters.get("scope"), step.parameters.get("trim_scope"))
    seed = cook.recipe(text).seed
    expected, apart = {}, {}
    for module in MODULES:

        def here(number: Any, module: str = module) -> Any:
            return number.at(module, LAYERS) if isinstance(number, Schedule) else number

        parents = [d if whole else {module: d[module]} for d in cook.deltas.values()]
        weights = [here(weight) for weight in step.weights or (1.0, 1.0)]
        parameters = resolved(step.method, **{k: here(v) for k, v in step.parameters.items()})
        expected[module] = ORACLES[step.method](parents, weights, parameters, seed)[module]
        apart[module] = undecided(step.method, parents, weights, parameters, seed)[module]
    assert sum(mask.sum() for mask in apart.values()) <= 1e-3 * sum(m.size for m in apart.values())
    merged = cook(text, workers=2)
    assert distance(merged.deltas, expected, apart=apart) < 1e-5
    assert merged.warnings == []


def test_the_trim_over_the_whole_adapter_has_one_density(merger: Merger) -> None:
    cook = Cook(merger, {name: merger.adapter(seed=seed) for seed, name in enumerate("ab")})
    with pytest.raises(UsageError, match="density can't differ from module to module while") as e:
        cook("method: ties\nadapters: [a, b]\nparameters: {density: [0.1, 1]}")
    assert "trim_scope: module" in e.value.hint


def test_a_rule_that_fits_no_module_is_told(merger: Merger) -> None:
    cook = Cook(merger, {name: merger.adapter(seed=seed) for seed, name in enumerate("ab")})
    merged = cook(
        "method: ties\nadapters: [a, {adapter: b, weight: [{modules: up_proj, value: 2}]}]\n"
        "parameters: {lambda: [{modules: q_proj, value: 2}, {layers: [2, 9], value: 3}]}"
    )
    assert merged.warnings == [
        'no module fits the rule {"modules": "up_proj", "value": 2.0} for weights[1] of ties',
        'no module fits the rule {"layers": [2, 9], "value": 3.0} for lambda of ties',
    ]
