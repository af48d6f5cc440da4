"""The element-wise methods, put together from pruning and combining. Each takes a Job and gives what opens a module.

A weight scales its adapter: merging ΔW with weight w is merging w·ΔW with weight 1, so a paper's algorithm without
weights runs on the wᵢΔWᵢ unchanged (pruning doesn't look at the scale of a parent).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from adapterhub.errors import UsageError
from adapterhub.lora.rows import Rows
from adapterhub.merge.methods.combining import Elected, WeightedSum
from adapterhub.merge.methods.masks import RandomStream
from adapterhub.merge.methods.pruning import Banded, Dropped, RankDropped, Trimmed
from adapterhub.merge.methods.sce import Sce
from adapterhub.merge.schedule import Schedule
from adapterhub.merge.select import in_turn, kth_largest, share_of
from adapterhub.merge.stages import Job, Opener, delta_of

Pruner = Callable[[int, str, Rows], Rows]
"""(number of the input, module, its delta) -> the pruned delta."""
Combiner = Callable[[Job, str, Sequence[Rows], Sequence[float]], Rows]


def trimmed_sum(job: Job) -> Opener:
    """The largest elements of each, summed."""
    return _pipeline(job, _trimmer(job, "density"), _summed)


def ties(job: Job) -> Opener:
    """TIES-Merging (Yadav et al. 2023, algorithm 1): trim, elect, disjoint merge."""
    return _pipeline(job, _trimmer(job, "density"), _elected)


def dropped_sum(job: Job) -> Opener:
    """DARE (Yu et al. 2024, section 3.1) before a weighted sum."""
    return _pipeline(job, _dropper(job), _summed)


def dropped_ties(job: Job) -> Opener:
    """DARE before TIES; `trim` is the trim's density."""
    return _pipeline(job, _trimmer(job, "trim", before=_dropper(job)), _elected)


def ranked_sum(job: Job) -> Opener:
    """DELLA's MagPrune before a weighted sum."""
    return _pipeline(job, _rank_dropper(job), _summed)


def ranked_ties(job: Job) -> Opener:
    """DELLA (Deep et al. 2024, section 3): MagPrune, elect, fuse."""
    return _pipeline(job, _rank_dropper(job), _elected)


def band_sum(job: Job) -> Opener:
    """Model Breadcrumbs (Davari and Belilovsky 2024, section 3)."""
    return _pipeline(job, _bander(job), _summed)


def band_ties(job: Job) -> Opener:
    """The mask of Model Breadcrumbs before an election."""
    return _pipeline(job, _bander(job), _elected)


def sce(job: Job) -> Opener:
    """SCE over all parents; one that lacks the module is a delta of zeros there."""

    def open_module(module: str, inputs: Sequence[Rows | None]) -> Rows:
        there = next(rows for rows in inputs if rows is not None)
        return Sce(
            [rows if rows is not None else Zeros(there) for rows in inputs],
            job.parameter("select_topk", module),
            job.parameter("equal_below", module),
            job.parameter("tie", module),
        )

    return open_module


class Zeros:
    """A delta of zeros, as large as another."""

    def __init__(self, like: Rows) -> None:
        self.shape, self.device = like.shape, like.device

    def fill(self, first: int, last: int, out: object) -> None:
        out.zero_()  # type: ignore[attr-defined]


def _pipeline(job: Job, prune: Pruner, combine: Combiner) -> Opener:
    def open_module(module: str, inputs: Sequence[Rows | None]) -> Rows:
        weights = job.weights(module)
        there = [(place, rows) for place, rows in enumerate(inputs) if rows is not None]
        return combine(
            job,
            module,
            [prune(place, module, rows) for place, rows in there],
            [weights[place] for place, _ in there],
        )

    return open_module


def _summed(job: Job, module: str, parts: Sequence[Rows], weights: Sequence[float]) -> Rows:
    scale = job.parameter("lambda", module)
    return WeightedSum(parts, [scale * weight for weight in weights])


def _elected(job: Job, module: str, parts: Sequence[Rows], weights: Sequence[float]) -> Rows:
    vote, tie, divisor, scale = (
        job.parameter(name, module) for name in ("vote", "tie", "divisor", "lambda")
    )
    return Elected(parts, weights, vote=vote, tie=tie, divisor=divisor, scale=scale)


