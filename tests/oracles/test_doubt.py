"""`undecided` names what rounding changes: parents full of near ties, moved by a rounding, differ nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracles import ORACLES, resolved, undecided
from tests.oracles.conftest import dense
from tests.oracles.semantics import PAPER
from tests.support.dense import Deltas, distance

ELEMENTWISE = [name for name in PAPER if {"density", "select_topk"} & PAPER[name].keys()]
WEIGHTS = [1.0, 1.0, 0.5]


def rounded(parents: list[Deltas], seed: int) -> list[Deltas]:
    """As float32 arithmetic would have it: moved by some 1e-7 of a delta's root mean square."""
    random = np.random.default_rng(seed)
    return [
        {
            m: d + 1e-7 * np.sqrt((d**2).mean()) * random.standard_normal(d.shape) * (d != 0)
            for m, d in parent.items()
        }
        for parent in parents
    ]


def near_ties() -> list[Deltas]:
    """Every magnitude within 1e-8 of another one's, and a third of the votes within 1e-8 of zero."""
    parents = dense(1.0, 0.5, 2.0)
    for parent in parents:
        for delta in parent.values():
            flat = delta.ravel()  # a view
            order = np.argsort(np.abs(flat))
            flat[order[1::2]] = (
                np.sign(flat[order[1::2]])
                * np.abs(flat[order[: 2 * (len(flat) // 2) : 2]])
                * (1 + 1e-8)
            )
    for module, delta in parents[0].items():
        third = delta.shape[0] // 3
        parents[1][module][:third] = -delta[:third] * (1 + 1e-8)
        parents[2][module][:third] = 0
    return parents


@pytest.mark.parametrize("semantics", ["paper", "mergekit"])
@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name != "magnitude_prune"])
def test_what_rounding_changes_is_undecided(name: str, semantics: str) -> None:
    parents, parameters = near_ties(), resolved(name, semantics)
    apart = undecided(name, parents, WEIGHTS, parameters, 1)
    exact, without = ORACLES[name](parents, WEIGHTS, parameters, 1), []
    for seed in range(5):
        moved = ORACLES[name](rounded(parents, seed), WEIGHTS, parameters, 1)
        assert distance(moved, exact, apart=apart) < 1e-5
        without.append(distance(moved, exact))
    if name == "dare_linear" or (name, semantics) == ("dare_ties", "mergekit"):
        return  # their choices are draws; where L1 norms are restored, parents that cancelled don't
    assert max(without) > 1e-3, "no choice hung on rounding: the test says nothing"


@pytest.mark.parametrize("semantics", ["paper", "mergekit"])
@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name != "magnitude_prune"])
def test_little_is_undecided_of_parents_without_ties(name: str, semantics: str) -> None:
    parents = dense(1.0, 0.5, 2.0)
    masks = undecided(name, parents, WEIGHTS, resolved(name, semantics), 1).values()
    assert sum(mask.sum() for mask in masks) <= 1e-3 * sum(mask.size for mask in masks)


def test_nothing_of_a_sum_is_undecided() -> None:
    masks = undecided("slerp", near_ties()[:2], [], resolved("slerp"))
    assert masks.keys() == near_ties()[0].keys()
    assert not any(mask.any() for mask in masks.values())
