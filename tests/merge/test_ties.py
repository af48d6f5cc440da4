"""TIES is the paper's: against algorithm 1 written out densely in float64 (tests.support.dense.ties)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.adapters import EMBEDDING, HEAD, QV, llama_modules
from tests.support.dense import distance, norm, read_deltas, read_factors, ties

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

LAW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SAY = logging.getLogger(__name__)  # seen with --log-cli-level=INFO
MOST_UNDECIDED = 1e-4
"""Share of elements that may lie at a threshold before a comparison without them says too little."""

PARENTS: dict[str, list[dict[str, Any]]] = {
    "two": [{"rank": 4}, {"rank": 9}],
    "three of different strength": [{"scale": 0.05}, {"scale": 0.2}, {"scale": 0.02, "alpha": 64}],
    "four": [
        {"rank": 2},
        {"rank": 3, "use_rslora": True},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
    ],
    "disjoint modules": [
        {"modules": llama_modules("q_proj", "v_proj")},
        {"modules": llama_modules("up_proj", "down_proj"), "rank": 7},
    ],
    "modules shared in part": [
        {"modules": llama_modules("q_proj", "v_proj")},
        {"modules": llama_modules("v_proj", "o_proj", layers=[0])},
        {"modules": llama_modules("v_proj", "down_proj", layers=[1])},
    ],
    "embedding, head, Conv1D-like": [
        {"modules": {**QV, **EMBEDDING}},
        {"modules": {**EMBEDDING, **HEAD}},
    ],
}


def compare(
    merger: Merger, settings: list[dict[str, Any]], weights: list[float], **parameters: Any
) -> None:
    folders = [merger.adapter(seed=17 * place, **one) for place, one in enumerate(settings)]
    merged = merger(folders, "ties", weights=weights, **parameters)
    expected = ties(
        [read_deltas(folder) for folder in folders],
        weights,
        density=parameters.get("density", 0.2),
        factor=parameters.get("lambda", 1.0),
        scope=parameters.get("trim_scope", "model"),
    )
    elements = sum(delta.size for delta in expected.merged.values())
    SAY.info("%d of %d elements at a threshold or without a sign", expected.count, elements)
    assert expected.count <= max(4, MOST_UNDECIDED * elements)
    assert distance(merged.deltas, expected.merged, apart=expected.undecided) <= 1e-6


@pytest.mark.parametrize("scope", ["model", "module"])
@pytest.mark.parametrize("kind", PARENTS)
def test_ties_is_the_papers_algorithm(merger: Merger, kind: str, scope: str) -> None:
    compare(merger, PARENTS[kind], [1.0] * len(PARENTS[kind]), trim_scope=scope)


@pytest.mark.parametrize("scope", ["model", "module"])
@pytest.mark.parametrize("density", [0.001, 0.05, 0.5, 0.93, 1.0])
def test_ties_at_every_density(merger: Merger, density: float, scope: str) -> None:
    compare(merger, PARENTS["two"], [1.0, 1.0], density=density, trim_scope=scope)


@pytest.mark.parametrize("factor", [-1.0, 0.3, 1.8])
@pytest.mark.parametrize("weights", [[1.0, 0.2, 3.0], [1.0, -1.0, 0.5], [1.0, 0.0, 1.0]])
def test_ties_with_weights_and_lambda(merger: Merger, weights: list[float], factor: float) -> None:
    compare(
        merger, PARENTS["three of different strength"], weights, density=0.4, **{"lambda": factor}
    )


@LAW
@given(
    density=st.floats(0.01, 1).map(lambda value: round(value, 3)),
    scope=st.sampled_from(["model", "module"]),
    weights=st.lists(st.sampled_from([-1.5, 0.25, 1.0, 2.0]), min_size=2, max_size=4),
    ranks=st.lists(st.integers(1, 12), min_size=4, max_size=4),
)
def test_ties_for_any_density_weights_and_ranks(
    merger: Merger, density: float, scope: str, weights: list[float], ranks: list[int]
) -> None:
    modules = llama_modules("q_proj", "up_proj", layers=[0])
    settings = [{"rank": ranks[place], "modules": modules} for place in range(len(weights))]
    compare(merger, settings, weights, density=density, trim_scope=scope)


def test_trim_scope_model_counts_over_the_whole_task_vector(merger: Merger) -> None:
    # One strong module and one weak: a fifth of all elements is less than half, and all of them lie in the strong one.
    modules = {"model.layers.0.mlp.up_proj": (96, 64), "model.layers.1.mlp.up_proj": (96, 64)}
    strong, weak = sorted(modules)
    folder = merger.adapter(modules=modules)
    parent = read_deltas(folder)
    factors = {
        name: (b * (1.0 if name == strong else 1e-3), a)
        for name, (b, a, _) in read_factors(folder).items()
    }
    skewed = merger.adapter(factors=factors)
    whole = merger([skewed], "ties").deltas
    apiece = merger([skewed], "ties", trim_scope="module").deltas

    assert np.count_nonzero(whole[weak]) == 0
    assert np.count_nonzero(whole[strong]) == int(0.2 * 2 * parent[strong].size)
    assert (
        np.count_nonzero(apiece[weak])
        == np.count_nonzero(apiece[strong])
        == int(0.2 * parent[weak].size)
    )


@pytest.mark.parametrize(
    ("density", "kept"), [(0.2, 1228), (0.29, 1781), (0.7, 4300), (1e-9, 1), (1.0, 6144)]
)
def test_density_keeps_the_floor_of_its_share_and_at_least_one(
    merger: Merger, density: float, kept: int
) -> None:
    folder = merger.adapter(modules={"model.layers.0.mlp.up_proj": (96, 64)})
    merged = merger([folder], "ties", density=density)
    assert sum(np.count_nonzero(delta) for delta in merged.deltas.values()) == kept


def test_parents_that_cancel_exactly_elect_no_sign(merger: Merger) -> None:
    one, other = merger.adapter(seed=0), merger.adapter(seed=1)
    merged = merger([one, other, one, other], "ties", weights=[1, 1, -1, -1], density=1.0)
    assert norm(merged.deltas) == 0


def test_one_adapter_at_full_density_is_itself(merger: Merger) -> None:
    folder = merger.adapter()
    assert distance(merger([folder], "ties", density=1).deltas, read_deltas(folder)) <= 1e-6


def test_an_adapter_that_changes_nothing_takes_no_part(merger: Merger) -> None:
    folder = merger.adapter()
    empty = merger.adapter(scale=0.0)
    alone = merger([folder], "ties").deltas
    assert distance(merger([folder, empty], "ties").deltas, alone) == 0
