"""Every method, in every semantics, is what its oracle computes on whole float64 matrices (tests/oracles).

Through the real store and back from the file that is in it; and with parameters of any values, through the engine alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import UnsupportedError, UsageError
from adapterhub.lora.inner import Stack
from adapterhub.lora.lowrank import total
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.specs import MethodSpec, ParameterSpec, methods
from adapterhub.store import Resolved, Store
from tests.merge.conftest import Merger
from tests.merge.direct import Pairs, dense, merged, pairs
from tests.oracles import ORACLES, resolved, undecided, weights_of
from tests.oracles.semantics import OTHERS, PAPER
from tests.support.adapters import EMBEDDING, HEAD, AdapterMaker, llama_modules
from tests.support.dense import Deltas, distance, read_deltas

SAY = logging.getLogger(__name__)  # seen with --log-cli-level=INFO
SPECS = methods()
EVERY = [(name, sem) for name, spec in SPECS.items() for sem in ("paper", *spec.semantics)]
CLOSE = 2e-6
MOST_UNDECIDED = 1e-4
"""Share of elements that may hang on rounding before a comparison without them says too little."""

KINDS: dict[str, list[dict[str, Any]]] = {
    "mixed ranks and strengths": [
        {"rank": 2, "scale": 0.2},
        {"rank": 16, "alpha": 4},
        {"rank": 5, "alpha": 1.5, "dtype": "bfloat16"},
    ],
    "disjoint and shared targets": [
        {"modules": llama_modules("q_proj", "v_proj")},
        {"modules": llama_modules("v_proj", "up_proj", layers=[1]), "rank": 7},
        {"modules": llama_modules("down_proj", "q_proj", layers=[0])},
    ],
    "rsLoRA, rank and alpha patterns": [
        {"use_rslora": True, "rank": 9, "alpha_pattern": {"v_proj": 31}},
        {"rank_pattern": {"q_proj": 7, "layers.1.self_attn.v_proj": 2}},
        {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"layers.0.self_attn.q_proj": 0.5}},
    ],
    "an embedding and a head": [
        {"modules": {**llama_modules("q_proj", layers=[0]), **EMBEDDING}},
        {"modules": {**EMBEDDING, **HEAD}, "rank": 3},
        {"modules": {**EMBEDDING, **llama_modules("q_proj", layers=[0])}, "scale": 0.1},
    ],
}
WEIGHTS = [0.7, 1.9, 0.25]
SIGNED = [0.7, -1.9, 0.25]


def compare(
    found: Deltas,
    name: str,
    parents: Sequence[Deltas],
    weights: Sequence[float],
    parameters: Mapping[str, Any],
    seed: int = 0,
) -> None:
    """`found` is the oracle's result, elements aside that rounding may decide, which are very few."""
    expected = ORACLES[name](parents, weights, parameters, seed)
    apart = undecided(name, parents, weights, parameters, seed)
    count = sum(int(mask.sum()) for mask in apart.values())
    total = sum(mask.size for mask in apart.values())
    if count:
        SAY.info("%s: %d of %d elements hang on rounding", name, count, total)
    assert count <= max(4, MOST_UNDECIDED * total)
    assert distance(found, expected, apart=apart) <= CLOSE


def test_the_defaults_are_those_of_the_tests_own_table() -> None:
    for name, spec in SPECS.items():
        assert set(spec.semantics) == {other for other in OTHERS if name in OTHERS[other]}
        for semantics in ("paper", *spec.semantics):
            recipe = make_recipe(name, ["x"] * spec.min_inputs, semantics=semantics)
            assert recipe.steps[0].parameters == resolved(name, semantics)
    assert PAPER.keys() == ORACLES.keys() == SPECS.keys()


@dataclass(frozen=True)
class Stocked:
    """A store with the adapters of all kinds in it."""

    merger: Merger
    adapters: Mapping[str, Sequence[Resolved]]
    deltas: Mapping[str, Sequence[Deltas]]

    def compare(
        self,
        name: str,
        kind: str,
        weights: Sequence[float],
        semantics: str = "paper",
        **parameters: Any,
    ) -> None:
        """Merges as many of the kind as the method takes, and compares."""
        spec = SPECS[name]
        count = min(3, spec.max_inputs or 3)
        weights = weights[:count]
        found = self.merger.of(
            self.adapters[kind][:count],
            name,
            weights=None if spec.default_weights == "none" else weights,
            semantics=semantics,
            seed=11,
            **parameters,
        ).deltas
        resolved_ = resolved(name, semantics, **parameters)
        compare(found, name, self.deltas[kind][:count], weights, resolved_, 11)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Stocked:
    home = tmp_path_factory.mktemp("stocked")
    merger = Merger(Store.open(home / "home"), AdapterMaker(home / "adapters"))
    folders = {
        kind: [merger.adapter(seed=31 * place, **one) for place, one in enumerate(three)]
        for kind, three in KINDS.items()
    }
    return Stocked(
        merger,
        {kind: [merger.add(folder) for folder in three] for kind, three in folders.items()},
        {kind: [read_deltas(folder) for folder in three] for kind, three in folders.items()},
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "semantics"), EVERY)
def test_a_merge_in_the_store_is_the_oracles(
    stocked: Stocked, name: str, semantics: str, kind: str
) -> None:
    weights = WEIGHTS if "gram" in SPECS[name].requires else SIGNED
    stocked.compare(name, kind, weights, semantics)


