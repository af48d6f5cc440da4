"""What the training screen knows of the runs it shows, and the curves that can be drawn of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from adapterhub.runs import RunRecord
from adapterhub.trainer.finding import Finding
from adapterhub.trainer.history import History, Step
from adapterhub.trainer.plot import Point, drawable, smoothed
from adapterhub.words import human_size

Axis = Literal["steps", "tokens", "time"]
AXES: tuple[Axis, ...] = ("steps", "tokens", "time")
MOST_POINTS = 2000
"""Of a curve; more are averaged, as no screen has so many columns."""
SMOOTHING = 0.85
"""How much of the value before each keeps, where curves are smoothed."""


@dataclass(frozen=True)
class Watched:
    """One training as it was at one moment."""

    run: str
    letter: str
    """What its curve is called where there are several."""
    record: RunRecord | None
    """None where the run can't be read."""
    history: History
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        """The adapter's name; until the run has its recipe, what it was started as."""
        titled = self.record.title.removeprefix("Train ") if self.record else ""
        return str(self.history.recipe.get("name") or titled or self.run)

    @property
    def state(self) -> str:
        return self.record.state if self.record else "gone"

    @property
    def runs(self) -> bool:
        return self.state == "running"

    @property
    def resumes(self) -> bool:
        """Whether it ended before its time, with a checkpoint to go on from."""
        return (
            self.state in ("interrupted", "died", "failed") and self.history.checkpoint is not None
        )


@dataclass(frozen=True)
class Metric:
    """Something that is measured at every step. `say` writes a value, as short as an axis needs it."""

    key: str
    title: str
    value: Callable[[Step], float | None]
    say: Callable[[float], str]
    scored: bool = False
    """Whether the held-out rows are scored in the same unit, so that they belong into the plot."""


def _number(value: float) -> str:
    return f"{value:.4g}"


METRICS = (
    Metric("loss", "loss", lambda step: step.loss, _number, scored=True),
    Metric("rate", "learning rate", lambda step: step.learning_rate, lambda value: f"{value:.2e}"),
    Metric("norm", "gradient norm", lambda step: step.grad_norm, _number),
    Metric("groups", "gradient norm by module", lambda step: step.grad_norm, _number),
    Metric("speed", "tokens/s", lambda step: step.tokens_per_second, _number),
    Metric("memory", "memory", lambda step: step.memory, human_size),
)
SMALL = ("rate", "norm", "speed", "memory")
"""Those that have a small plot of their own where there is room."""


@dataclass(frozen=True)
class Curve:
    """A curve to draw: `letter` tells it from the others, and marks stand on single values."""

    letter: str
    name: str
    points: tuple[Point, ...]
    marks: tuple[Point, ...] = ()


def x_of(step: Step, axis: Axis) -> float | None:
    """Where a step stands on an axis."""
    place = {"steps": float(step.step), "tokens": step.tokens, "time": step.seconds}[axis]
    return place if place is not None and drawable(place) else None


def curves(
    watched: tuple[Watched, ...], current: int, metric: Metric, axis: Axis, smooth: bool
) -> tuple[Curve, ...]:
    """What the plot of a metric has: a curve a run, or a curve a group of modules of the current one."""
    if metric.key == "groups":
        history = watched[current].history
        names = sorted({name for step in history.steps for name in step.grad_norms})
        return tuple(
            _curve(letter, name, history, _of_group(name), axis, smooth)
            for letter, name in zip("abcdefghijklmnopqrstuvwxyz", names, strict=False)
        )  # fmt: skip
    return tuple(
        _curve(one.letter, one.name, one.history, metric.value, axis, smooth, scored=metric.scored)
        for one in watched
    )


def _of_group(name: str) -> Callable[[Step], float | None]:
    return lambda step: step.grad_norms.get(name)


def _curve(
    letter: str, name: str, history: History, value: Callable[[Step], float | None], axis: Axis,
    smooth: bool, *, scored: bool = False,
) -> Curve:  # fmt: skip
    points: list[Point] = []
    places: dict[int, float] = {0: 0.0}
    for step in history.steps:
        x, y = x_of(step, axis), value(step)
        if x is not None:
            places[step.step] = x
            if y is not None:
                points.append((x, y))
    marks = tuple(
        (places[one.step], one.loss) for one in history.evaluations if scored and one.step in places
    )
    drawn = smoothed(points, SMOOTHING) if smooth else [one for one in points if drawable(one[1])]
    return Curve(letter, name, tuple(_thinned(drawn)), marks)


def _thinned(points: list[Point]) -> list[Point]:
    """The means of as many neighbours as it takes."""
    size = math.ceil(len(points) / MOST_POINTS)
    if size < 2:
        return points
    groups = (points[at : at + size] for at in range(0, len(points), size))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def nearest(history: History, x: float, axis: Axis) -> Step | None:
    """The step that stands nearest to a place on the axis."""
    placed = [(abs(at - x), step) for step in history.steps if (at := x_of(step, axis)) is not None]
    return min(placed, key=lambda found: found[0])[1] if placed else None


def end_of(watched: tuple[Watched, ...], axis: Axis) -> float:
    """The right edge: where the longest training will end, as far as that can be told, or has come to."""
    return max((_end(one.history, axis) for one in watched), default=1.0)


def _end(history: History, axis: Axis) -> float:
    last = history.steps[-1] if history.steps else None
    if last is None:
        return float(history.planned if axis == "steps" else 1)
    if history.outcome == "done":  # it may have stopped early
        return x_of(last, axis) or 1.0
    if axis == "steps":
        return float(max(history.planned, last.step))
    here = x_of(last, axis) or 1.0
    if axis == "time":
        return here + (last.left if last.left is not None and drawable(last.left) else 0.0)
    return here * max(history.planned, last.step) / max(1, last.step)


def at_step(history: History) -> Mapping[int, float]:
    """The held-out loss by step."""
    return {one.step: one.loss for one in history.evaluations}
