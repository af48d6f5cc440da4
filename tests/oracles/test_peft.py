"""The oracles under PEFT's semantics are PEFT's own functions, on dense deltas and through add_weighted_adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from tests.oracles import ORACLES, resolved, undecided, weights_of
from tests.oracles.conftest import Draws, dense
from tests.oracles.masks import kept
from tests.support.adapters import AdapterMaker, llama_modules
from tests.support.attached import attach, load
from tests.support.dense import Deltas, distance, read_deltas

EXACT = 1e-12
WEIGHTS = ([1.0, 1.0, 1.0], [0.7, -0.4, 1.3], [1.0, 0.0, 0.5])


def by_peft(
    function: Callable[..., torch.Tensor],
    parents: Sequence[Deltas],
    weights: Sequence[float],
    **settings: Any,
) -> Deltas:
    """As add_weighted_adapter does it: module by module, with the parents that have the module."""
    merged = {}
    for module in sorted({module for parent in parents for module in parent}):
        those = [i for i, parent in enumerate(parents) if module in parent]
        merged[module] = function(
            [torch.from_numpy(parents[i][module]) for i in those],
            torch.tensor([weights[i] for i in those], dtype=torch.float64),
            **settings,
        ).numpy()
    return merged


def three() -> list[Deltas]:
    """Of different strength, the last without one of the modules."""
    parents = dense(1.0, 0.3, 2.0)
    del parents[2]["v_proj"]
    return parents


@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear_and_cat_are_pefts_task_arithmetic(weights: list[float]) -> None:
    expected = by_peft(merge_utils.task_arithmetic, three(), weights)
    for name in ("linear", "cat"):
        assert distance(ORACLES[name](three(), weights, resolved(name, "peft")), expected) < EXACT


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.01, 0.2, 0.75, 1.0])
@pytest.mark.filterwarnings("ignore:The density:UserWarning")
def test_magnitude_prune_is_pefts(weights: list[float], density: float) -> None:
    found = ORACLES["magnitude_prune"](
        three(), weights, resolved("magnitude_prune", "peft", density=density)
    )
    expected = by_peft(merge_utils.magnitude_prune, three(), weights, density=density)
    assert distance(found, expected) < EXACT


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.05, 0.2, 0.75, 1.0])
@pytest.mark.parametrize(("vote", "method"), [("unweighted", "total"), ("count", "frequency")])
@pytest.mark.filterwarnings("ignore:The density:UserWarning")
def test_ties_is_pefts(weights: list[float], density: float, vote: str, method: str) -> None:
    found = ORACLES["ties"](three(), weights, resolved("ties", "peft", density=density, vote=vote))
    expected = by_peft(
        merge_utils.ties, three(), weights, density=density, majority_sign_method=method
    )
    assert distance(found, expected) < EXACT


def test_ties_elects_plus_in_pefts_semantics_where_votes_cancel() -> None:
    one = dense(1.0)[0]
    parents = [one, {module: -delta for module, delta in one.items()}]
    found = ORACLES["ties"](parents, [1, 1], resolved("ties", "peft", density=1.0))
    with pytest.warns(UserWarning, match="no pruning"):
        expected = by_peft(merge_utils.ties, parents, [1, 1], density=1.0)
    assert distance(found, expected) < EXACT
    assert all((delta > 0).all() for delta in found.values())
    paper = ORACLES["ties"](parents, [1, 1], resolved("ties", density=1.0))
    assert not any(delta.any() for delta in paper.values())


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.1, 0.8])
def test_dare_is_pefts_where_it_draws_our_masks(
    draws: Draws, name: str, weights: list[float], density: float
) -> None:
    parents = three()
    draws.masks = [
        kept(density, 5, place, module, parent[module].shape)
        for module in sorted(parents[0])
        for place, parent in enumerate(parents)
        if module in parent
    ]
    expected = by_peft(getattr(merge_utils, name), parents, weights, density=density)
    found = ORACLES[name](parents, weights, resolved(name, "peft", density=density), 5)
    assert draws.all_drawn
    assert all((asked == density).all() for asked in draws.asked)
    assert distance(found, expected) < EXACT


@pytest.mark.parametrize("name", ["magnitude_prune", "ties"])
def test_the_semantics_are_those_of_add_weighted_adapter(
    name: str, make_adapter: AdapterMaker, tiny_llama: Path
) -> None:
    square = llama_modules("q_proj", "o_proj")  # so that one svd_rank is the full rank of all
    folders = [
        make_adapter("one", modules=square, rank=6, alpha=3, scale=0.3),
        make_adapter("two", modules=square, rank=9, use_rslora=True, scale=0.3, seed=1),
    ]
    weights = [1.0, -0.6]
    model = attach(load(tiny_llama), folders[0])
    model.load_adapter(folders[1], "second")
    model.add_weighted_adapter(
        ["default", "second"],
        weights,
        "merged",
        combination_type=f"{name}_svd",
        svd_rank=64,
        density=0.3,
    )
    by_adapter = {
        module: layer.get_delta_weight("merged").double().detach().numpy() / layer.scaling["merged"]
        for module, layer in model.base_model.model.named_modules()
        if "merged" in getattr(layer, "lora_A", {})
    }
    parents, parameters = (
        [read_deltas(folder) for folder in folders],
        resolved(name, "peft", density=0.3),
    )
    found = ORACLES[name](parents, weights, parameters)
    apart = undecided(name, parents, weights, parameters)
    assert sum(mask.sum() for mask in apart.values()) < 1e-3 * sum(m.size for m in apart.values())
    assert distance(by_adapter, found, apart=apart) < 1e-5


def test_default_weights_of_the_means_sum_to_one() -> None:
    assert np.isclose(sum(weights_of("linear", 3)), 1)
    assert weights_of("ties", 3) == [1, 1, 1]