@pytest.mark.parametrize("name", SPECS)
def test_default_weights_are_the_oracles(name: str) -> None:
    spec = SPECS[name]
    count = min(3, spec.max_inputs or 3)
    parents = [pairs({"q": (20, 30)}, 3, seed) for seed in range(count)]
    found = merged(parents, name)
    deltas = [dense(parent) for parent in parents]
    compare(found, name, deltas, weights_of(name, count), resolved(name))


OTHER_VALUES: dict[str, list[dict[str, Any]]] = {
    "linear": [{"normalize": True}],
    "cat": [],
    "task_arithmetic": [{"lambda": -1.7}],
    "negate": [{"lambda": 0.3}],
    "lerp": [{"t": 0.0}, {"t": 0.85}, {"t": 1.0}],
    "slerp": [{"t": 0.2, "scope": "model"}, {"t": 0.9}, {"t": 0.2, "dot_threshold": 0.001}],
    "nuslerp": [{"scope": "model"}, {"dot_threshold": 0.001}],
    "multislerp": [{"normalize": False, "scope": "model"}],
    "karcher": [{"max_iterations": 1}, {"scope": "model", "tolerance": 0.01}],
    "model_stock": [{"scope": "model"}],
    "magnitude_prune": [{"density": 0.55, "lambda": 2.5, "trim_scope": "model"}],
    "ties": [
        {"density": 0.05, "vote": "count", "divisor": "none"},
        {"density": 0.6, "vote": "count", "tie": "positive", "trim_scope": "module"},
        {"density": 1.0, "vote": "unweighted", "divisor": "weights", "lambda": -0.4},
    ],
    "dare_linear": [{"density": 0.3, "rescale": "l1"}, {"rescale": "none", "lambda": -0.8}],
    "dare_ties": [
        {"density": 0.4, "trim": 0.3, "trim_scope": "module", "rescale": "l1", "lambda": 1.6},
        {"density": 0.7, "trim": 0.9, "vote": "count", "divisor": "weights", "tie": "positive"},
    ],
    "della_linear": [{"density": 0.35, "epsilon": 0.3, "lambda": 0.5}, {"rescale": "none"}],
    "della": [
        {"density": 0.6, "epsilon": 0.39, "vote": "count", "tie": "positive", "lambda": 0.5},
        {"density": 1.0, "divisor": "weights"},
        {"rescale": "none", "vote": "unweighted", "divisor": "none"},
    ],
    "breadcrumbs": [{"density": 0.5, "gamma": 0.2, "lambda": 1.6, "trim_scope": "model"}],
    "breadcrumbs_ties": [
        {"density": 0.9, "gamma": 0.3, "trim_scope": "model", "divisor": "weights", "lambda": 2.0},
        {"density": 0.3, "gamma": 0.0, "vote": "unweighted", "tie": "positive"},
    ],
    "sce": [{"select_topk": 0.6, "equal_below": 1.0}, {"select_topk": 1.0, "tie": "positive"}],
}


@pytest.mark.parametrize(
    ("name", "parameters"), [(n, each) for n, many in OTHER_VALUES.items() for each in many]
)
def test_other_parameters_go_through_the_store_too(
    stocked: Stocked, name: str, parameters: dict[str, Any]
) -> None:
    stocked.compare(name, "disjoint and shared targets", WEIGHTS, **parameters)


def test_every_parameter_is_tried_with_other_values_than_its_default() -> None:
    for name, spec in SPECS.items():
        for parameter in spec.parameters:
            tried = [case[parameter.name] for case in OTHER_VALUES[name] if parameter.name in case]
            assert set(tried) - {parameter.default}, (name, parameter.name)


MANY = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SHARES = st.sampled_from([0.001, 0.05, 0.2, 0.3, 0.57, 0.95, 1.0])


def values(parameter: ParameterSpec) -> st.SearchStrategy[Any]:
    """What a parameter is tried with."""
    by_name: dict[str, st.SearchStrategy[Any]] = {
        "density": SHARES,
        "trim": SHARES,
        "select_topk": SHARES,
        "gamma": st.sampled_from([0.0, 0.01, 0.3, 0.97, 1.0]),
        "epsilon": st.sampled_from([0.0, 0.0005, 0.04]),
        "lambda": st.sampled_from([-1.3, 0.4, 2.0]),
        "equal_below": st.sampled_from([0.0, 1e-6, 1.0]),
        "max_iterations": st.sampled_from([1, 2, 200]),
        "tolerance": st.sampled_from([1e-10, 1e-3]),
        "dot_threshold": st.sampled_from([0.0, 0.2, 0.9995]),
        "t": st.floats(0, 1).map(lambda t: round(t, 3)),
    }
    if parameter.kind == "choice":
        return st.sampled_from(parameter.choices)
    return st.booleans() if parameter.kind == "flag" else by_name[parameter.name]