def _as_it_is(_place: int, _module: str, rows: Rows) -> Rows:
    return rows


def _trimmer(job: Job, density: str, before: Pruner = _as_it_is) -> Pruner:
    """Keeps the ⌊density·N⌋ largest magnitudes, N of the module or of all modules that the parent changes."""
    thresholds = _thresholds(
        job, (density,), before, lambda shares, total: [share_of(shares[0], total)]
    )

    def prune(place: int, module: str, rows: Rows) -> Rows:
        pruned = before(place, module, rows)
        if job.parameter(density, module) >= 1:
            return pruned
        return Trimmed(pruned, thresholds(place, module, pruned)[0])

    return prune


def _bander(job: Job) -> Pruner:
    """Keeps ⌊density·N⌋ magnitudes below the ⌊gamma·N⌋ largest, fewer of which are cut where there is no room."""

    def bounds(shares: Sequence[float], total: int) -> list[int]:
        kept, top = (share_of(share, total, least=0) for share in shares)
        top = min(top, total - kept)
        return [top + kept, top + 1] if kept else []

    thresholds = _thresholds(job, ("density", "gamma"), _as_it_is, bounds)

    def prune(place: int, module: str, rows: Rows) -> Rows:
        if job.parameter("density", module) >= 1:
            return rows
        found = thresholds(place, module, rows)
        return Banded(rows, *found) if found else Zeros(rows)

    return prune


def _dropper(job: Job) -> Pruner:
    def prune(place: int, module: str, rows: Rows) -> Rows:
        density = job.parameter("density", module)
        if density >= 1:
            return rows
        stream = RandomStream(job.seed, job.first + place, module)
        return Dropped(rows, density, stream, job.parameter("rescale", module))

    return prune


def _rank_dropper(job: Job) -> Pruner:
    def prune(place: int, module: str, rows: Rows) -> Rows:
        density, epsilon = job.parameter("density", module), job.parameter("epsilon", module)
        if density >= 1:
            return rows
        if not (density - epsilon > 0 and density + epsilon < 1):
            raise UsageError(
                f"--epsilon {epsilon:g} is too large for --density {density:g}.",
                why="density - epsilon must be above 0, and density + epsilon below 1.",
                hint=f"For example: --epsilon {min(density, 1 - density) / 2:g}",
            )
        stream = RandomStream(job.seed, job.first + place, module)
        return RankDropped(rows, density, epsilon, stream, job.parameter("rescale", module))

    return prune


def _thresholds(
    job: Job,
    names: Sequence[str],
    before: Pruner,
    ranks: Callable[[Sequence[float], int], list[int]],
) -> Callable[[int, str, Rows], list[float]]:
    """The magnitudes at certain ranks of each parent, found in its module or, at once, over all its modules.

    `ranks` gives them, from 1 for the largest, from the values of the parameters `names` and the number of elements.
    """
    if job.parameters["trim_scope"] == "module":

        def in_module(place: int, module: str, rows: Rows) -> list[float]:
            total = rows.shape[0] * rows.shape[1]
            wanted = ranks([job.parameter(name, module) for name in names], total)
            return [kth_largest([module], lambda _: rows, k, in_turn, total) for k in wanted]

        return in_module

    shares = []
    for name in names:
        value = job.parameters[name]
        if isinstance(value, Schedule):
            raise UsageError(
                f"{name} can't differ from module to module while the trim is over the whole adapter.",
                hint="Trim module by module: --trim-scope module (in a recipe: trim_scope: module)",
            )
        shares.append(value)
    if shares[0] >= 1:
        return lambda *_: []
    found = [
        _over_model(job, place, before, partial(ranks, shares)) for place in range(len(job.inputs))
    ]
    return lambda place, _module, _rows: found[place]


def _over_model(
    job: Job, place: int, before: Pruner, ranks: Callable[[int], list[int]]
) -> list[float]:
    stage = job.inputs[place]
    total = sum(out * width for out, width in stage.shapes.values())

    def open_rows(module: str) -> Rows:
        return before(place, module, delta_of(stage, module))

    return [kth_largest(sorted(stage.shapes), open_rows, k, job.each, total) for k in ranks(total)]
