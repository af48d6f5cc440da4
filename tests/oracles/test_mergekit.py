"""The oracles under mergekit's semantics are mergekit's own methods, on dense tensors with a base of zeros.

mergekit thins out at random in float32, so those agree to its rounding and the formula by itself exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.karcher import karcher_merge_tensors
from mergekit.sparsify import RescaleNorm, rescaled_masked_tensor

from tests.oracles import ORACLES, resolved
from tests.oracles.conftest import Draws, dense
from tests.oracles.elementwise import chances
from tests.oracles.masks import kept
from tests.oracles.parents import stacks
from tests.support.dense import Deltas, distance

EXACT, ROUNDED = 1e-10, 1e-6
WEIGHTS = ([1.0, 1.0, 1.0], [0.7, -0.4, 1.3], [1.0, 0.0, 0.5], [1.0, -1.0, 0.5])
DENSITIES = (0.05, 0.2, 0.75, 1.0)


def by_mergekit(
    method: str, parents: Sequence[Deltas], *, base: bool = True, **settings: Any
) -> Deltas:
    """`method` of mergekit, tensor by tensor; a parent without the module has the base's zeros there."""
    merged = {}
    for module, stack in stacks(parents).items():
        tensors = [torch.from_numpy(delta.copy()) for delta in stack]
        tensors = [torch.zeros_like(tensors[0]), *tensors] if base else tensors
        found = merge_tensors(
            tensors, method, base_index=0 if base else None, parameters=settings, name=module
        )
        assert found.dtype == torch.float64
        merged[module] = found.numpy()
    return merged


def three(scale: float = 1.0) -> list[Deltas]:
    """Of different strength, the last without one of the modules."""
    parents = dense(scale, 0.3 * scale, 2.0 * scale)
    del parents[2]["v_proj"]
    return parents


@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear_is_mergekits(weights: list[float]) -> None:
    found = ORACLES["linear"](three(), weights, resolved("linear", "mergekit"))
    assert distance(found, by_mergekit("linear", three(), base=False, weight=weights)) < EXACT


@pytest.mark.parametrize("weights", WEIGHTS)
def test_task_arithmetic_is_mergekits(weights: list[float]) -> None:
    factor: dict[str, Any] = {"lambda": 1.7}
    found = ORACLES["task_arithmetic"](
        three(), weights, resolved("task_arithmetic", "mergekit", **factor)
    )
    assert (
        distance(found, by_mergekit("task_arithmetic", three(), weight=weights, **factor)) < EXACT
    )


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", DENSITIES)
def test_ties_is_mergekits(weights: list[float], density: float) -> None:
    settings: dict[str, Any] = {"density": density, "lambda": 1.3}
    found = ORACLES["ties"](three(), weights, resolved("ties", "mergekit", **settings))
    assert distance(found, by_mergekit("ties", three(), weight=weights, **settings)) < EXACT


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("density", "gamma"), [(0.14, 0.01), (0.5, 0.1), (0.9, 0.3), (1.0, 0.1), (0.001, 0.01)]
)
def test_breadcrumbs_are_mergekits(
    name: str, weights: list[float], density: float, gamma: float
) -> None:
    settings: dict[str, Any] = {"density": density, "gamma": gamma, "lambda": -0.8}
    found = ORACLES[name](three(), weights, resolved(name, "mergekit", **settings))
    assert distance(found, by_mergekit(name, three(), weight=weights, **settings)) < EXACT


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("density", [0.1, 0.8, 1.0])
def test_dare_is_mergekits_where_it_draws_our_masks(
    draws: Draws, name: str, weights: list[float], density: float
) -> None:
    parents, parameters = three(), resolved(name, "mergekit", density=density)
    draws.masks = [
        kept(density, 7, place, module, stack.shape[1:])
        for module, stack in stacks(parents).items()
        for place in range(len(parents))
        if density < 1
    ]
    expected = by_mergekit(name, parents, weight=weights, density=density)
    assert draws.all_drawn
    assert distance(ORACLES[name](parents, weights, parameters, 7), expected) < ROUNDED


@pytest.mark.parametrize("name", ["della_linear", "della"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.29), (0.9, 0.0), (1.0, 0.1)])
def test_della_is_mergekits_where_it_draws_our_masks(
    draws: Draws, name: str, weights: list[float], density: float, epsilon: float
) -> None:
    parents, parameters = three(), resolved(name, "mergekit", density=density, epsilon=epsilon)
    ours = [
        (chances(delta, parameters), place, module)
        for module, stack in stacks(parents).items()
        for place, delta in enumerate(stack)
        if density < 1
    ]
    draws.masks = [kept(p, 7, place, module, p.shape) for p, place, module in ours]
    expected = by_mergekit(name, parents, weight=weights, density=density, epsilon=epsilon)
    assert draws.all_drawn
    for (p, place, module), asked in zip(ours, draws.asked, strict=True):
        if module in parents[place]:  # where all magnitudes are equal its order is anybody's
            assert np.abs(p - asked).max() < 1e-6
    assert distance(ORACLES[name](parents, weights, parameters, 7), expected) < ROUNDED