@st.composite
def merges(
    draw: st.DrawFn, spec: MethodSpec
) -> tuple[list[Pairs], list[float], dict[str, Any], int]:
    """Adapters, weights, parameters and a seed: any that the method takes."""
    side = st.integers(2 if "gram" in spec.requires else 1, 14)  # single numbers may be opposite
    names = st.sampled_from(["a", "b", "c"])
    shapes = draw(st.dictionaries(names, st.tuples(side, side), min_size=1))
    count = draw(st.integers(spec.min_inputs, spec.max_inputs or 4))
    seed = draw(st.integers(0, 2**31))
    parents = [
        pairs(
            {m: shapes[m] for m in draw(st.sets(st.sampled_from(sorted(shapes)), min_size=1))},
            draw(st.integers(1, 8)),
            seed=seed + place,
            scale=draw(st.sampled_from([1e-3, 1.0, 30.0])),
        )
        for place in range(count)
    ]
    weight = st.sampled_from([0.3, 1.0, 2.5])
    if "gram" not in spec.requires:  # directions may cancel
        weight |= st.sampled_from([-1.0, -0.4, 0.0])
    weights = draw(st.lists(weight, min_size=count, max_size=count))
    parameters = {p.name: draw(values(p)) for p in spec.parameters}
    if parameters.get("density") == 0.001 and "epsilon" in parameters:
        parameters["epsilon"] = 0.0005
    return parents, weights, parameters, seed


@pytest.mark.parametrize("name", SPECS)
@MANY
@given(data=st.data())
def test_the_engine_is_the_oracle_for_any_adapters_and_parameters(
    name: str, data: st.DataObject
) -> None:
    spec = SPECS[name]
    parents, weights, parameters, seed = data.draw(merges(spec))
    deltas = [dense(parent) for parent in parents]
    if parameters.get("normalize") and sum(weights) == 0:
        with pytest.raises(UsageError, match="add up to 0"):
            merged(parents, name, weights=weights, parameters=parameters)
        return
    found = merged(
        parents,
        name,
        weights=None if spec.default_weights == "none" else weights,
        parameters=parameters,
        seed=seed,
    )
    expected = ORACLES[name](deltas, weights, parameters, seed)
    apart = undecided(name, deltas, weights, parameters, seed)
    assert error(found, expected, apart, deltas, weights, parameters) <= CLOSE


def error(
    found: Deltas,
    expected: Deltas,
    apart: Mapping[str, Any],
    parents: Sequence[Deltas],
    weights: Sequence[float],
    parameters: Mapping[str, Any],
) -> float:
    """The largest, relative to what went in: of few elements, single ones may cancel."""
    assert found.keys() == expected.keys()
    smallest_chance = min(parameters.get("density", 1.0) - parameters.get("epsilon", 0.0), 1.0)
    size = max(np.abs(delta).max() for parent in parents for delta in parent.values())
    size *= max(1.0, *map(abs, weights)) * abs(parameters.get("lambda", 1.0)) / smallest_chance
    return float(
        max(
            np.where(apart[module], 0.0, np.abs(found[module] - expected[module])).max()
            for module in expected
        )
        / size
    )


def test_nuslerp_is_straight_beyond_its_threshold_and_only_there() -> None:
    one, other = (pairs({"q": (20, 30)}, 3, seed)["q"] for seed in range(2))
    for turn in (1e-2, 1e-4, 1e-7):
        parents: list[Pairs] = [
            {"q": one},
            {"q": total(Stack([one, other]), [2.0, turn])},
        ]
        for semantics in ("paper", "mergekit"):
            found = merged(parents, "nuslerp", weights=[0.3, 0.7], semantics=semantics)
            deltas = [dense(parent) for parent in parents]
            compare(found, "nuslerp", deltas, [0.3, 0.7], resolved("nuslerp", semantics))


def test_directions_that_cancel_are_refused_by_multislerp_as_by_the_oracle() -> None:
    parent = pairs({"q": (9, 7)}, 2, 0)
    deltas, weights = [dense(parent)] * 3, [1.0, 1.0, -2.0]
    parameters = resolved("multislerp", normalize=False)
    with pytest.raises(ValueError, match="cancel"):
        ORACLES["multislerp"](deltas, weights, parameters)
    with pytest.raises(UnsupportedError, match="no direction"):
        merged([parent] * 3, "multislerp", weights=weights, parameters={"normalize": False})
