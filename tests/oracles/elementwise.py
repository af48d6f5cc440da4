"""Methods that look at every element: thin out each parent (`thinned`), then sum, or elect a sign and merge what agrees.

Thinned parents are called τ̂ᵢ; weights come after the thinning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.oracles.masks import Mask, kept
from tests.oracles.parents import Parameters, Stack, column, number, share, stacks
from tests.support.dense import Deltas, Matrix, weighted_sum

THINNING: dict[str, tuple[str, ...]] = {
    "magnitude_prune": ("trim",),
    "ties": ("trim",),
    "dare_linear": ("drop",),
    "dare_ties": ("drop", "trim after"),
    "della_linear": ("magprune",),
    "della": ("magprune",),
    "breadcrumbs": ("band",),
    "breadcrumbs_ties": ("band",),
}
"""Method -> how it thins its parents out, in order."""


def magnitude_prune(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """PEFT's name: the largest `density` of each parent, λ Σ wᵢ τ̂ᵢ."""
    return _summed(thinned("magnitude_prune", parents, parameters, seed), weights, parameters)


def ties(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Yadav et al. 2023 (arXiv:2306.01708): trim, elect sign, merge what agrees."""
    return elected(thinned("ties", parents, parameters, seed), weights, parameters)


def dare_linear(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Yu et al. 2024 (arXiv:2311.03099): drop at random, rescale, λ Σ wᵢ τ̂ᵢ."""
    return _summed(thinned("dare_linear", parents, parameters, seed), weights, parameters)


def dare_ties(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """The same drop, then TIES, which trims to the largest `trim` of all elements, dropped ones counted."""
    return elected(thinned("dare_ties", parents, parameters, seed), weights, parameters)


def della_linear(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Deep et al. 2024 (arXiv:2406.11617): drop the more likely the smaller, rescale, λ Σ wᵢ τ̂ᵢ."""
    return _summed(thinned("della_linear", parents, parameters, seed), weights, parameters)


def della(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """The same drop, then elect sign and merge what agrees."""
    return elected(thinned("della", parents, parameters, seed), weights, parameters)


def breadcrumbs(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Davari and Belilovsky 2024 (arXiv:2312.06795): neither the largest nor the smallest, λ Σ wᵢ τ̂ᵢ."""
    return _summed(thinned("breadcrumbs", parents, parameters, seed), weights, parameters)


def breadcrumbs_ties(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """The same mask, then elect sign and merge what agrees."""
    return elected(thinned("breadcrumbs_ties", parents, parameters, seed), weights, parameters)


def sce(
    parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters, seed: int = 0
) -> Deltas:
    """Wan et al. 2024 (arXiv:2408.07990): select by variance, calculate coefficients, erase the minority sign.

    Coefficients are equal where the parents' mean squares add up to less than `equal_below`.
    """
    merged: Deltas = {}
    for module, stack in stacks(parents).items():
        chosen = np.where(selected(stack, number(parameters, "select_topk")), stack, 0.0)
        coefficients = energy_shares(chosen, number(parameters, "equal_below"))
        sign = _sign(chosen.sum(axis=0), str(parameters["tie"]))
        agreeing = np.where((np.sign(chosen) == sign) & (chosen != 0), coefficients, 0.0)
        divisor = agreeing.sum(axis=0)
        merged[module] = (agreeing * chosen).sum(axis=0) / np.where(divisor > 0, divisor, 1.0)
    return merged


def thinned(
    method: str, parents: Sequence[Deltas], parameters: Parameters, seed: int, steps: int = 9
) -> list[Deltas]:
    """τ̂ᵢ of every parent; after the first `steps` of the method's ways of thinning out only."""
    found = []
    for place, parent in enumerate(parents):
        for step in THINNING[method][:steps]:
            if step == "trim":
                parent = _trim(parent, number(parameters, "density"), parameters)
            elif step == "trim after":
                parent = _trim(parent, number(parameters, "trim"), parameters)
            elif step == "band":
                parent = _band(parent, parameters)
            else:
                chance = chances if step == "magprune" else _density
                parent = _drop(parent, parameters, chance, seed, place)
        found.append(parent)
    return found


def scopes(parent: Deltas, parameters: Parameters) -> list[list[str]]:
    """The groups of modules whose elements compete: each by itself, or all that this parent changes."""
    if parameters["trim_scope"] == "model":
        return [sorted(parent)]
    return [[module] for module in sorted(parent)]


def magnitudes(parent: Deltas, group: Sequence[str]) -> Stack:
    """All magnitudes of a group of modules, ascending."""
    return np.sort(np.concatenate([np.abs(parent[module]).ravel() for module in group]))


def trim_count(density: float, count: int) -> int:
    return max(1, share(density, count))


def band(density: float, gamma: float, count: int) -> tuple[int, int]:
    """Which of `count` ascending magnitudes stay: from (with) the first to (without) the second position."""
    wide = share(density, count)
    bottom = max(0, count - wide - share(gamma, count))
    return bottom, bottom + wide


def chances(delta: Matrix, parameters: Parameters) -> Matrix:
    """MagPrune's chance of each element to stay: with its rank in the row, from density - ε to density + ε.

    Of equal magnitudes the earlier column ranks lower. A row of one element has the chance `density`, and with density 1
    nothing is dropped.
    """
    density, epsilon = number(parameters, "density"), number(parameters, "epsilon")
    width = delta.shape[1]
    if density >= 1 or width == 1:
        return np.full_like(delta, density)
    found = np.empty_like(delta)
    for row, values in enumerate(np.abs(delta)):
        for rank, place in enumerate(np.argsort(values, kind="stable")):
            found[row, place] = density - epsilon + 2 * epsilon * rank / (width - 1)
    return found


def _density(delta: Matrix, parameters: Parameters) -> Matrix:
    return np.full_like(delta, number(parameters, "density"))


def selected(stack: Stack, share_kept: float) -> Mask:
    """SCE: the elements of largest variance over the parents, of those that vary at all; equal ones are all kept."""
    varies: Mask = stack.max(axis=0) != stack.min(axis=0)
    if share_kept >= 1:
        return np.ones(stack.shape[1:], bool)
    count = share(share_kept, int(varies.sum()))
    if count == 0:
        return np.zeros(stack.shape[1:], bool)
    variance = stack.var(axis=0)
    largest: Mask = variance >= np.sort(variance[varies])[-count]
    return varies & largest


def energy_shares(stack: Stack, equal_below: float) -> Stack:
    """SCE: each parent's share of the sum of all squares, as (K, 1, 1)."""
    energies = (stack**2).sum(axis=(1, 2))
    if energies.sum() == 0 or energies.sum() < equal_below * stack[0].size:
        return column([1 / len(stack)] * len(stack))
    return column(list(energies / energies.sum()))


def elected(parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters) -> Deltas:
    """Elect a sign for every element and merge the values that agree with it, times λ."""
    merged: Deltas = {}
    for module, stack in stacks(parents).items():
        weighted = column(weights) * stack
        sign = _sign(ballot(stack, weights, parameters), str(parameters["tie"]))
        voters = weighted if parameters["vote"] == "weighted" else stack
        agrees = (np.sign(voters) == sign) & (voters != 0)
        total = np.where(agrees, weighted, 0.0).sum(axis=0)
        if parameters["divisor"] == "count":
            divisor = agrees.sum(axis=0).astype(np.float64)
        elif parameters["divisor"] == "weights":
            divisor = np.where(agrees, column(weights), 0.0).sum(axis=0)
        else:
            divisor = np.ones_like(total)
        merged[module] = number(parameters, "lambda") * total / np.where(divisor == 0, 1.0, divisor)
    return merged


def ballot(stack: Stack, weights: Sequence[float], parameters: Parameters) -> Matrix:
    """What the sign is taken of."""
    if parameters["vote"] == "weighted":
        stack = column(weights) * stack
    elif parameters["vote"] == "count":
        stack = np.sign(stack)
    votes: Matrix = stack.sum(axis=0)
    return votes


def _sign(votes: Matrix, tie: str) -> Matrix:
    return np.where(votes >= 0, 1.0, -1.0) if tie == "positive" else np.sign(votes)


def _summed(parents: Sequence[Deltas], weights: Sequence[float], parameters: Parameters) -> Deltas:
    return weighted_sum(parents, [number(parameters, "lambda") * weight for weight in weights])


def _trim(parent: Deltas, density: float, parameters: Parameters) -> Deltas:
    """The ⌊density·N⌋ largest magnitudes of each group, at least one, and those equal to the smallest of them."""
    found: Deltas = {}
    for group in scopes(parent, parameters):
        ascending = magnitudes(parent, group)
        threshold = ascending[-trim_count(density, len(ascending))]
        for module in group:
            found[module] = np.where(np.abs(parent[module]) >= threshold, parent[module], 0.0)
    return found


def _band(parent: Deltas, parameters: Parameters) -> Deltas:
    """The magnitudes between the largest and the smallest ones, and those equal to one at either end."""
    found: Deltas = {}
    for group in scopes(parent, parameters):
        ascending = magnitudes(parent, group)
        density, gamma = number(parameters, "density"), number(parameters, "gamma")
        first, end = band(density, gamma, len(ascending))
        for module in group:
            size = np.abs(parent[module])
            inside = np.zeros(size.shape, bool)
            if first < end:
                inside = (size >= ascending[first]) & (size <= ascending[end - 1])
            found[module] = np.where(inside, parent[module], 0.0)
    return found


def _drop(
    parent: Deltas,
    parameters: Parameters,
    chance: Callable[[Matrix, Parameters], Matrix],
    seed: int,
    place: int,
) -> Deltas:
    """Elements dropped at random, and what is left made up for them.

    `rescale` inverse divides each by its chance. l1 gives each module the L1 norm it had, unless one of the two norms
    is below 1e-7.
    """
    found: Deltas = {}
    for module, delta in parent.items():
        p = chance(delta, parameters)
        left = np.where(kept(p, seed, place, module, delta.shape), delta, 0.0)
        if parameters["rescale"] == "inverse":
            left = left / p
        elif parameters["rescale"] == "l1":
            before, after = np.abs(delta).sum(), np.abs(left).sum()
            left = left * (before / after) if min(before, after) >= 1e-7 else left
        found[module] = left
    return found