@pytest.mark.parametrize("scale", [1.0, 1e-11])
def test_l1_is_mergekits_rescaling(scale: float) -> None:
    delta = dense(scale, shapes={"q_proj": (24, 32)})[0]["q_proj"]
    mask = kept(0.4, 3, 0, "q_proj", delta.shape)
    expected = rescaled_masked_tensor(
        torch.from_numpy(delta), torch.from_numpy(mask).double(), RescaleNorm.l1
    ).numpy()
    parameters = resolved("dare_linear", "mergekit", density=0.4)
    found = ORACLES["dare_linear"]([{"q_proj": delta}], [1.0], parameters, 3)["q_proj"]
    assert np.abs(found - expected).max() <= EXACT * np.abs(expected).max()
    assert (np.abs(found).sum() < 0.9 * np.abs(delta).sum()) == (
        scale < 1
    )  # below 1e-7 nothing is made up for


@pytest.mark.parametrize("name", ["ties", "breadcrumbs_ties", "sce"])
def test_votes_of_exactly_zero_elect_plus_in_mergekit(name: str) -> None:
    one = dense(1.0)[0]
    parents = [one, {module: -delta for module, delta in one.items()}]
    whole: dict[str, Any] = {"select_topk": 1.0} if name == "sce" else {"density": 1.0}
    weights: dict[str, Any] = {} if name == "sce" else {"weight": [1.0, 1.0]}
    found = ORACLES[name](parents, [1, 1], resolved(name, "mergekit", **whole))
    assert distance(found, by_mergekit(name, parents, **weights, **whole)) < EXACT
    assert all((delta > 0).all() for delta in found.values())
    paper = ORACLES[name](parents, [1, 1], resolved(name, **whole))
    assert not any(delta.any() for delta in paper.values())


@pytest.mark.parametrize("share", [0.003, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "scales", [(1.0, 0.3, 2.0), (1e-4, 3e-4, 2e-4), (1.0, 1e-4), (1.0,), (0.5, 0.5, 0.5, 3.0)]
)
def test_sce_is_mergekits(scales: tuple[float, ...], share: float) -> None:
    parents = dense(*scales)
    found = ORACLES["sce"](
        parents, [1.0] * len(scales), resolved("sce", "mergekit", select_topk=share)
    )
    assert distance(found, by_mergekit("sce", parents, select_topk=share)) < EXACT


def test_sce_of_weak_adapters_is_another_one_in_mergekit() -> None:
    """Mean squares below 1e-6, as LoRA deltas often have, count equally there, whatever their strengths."""
    parents = dense(1e-4, 5e-4)
    paper = ORACLES["sce"](parents, [1, 1], resolved("sce"))
    theirs = ORACLES["sce"](parents, [1, 1], resolved("sce", "mergekit"))
    assert distance(theirs, paper) > 0.1


def test_sce_shrinks_what_a_parent_of_a_millionth_of_the_energy_has_alone_in_mergekit() -> None:
    """There the shares of those that agree are divided by 1e-6 at least; here by their sum."""
    strong, weak = dense(1.0, 1e-4)
    for delta in strong.values():
        delta[::2] = 0.0  # there the weak one is alone
    found = ORACLES["sce"]([strong, weak], [], resolved("sce", "mergekit", select_topk=1.0))
    theirs = by_mergekit("sce", [strong, weak], select_topk=1.0)
    for module, delta in found.items():
        assert np.allclose(delta[::2], weak[module][::2])
        assert np.abs(theirs[module][::2]).max() < 0.1 * np.abs(delta[::2]).max()
        assert np.abs(theirs[module] - delta)[1::2].max() < EXACT


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0, 1.4])
@pytest.mark.parametrize("turn", [1.0, 1e-2, -1e-2, 0.0])
def test_slerp_is_mergekits(t: float, turn: float) -> None:
    one, other = dense(1.0, 3.0)
    near = {m: np.sign(turn or 1) * 2 * one[m] + abs(turn) * other[m] for m in one}
    found = ORACLES["slerp"]([one, near], [], resolved("slerp", "mergekit", t=t))
    assert distance(found, by_slerp(one, near, t)) < EXACT


def by_slerp(one: Deltas, other: Deltas, t: float) -> Deltas:
    """mergekit interpolates from its base model to the other one: here the base is the first parent."""
    return {
        module: merge_tensors(
            [torch.from_numpy(one[module]), torch.from_numpy(other[module])],
            "slerp",
            base_index=0,
            parameters={"t": t},
        ).numpy()
        for module in one
    }


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1.0, 3.0], [2.0, -0.5], [1.0, -1.0]])
@pytest.mark.parametrize("turn", [1.0, 1e-3, 0.0])
def test_nuslerp_is_mergekits(weights: list[float], turn: float) -> None:
    one, other = dense(1.0, 3.0)
    parents = [one, {module: 2 * one[module] + turn * other[module] for module in one}]
    found = ORACLES["nuslerp"](parents, weights, resolved("nuslerp", "mergekit"))
    assert distance(found, by_mergekit("nuslerp", parents, weight=weights)) < EXACT


