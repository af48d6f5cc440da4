"""How sure a difference is: the paired bootstrap over rows, and what it says in a word.

Two models are scored on the same rows, so the rows are drawn together: what makes a row hard is hard for both and
cancels. The interval is bias-corrected and accelerated (Efron 1987, "Better Bootstrap Confidence Intervals").
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 10_000
LEAST = 6
"""Rows that show anything: that five go the same way happens by chance 2 times in 2**5, more than once in twenty."""
_AT_A_TIME = 2**21
"""Drawn rows held at a time: 16 MB."""

Word = Literal["better", "same", "worse"]


@dataclass(frozen=True)
class Interval:
    """An estimate, and between which values it lies with the probability `level`."""

    estimate: float
    low: float
    high: float
    level: float = LEVEL
    rows: int = LEAST
    """That it was drawn from."""

    def word(self, *, lower_is_better: bool) -> Word:
        """`same` where no difference was shown: zero lies within the interval, or the rows are fewer than LEAST."""
        if self.rows < LEAST or self.low <= 0 <= self.high:
            return "same"
        return "better" if (self.estimate < 0) == lower_is_better else "worse"


def ratio_interval(
    sums: ArrayLike,
    counts: ArrayLike,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of Σ sums / Σ counts over rows drawn with replacement.

    Args:
        sums: a number a row: the difference of two models' summed losses, or of what they got right.
        counts: what it is divided by, positive: the row's tokens, or 1.

    None for fewer than two rows: one says nothing about another.
    """
    values, weights = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    if len(values) < 2:
        return None
    estimate = float(values.sum() / weights.sum())
    drawn = _resampled(values, weights, resamples, np.random.default_rng(seed))
    if drawn.min() == drawn.max():
        return Interval(estimate, estimate, estimate, level, len(values))
    low, high = np.quantile(drawn, _shares(estimate, drawn, values, weights, level))
    return Interval(estimate, float(low), float(high), level, len(values))


def _resampled(
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    resamples: int,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    rows, found = len(values), []
    step = max(1, _AT_A_TIME // rows)
    for first in range(0, resamples, step):
        chosen = random.integers(0, rows, (min(step, resamples - first), rows))
        found.append(values[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    return np.concatenate(found)


def _shares(
    estimate: float,
    drawn: NDArray[np.float64],
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    level: float,
) -> list[float]:
    """Which quantiles of the drawn ratios bound the interval (Efron 1987, equations 2.3 and 6.6)."""
    normal = NormalDist()
    below = float(((drawn < estimate).mean() + (drawn <= estimate).mean()) / 2)
    margin = 0.5 / len(drawn)  # the normal quantile of 0 and 1 is infinite
    bias = normal.inv_cdf(min(max(below, margin), 1 - margin))
    without = (values.sum() - values) / (weights.sum() - weights)  # each row left out in turn
    spread = without.mean() - without
    size = float((spread**2).sum() ** 1.5)
    acceleration = float((spread**3).sum()) / (6 * size) if size > 0 else 0.0
    shares = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        moved = bias + normal.inv_cdf(tail)
        shares.append(normal.cdf(bias + moved / (1 - acceleration * moved)))
    return shares
