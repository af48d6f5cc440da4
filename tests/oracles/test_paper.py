"""The oracles under the papers' semantics: small cases worked out by hand, and what the papers prove of their methods."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.oracles import ORACLES, resolved, stream, undecided, weights_of
from tests.oracles.conftest import dense
from tests.oracles.elementwise import chances
from tests.oracles.semantics import PAPER
from tests.support.dense import Deltas, Matrix, distance, norm, ties, weighted_sum

EXACT = 1e-12
SCOPED = [name for name, defaults in PAPER.items() if "scope" in defaults]
TRIMMED = ["magnitude_prune", "ties", "breadcrumbs", "breadcrumbs_ties"]


def rows(*values: Sequence[float]) -> list[Deltas]:
    """One parent a row, of one module (1, n)."""
    return [{"m": np.array([row], dtype=np.float64)} for row in values]


def merged(method: str, parents: Sequence[Deltas], seed: int = 0, **given: Any) -> list[float]:
    weights = given.pop("weights", weights_of(method, len(parents)))
    (result,) = ORACLES[method](parents, weights, resolved(method, **given), seed).values()
    return [round(float(value), 12) for value in result.ravel()]


def unit(parent: Deltas) -> Matrix:
    return parent["q_proj"].ravel() / np.linalg.norm(parent["q_proj"])


@pytest.mark.parametrize("density", [0.001, 0.2, 0.29, 1.0])
@pytest.mark.parametrize("scope", ["model", "module"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 1.3], [1.0, 0.0, 0.5]])
def test_ties_is_algorithm_one(density: float, scope: str, weights: list[float]) -> None:
    parents = dense(1.0, 0.3, 2.0)
    del parents[2]["v_proj"]
    expected = ties(parents, weights, density=density, factor=1.7, scope=scope).merged
    given: dict[str, Any] = {"density": density, "trim_scope": scope, "lambda": 1.7}
    assert distance(ORACLES["ties"](parents, weights, resolved("ties", **given)), expected) < EXACT


def test_ties_by_hand() -> None:
    parents = rows([5, -1, 2, 0, 0.1], [-3, -2, 2, 0.2, 0.1])
    assert merged("ties", parents, density=0.6) == [5, -1.5, 2, 0, 0]
    assert merged("ties", parents, density=0.6, weights=[1, 2]) == [-6, -2.5, 3, 0, 0]
    assert merged("ties", parents, density=0.6, vote="count", tie="positive") == [5, -1.5, 2, 0, 0]
    assert merged("ties", parents, density=0.6, divisor="none", **{"lambda": 2}) == [
        10,
        -6,
        8,
        0,
        0,
    ]
    weighted = merged("ties", parents, density=0.6, weights=[1, 3], divisor="weights")
    assert weighted == [-3, -1.75, 2, 0, 0]
    assert merged("ties", rows([1, -2, 2, -1]), density=0.1) == [0, -2, 2, 0], "equal ones stay"


def test_breadcrumbs_by_hand() -> None:
    ten = rows([1, -2, 3, -4, 5, -6, 7, -8, 9, -10])
    assert merged("breadcrumbs", ten, density=0.4, gamma=0.1) == [0] * 5 + [-6, 7, -8, 9, 0]
    assert merged("breadcrumbs", ten, density=0.9, gamma=0.3) == [1, -2, 3, -4, 5, -6, 7, -8, 9, 0]
    assert merged("breadcrumbs", ten, density=0.05) == [0] * 10
    equal = rows([1, 2, -2, 3, 4, -4, 5])
    assert merged("breadcrumbs", equal, density=0.43, gamma=0.3) == [0, 2, -2, 3, 4, -4, 0]
    two = [*ten, *rows([0, 0, 0, 0, 0, 6, 0, 8, 9, 0])]
    assert merged("breadcrumbs_ties", two, density=0.4, gamma=0.1)[5:] == [0, 7, 0, 9, 0]


def test_magprune_ranks_within_a_row_and_the_earlier_of_equal_ones_lower() -> None:
    delta = np.array([[3, -1, 1, 2], [0, 0, 0, 0], [-4, 3, -2, 1]], dtype=np.float64)
    expected = [[0.65, 0.35, 0.45, 0.55], [0.35, 0.45, 0.55, 0.65], [0.65, 0.55, 0.45, 0.35]]
    assert np.abs(chances(delta, resolved("della")) - expected).max() < 1e-15


def test_sce_by_hand() -> None:
    parents = rows([3, 1, 0, 2], [1, 1, 0, -2])
    assert merged("sce", parents, select_topk=1.0) == [2.4, 1, 0, 0]
    assert merged("sce", parents, select_topk=0.5) == [0, 0, 0, 0]
    assert merged("sce", parents, select_topk=0.5, tie="positive") == [0, 0, 0, 2]
    assert merged("sce", [parents[0]] * 3, select_topk=0.5) == [0] * 4, "nothing varies"
    disjoint = [{"m": np.array([[3.0, 1.0]])}, {"n": np.array([[1.0, -2.0]])}]
    assert [
        d.tolist() for d in ORACLES["sce"](disjoint, [], resolved("sce", select_topk=0.5)).values()
    ] == [[[3, 0]], [[0, -2]]]


def test_random_words_are_those_of_philox() -> None:
    """By value, and from the published rounds: another release of numpy must not change what a recipe means."""
    words = stream(0, 0, "model.layers.0.self_attn.q_proj", (3, 5)).ravel().tolist()
    assert words[:4] == [1813817052, 939168145, 1310808676, 277013574]
    key = int.from_bytes(
        hashlib.sha256(b"0/0/model.layers.0.self_attn.q_proj").digest()[:16], "little"
    )
    long = philox(1, key) + philox(2, key)
    assert words == [half for word in long for half in (word & (1 << 32) - 1, word >> 32)][:15]
    shorter = stream(0, 0, "model.layers.0.self_attn.q_proj", (1, 4)).ravel().tolist()
    assert shorter == words[:4], "element e has word e, whatever the shape"
    others = [stream(1, 0, "m", (4, 8)), stream(0, 1, "m", (4, 8)), stream(0, 0, "n", (4, 8))]
    assert len({tuple(words.ravel()) for words in [*others, stream(0, 0, "m", (4, 8))]}) == 4


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 of Salmon et al. 2011 (doi:10.1145/2063384.2063405): the four words of one counter."""
    mask = (1 << 64) - 1
    a, b, c, d = counter, 0, 0, 0
    low, high = key & mask, key >> 64
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (right >> 64) ^ b ^ low, right & mask, (left >> 64) ^ d ^ high, left & mask
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return [a, b, c, d]


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_dropping_at_random_keeps_the_mean(name: str) -> None:
    parents, weights = dense(1.0, 0.5, shapes={"q_proj": (24, 32)}), [0.5, 0.5]
    parameters = resolved(name, density=0.5)
    exact = weighted_sum(parents, weights)
    found = [ORACLES[name](parents, weights, parameters, seed) for seed in range(300)]
    mean = {"q_proj": np.mean([one["q_proj"] for one in found], axis=0)}
    assert distance(found[0], exact) > 0.5
    assert distance(mean, exact) < 1.3 / np.sqrt(300), "one drop in two has a relative error of 1"


