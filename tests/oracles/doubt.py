"""Where float32 may choose otherwise: elements that a comparison has to leave out, found without looking at its result.

A choice is in doubt where values on both sides of its threshold lie within `tolerance` of it, so that rounding could swap
them, and where a vote or a value is so near zero that its sign could be rounding. Random draws are integers and never
in doubt; the chances that they are compared with are, where two ranks could swap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tests.oracles import elementwise
from tests.oracles.masks import Mask, limit, stream
from tests.oracles.parents import Parameters, Stack, column, number, share, stacks
from tests.support.dense import Deltas, Matrix

TOLERANCE = 1e-6
"""A few roundings to float32, relative to the threshold or to a delta's root mean square."""


def undecided(
    method: str,
    parents: Sequence[Deltas],
    weights: Sequence[float],
    parameters: Parameters,
    seed: int = 0,
    *,
    tolerance: float = TOLERANCE,
) -> dict[str, Mask]:
    """Module -> the elements of the result that rounding may decide otherwise; none for a sum.

    A vote of exactly zero in float64 counts as decided: there the test has parents that cancel, and says what it expects.
    """
    found = {module: np.zeros(stack.shape[1:], bool) for module, stack in stacks(parents).items()}
    if method == "sce":
        for module, stack in stacks(parents).items():
            found[module] |= _sce(stack, parameters, tolerance)
        return found
    for steps, step in enumerate(elementwise.THINNING.get(method, ())):
        before = elementwise.thinned(method, parents, parameters, seed, steps)
        for place, parent in enumerate(before):
            for module, mask in _thinning(step, parent, parameters, seed, place, tolerance).items():
                found[module] |= mask
    if "vote" in parameters:
        for module, stack in stacks(elementwise.thinned(method, parents, parameters, seed)).items():
            found[module] |= _vote(stack, weights, parameters, tolerance)
    return found


def _thinning(
    step: str, parent: Deltas, parameters: Parameters, seed: int, place: int, tolerance: float
) -> dict[str, Mask]:
    if step == "drop":
        return {}
    if step == "magprune":
        return {
            module: _ranks(delta, parameters, stream(seed, place, module, delta.shape), tolerance)
            for module, delta in parent.items()
        }
    found = {}
    for group in elementwise.scopes(parent, parameters):
        ascending = elementwise.magnitudes(parent, group)
        count = len(ascending)
        if step == "band":
            cuts = elementwise.band(
                number(parameters, "density"), number(parameters, "gamma"), count
            )
        else:
            density = number(parameters, "trim" if step == "trim after" else "density")
            cuts = (count - elementwise.trim_count(density, count), count)
        for module in group:
            found[module] = _at_cuts(np.abs(parent[module]), ascending, cuts, tolerance)
    return found


def _at_cuts(size: Matrix, ascending: Stack, cuts: Sequence[int], tolerance: float) -> Mask:
    """Near the border between two neighbours of the order that rounding could swap."""
    found = np.zeros(size.shape, bool)
    for cut in cuts:
        if 0 < cut < len(ascending) and ascending[cut] > 0:
            slack = tolerance * max(ascending[cut], _root_mean_square(ascending))
            if ascending[cut] - ascending[cut - 1] <= slack:
                found |= np.abs(size - ascending[cut]) <= 2 * slack
    return found


def _ranks(
    delta: Matrix, parameters: Parameters, words: npt.NDArray[np.int64], tolerance: float
) -> Mask:
    """Where other ranks, within rounding, would keep what is dropped or the other way round, or rescale otherwise.

    All of a module whose L1 norm hangs on that.
    """
    density, epsilon = number(parameters, "density"), number(parameters, "epsilon")
    width = delta.shape[1]
    if density >= 1 or width == 1:
        return np.zeros(delta.shape, bool)
    lowest, highest = np.empty_like(delta), np.empty_like(delta)
    for row, values in enumerate(np.abs(delta)):
        slack, ordered = tolerance * np.maximum(values, _root_mean_square(values)), np.sort(values)
        lowest[row] = np.searchsorted(ordered, values - slack, side="left")
        highest[row] = np.searchsorted(ordered, values + slack, side="right") - 1
    low, high = (
        words < limit(density - epsilon + 2 * epsilon * rank / (width - 1))
        for rank in (lowest, highest)
    )
    swaps: Mask = (lowest < highest) & (delta != 0)
    if parameters["rescale"] == "inverse":
        return swaps & high
    flips: Mask = swaps & (high != low)
    lost, whole = np.abs(delta[flips]).sum(), np.abs(delta).sum()
    if parameters["rescale"] == "l1" and lost > tolerance * whole:
        return np.ones(delta.shape, bool)
    return flips


def _vote(stack: Stack, weights: Sequence[float], parameters: Parameters, tolerance: float) -> Mask:
    """Where the ballot nearly cancels, or a parent's value is so small that the side it takes is rounding."""
    votes = elementwise.ballot(stack, weights, parameters)
    if parameters["vote"] == "count":
        return _tiny(stack, tolerance)
    weighted = column(weights) * stack if parameters["vote"] == "weighted" else stack
    return _cancels(weighted, votes, tolerance) | _tiny(stack, tolerance)


def _sce(stack: Stack, parameters: Parameters, tolerance: float) -> Mask:
    """At the variance threshold, and where the vote nearly cancels; all of a module whose coefficients hang on a swap."""
    kept = number(parameters, "select_topk")
    mask = elementwise.selected(stack, kept)
    chosen = np.where(mask, stack, 0.0)
    found: Mask = _cancels(chosen, chosen.sum(axis=0), tolerance) | _tiny(chosen, tolerance)
    if kept >= 1:
        return found
    varies: Mask = stack.max(axis=0) != stack.min(axis=0)
    variance = np.where(varies, stack.var(axis=0), 0.0)
    ascending = np.sort(variance[varies])
    cut = len(ascending) - share(kept, len(ascending))
    at_cut = varies & _at_cuts(variance, ascending, [cut], 2 * tolerance)
    equal_below = number(parameters, "equal_below")
    with_all, with_none = (
        elementwise.energy_shares(np.where(some, stack, 0.0), equal_below)
        for some in (mask | at_cut, mask & ~at_cut)
    )
    if np.abs(with_all - with_none).max() > tolerance:
        return np.ones_like(found)
    return found | at_cut


def _cancels(stack: Stack, votes: Matrix, tolerance: float) -> Mask:
    """Votes within rounding of zero, but not zero."""
    each = np.where(stack != 0, np.maximum(np.abs(stack), _typical(stack)), 0.0)
    found: Mask = (np.abs(votes) <= tolerance * each.sum(axis=0)) & (votes != 0)
    return found


def _tiny(stack: Stack, tolerance: float) -> Mask:
    """A value within rounding of zero, but not zero."""
    found: Mask = ((np.abs(stack) <= tolerance * _typical(stack)) & (stack != 0)).any(axis=0)
    return found


def _typical(stack: Stack) -> Stack:
    found: Stack = np.sqrt((stack**2).mean(axis=(1, 2), keepdims=True))
    return found


def _root_mean_square(values: Stack) -> float:
    return float(np.sqrt((values**2).mean()))