def test_a_parent_of_nothing_makes_no_angle_here_and_a_right_one_in_mergekit() -> None:
    one = dense(1.0)[0]
    nothing = {module: np.zeros_like(delta) for module, delta in one.items()}
    found = ORACLES["slerp"]([one, nothing], [], resolved("slerp", "mergekit", t=0.25))
    theirs = by_slerp(one, nothing, 0.25)
    assert distance(found, {module: 0.75 * delta for module, delta in one.items()}) < EXACT
    right = np.sin(0.75 * np.pi / 2)
    assert distance(theirs, {module: right * delta for module, delta in one.items()}) < EXACT


@pytest.mark.parametrize("weights", WEIGHTS[:2])
@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp_is_mergekits(weights: list[float], normalize: bool) -> None:
    parents = three(scale=1e5)  # mergekit adds 1e-8 to every norm
    found = ORACLES["multislerp"](parents, weights, resolved("multislerp", normalize=normalize))
    expected = by_mergekit("multislerp", parents, weight=weights, normalize_weights=normalize)
    assert distance(found, expected) < EXACT


@pytest.mark.parametrize("count", [2, 3])
def test_multislerp_of_directions_that_cancel_is_mergekits(count: int) -> None:
    one = dense(1.0)[0]
    third = 2 * np.pi / count
    across = dense(1.0, 2.0)[1]
    parents = []
    for place in range(count):
        parent = {}
        for module in one:
            first = one[module] / np.linalg.norm(one[module])
            second = across[module] - (across[module] * first).sum() * first
            second /= np.linalg.norm(second)
            parent[module] = np.cos(place * third) * first + np.sin(place * third) * second
        parents.append(parent)
    weights = [1 / count] * count
    parameters = resolved("multislerp", "mergekit")
    if count > 2:
        with pytest.raises(ValueError, match="cancel"):
            ORACLES["multislerp"](parents, weights, parameters)
        with pytest.raises(ValueError, match="antipodal"):
            by_mergekit("multislerp", parents, weight=weights)
    else:
        parents = [parents[0], {module: -3 * delta for module, delta in parents[0].items()}]
        found = ORACLES["multislerp"](parents, weights, parameters)
        assert distance(found, by_mergekit("multislerp", parents, weight=weights)) < EXACT


@pytest.mark.parametrize("scales", [(1.0, 0.3, 2.0), (1.0, 5.0), (1.0,)])
def test_karcher_is_mergekits(scales: tuple[float, ...]) -> None:
    parents = dense(*scales)
    weights = [1 / len(scales)] * len(scales)
    found = ORACLES["karcher"](parents, weights, resolved("karcher", "mergekit"))
    assert distance(found, by_mergekit("karcher", parents, base=False)) < EXACT


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [1.0, 1.0, 2.0]])
@pytest.mark.parametrize("limit", [1, 3, 200])
def test_karcher_with_weights_and_a_parent_of_nothing_is_mergekits(
    weights: list[float], limit: int
) -> None:
    settings: dict[str, Any] = {"max_iterations": limit, "tolerance": 1e-10}
    found = ORACLES["karcher"](three(), weights, resolved("karcher", **settings))
    expected: Deltas = {}
    for module, stack in stacks(three()).items():
        mean: Any = karcher_merge_tensors([*map(torch.from_numpy, stack)], weights, limit, 1e-10)
        expected[module] = mean.numpy()
    assert distance(found, expected) < EXACT


def test_karcher_counts_a_weak_parents_direction_where_mergekit_does_not() -> None:
    """There a norm up to the tolerance, 1e-5, is no direction; here only zero is none."""
    parents = [{m: delta / np.linalg.norm(delta) for m, delta in p.items()} for p in dense(1, 2)]
    weak = [parents[0], {module: 9e-6 * delta for module, delta in parents[1].items()}]
    found = ORACLES["karcher"](weak, [0.5, 0.5], resolved("karcher", "mergekit"))
    half = (1 + 9e-6) / 2
    equal = ORACLES["karcher"](parents, [0.5, 0.5], resolved("karcher"))
    assert distance(found, {module: half * delta for module, delta in equal.items()}) < 1e-5
    theirs = by_mergekit("karcher", weak, base=False)
    assert distance(theirs, {module: half * delta for module, delta in parents[0].items()}) < EXACT


@pytest.mark.parametrize("scales", [(1.0, 0.3, 2.0), (1.0, -2.0), (1.0, 0.0, 4.0), (0.0, 0.0)])
def test_model_stock_is_mergekits(scales: tuple[float, ...]) -> None:
    parents = dense(*scales)
    found = ORACLES["model_stock"](parents, [], resolved("model_stock", "mergekit"))
    assert distance(found, by_mergekit("model_stock", parents)) < EXACT