def test_the_trim_of_dare_ties_counts_dropped_elements_too() -> None:
    (parent,) = dense(1.0, shapes={"q_proj": (20, 25)})
    found = ORACLES["dare_ties"]([parent], [1.0], resolved("dare_ties"))["q_proj"]
    assert np.count_nonzero(found) == 100
    kept = found != 0
    assert np.allclose(found[kept], parent["q_proj"][kept] / 0.8)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_turns_by_its_share_of_the_angle_and_keeps_equal_norms(t: float) -> None:
    one, other = (
        {"q_proj": parent["q_proj"] / norm(parent)}
        for parent in dense(1, 2, shapes={"q_proj": (8, 9)})
    )
    found = ORACLES["slerp"]([one, other], [], resolved("slerp", t=t))
    angle = np.arccos(unit(one) @ unit(other))
    assert abs(norm(found) - 1) < EXACT
    assert abs(np.arccos(np.clip(unit(one) @ unit(found), -1, 1)) - t * angle) < 1e-7
    by_weights = ORACLES["nuslerp"]([one, other], [2 - 2 * t, 2 * t], resolved("nuslerp"))
    assert distance(by_weights, found) < EXACT


def test_karcher_mean_has_the_least_squared_distance() -> None:
    parents, weights = dense(1.0, 0.5, 2.0, shapes={"q_proj": (4, 5)}), [0.2, 0.5, 0.3]
    found = ORACLES["karcher"](parents, weights, resolved("karcher"))
    units = [unit(parent) for parent in parents]

    def cost(point: Matrix) -> float:
        return float(np.dot(weights, [np.arccos(point @ u) ** 2 for u in units]))

    assert (
        abs(norm(found) - sum(w * norm(p) for w, p in zip(weights, parents, strict=True))) < EXACT
    )
    mean, random = unit(found), np.random.default_rng(0)
    for _ in range(50):
        near = mean + 1e-3 * random.standard_normal(mean.shape)
        assert cost(near / np.linalg.norm(near)) > cost(mean)


