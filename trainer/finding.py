"""What a rule of `doctor` finds, and what rules measure and advise with.

Levels are medians of windows, and the noise of a step's loss is told from the differences of neighbours (median absolute
deviation), which no trend can inflate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from adapterhub.trainer.history import Evaluation, History

Severity = Literal["problem", "warning", "remark"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "remark")


@dataclass(frozen=True)
class Finding:
    """One thing that was found. `advice` says what to change; `change` says it as keys of the recipe and their values."""

    rule: str
    severity: Severity
    words: str
    advice: str
    step: int | None = None
    change: Mapping[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


# What rules measure with


def finite(value: float) -> bool:
    return math.isfinite(value)


def none(norm: float | None) -> bool:
    return norm is not None and norm == 0


def wide_window(losses: Sequence[float]) -> int:
    """Steps of a window that stands for a level: a tenth of all, 5 to 50."""
    return max(5, min(50, len(losses) // 10))


def deviation(losses: Sequence[float]) -> float:
    """The standard deviation of the noise, from the differences of neighbours by their median absolute deviation."""
    steps = [after - before for before, after in pairwise(losses)]
    if not steps:
        return 0.0
    middle = median(steps)
    return 1.4826 * median(abs(step - middle) for step in steps) / math.sqrt(2)


def error_of_medians(losses: Sequence[float], wide: int) -> float:
    """The standard error of the difference of two medians of `wide` losses."""
    return 1.2533 * deviation(losses) * math.sqrt(2 / wide)


def levels(losses: Sequence[float], wide: int) -> list[float]:
    return [
        median(losses[at : at + wide]) for at in range(0, len(losses) - wide + 1, max(1, wide // 2))
    ]


def held_out_curve(history: History) -> list[Evaluation]:
    return [scored for scored in history.evaluations if finite(scored.loss)]


# What advice says


def new_rate(history: History, factor: float) -> dict[str, Any]:
    rate = history.setting("learning_rate")
    if not isinstance(rate, int | float) or rate <= 0:
        return {}
    return {"learning_rate": min(1.0, float(f"{factor * rate:.2g}"))}


def to_rate(history: History, factor: float) -> str:
    change = new_rate(history, factor)
    return f" ({in_words(change)})" if change else ""


def new_length(history: History, factor: float) -> dict[str, Any]:
    epochs, steps = history.setting("epochs"), history.setting("steps")
    if isinstance(epochs, int | float):
        return {"epochs": float(f"{factor * epochs:.2g}")}
    return {"steps": round(factor * steps)} if isinstance(steps, int) else {}


def to_length(history: History, factor: float) -> str:
    change = new_length(history, factor)
    return f" ({in_words(change)})" if change else ""


def length_until(history: History, step: int) -> dict[str, Any]:
    """A length that ends about where the held-out rows were best."""
    if not step or not history.last:
        return {}
    return new_length(history, step / max(history.planned, history.last))


def in_words(change: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}: {value:g}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in change.items()
    )