def test_karcher_mean_of_two_is_slerp() -> None:
    parents = [{"q_proj": p["q_proj"] / norm(p)} for p in dense(1, 2, shapes={"q_proj": (8, 9)})]
    found = ORACLES["karcher"](parents, [0.7, 0.3], resolved("karcher"))
    assert distance(found, ORACLES["slerp"](parents, [], resolved("slerp", t=0.3))) < 1e-9


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 2.0, -0.3]])
def test_multislerp_is_the_direction_of_the_mean(weights: list[float]) -> None:
    """Projections to the tangent space at the mean sum to zero, so its exponential map moves nothing."""
    parents = dense(1.0, 0.5, 2.0, shapes={"q_proj": (8, 9)})
    found = ORACLES["multislerp"](parents, weights, resolved("multislerp"))
    w = np.array(weights) / sum(weights)
    mean = w @ np.stack([unit(parent) for parent in parents])
    length = w @ np.array([norm(parent) for parent in parents])
    expected = {"q_proj": (length * mean / np.linalg.norm(mean)).reshape(8, 9)}
    assert distance(found, expected) < EXACT


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_the_closest_to_the_centre_of_equal_perpendicular_deviations(
    count: int,
) -> None:
    """The paper's geometry: fine-tuned weights deviate from a centre by equal amounts, at right angles to all else."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((30, 30)))[0]
    centre = 2.0 * basis[0]
    parents = [{"m": (centre + 1.5 * basis[1 + i]).reshape(5, 6)} for i in range(count)]
    found = ORACLES["model_stock"](parents, [], resolved("model_stock"))["m"].ravel()
    mean = np.mean([parent["m"].ravel() for parent in parents], axis=0)
    assert abs((found - centre) @ mean) < EXACT
    assert abs(found @ mean / np.linalg.norm(found) / np.linalg.norm(mean) - 1) < EXACT


@pytest.mark.parametrize("name", [*SCOPED, *TRIMMED])
def test_a_model_is_one_long_module(name: str) -> None:
    parents = dense(1.0, 0.5) if PAPER[name].get("t") or name == "nuslerp" else dense(1, 0.5, 2)
    together = [{"all": np.concatenate([p[m].ravel() for m in sorted(p)])[None]} for p in parents]
    word = "scope" if name in SCOPED else "trim_scope"
    weights = [0.4, 0.9, 0.6][: len(parents)]
    found = ORACLES[name](parents, weights, resolved(name, **{word: "model"}))
    expected = ORACLES[name](together, weights, resolved(name, **{word: "module"}))
    assert (
        distance({"all": np.concatenate([found[m].ravel() for m in sorted(found)])[None]}, expected)
        < EXACT
    )
    assert (
        distance(found, ORACLES[name](parents, weights, resolved(name, **{word: "module"}))) > 1e-4
    )


@pytest.mark.parametrize("name", ORACLES)
def test_a_module_that_a_parent_lacks_is_zero_there(name: str) -> None:
    parents = dense(1.0, 0.5)[: 1 if name == "negate" else 2]
    if name != "negate":
        del parents[1]["v_proj"]
    zeros = [{**{m: np.zeros_like(d) for m, d in parents[0].items()}, **p} for p in parents]
    given = {"trim_scope": "module"} if "trim_scope" in PAPER[name] else {}
    weights, parameters = [0.4, 0.9][: len(parents)], resolved(name, **given)
    found = ORACLES[name](parents, weights, parameters, 3)
    assert found.keys() == parents[0].keys()
    assert distance(found, ORACLES[name](zeros, weights, parameters, 3)) < EXACT


@pytest.mark.parametrize("name", ORACLES)
def test_parents_of_nothing_make_nothing(name: str) -> None:
    nothing = dense(*([0.0] * {"negate": 1, "karcher": 3, "multislerp": 3}.get(name, 2)))
    weights, parameters = weights_of(name, len(nothing)), resolved(name)
    assert norm(ORACLES[name](nothing, weights, parameters)) == 0
    assert not any(mask.any() for mask in undecided(name, nothing, weights, parameters).values())
