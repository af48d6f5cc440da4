"""What a training's events say, in order: its steps, its evaluations and how it ended.

Events are taken one at a time, so that a running training and a finished one's `events.jsonl` give the same history.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub.errors import FormatError, NotFoundError

_MOST = 2**53
"""No training has so many steps; a number beyond is none of ours, and no float holds it."""


@dataclass(frozen=True)
class Step:
    """One optimizer step. `grad_norm` is that before clipping; `grad_norms` are those of groups of modules."""

    step: int
    loss: float
    learning_rate: float | None = None
    grad_norm: float | None = None
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    tokens: float | None = None
    """All that were trained on so far, this step's among them."""
    tokens_per_second: float | None = None
    memory: float | None = None
    """In bytes."""
    seconds: float | None = None
    """Since training began; what came before a resumed run went on counts, the time between doesn't."""
    left: float | None = None
    """Seconds to the end, as the training itself told."""


@dataclass(frozen=True)
class Evaluation:
    """The held-out rows scored after `step` steps (0: before the first), in nats a token."""

    step: int
    loss: float
    rows: int | None = None


@dataclass(frozen=True)
class Sample:
    """A held-out question that was answered after `step` steps."""

    step: int
    question: str
    answer: str


@dataclass
class History:
    """What happened so far. Steps that were taken back by resuming from a checkpoint are not in it."""

    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as plain values, where it is known."""
    planned: int = 0
    """Steps of the whole training; 0 while it hasn't begun."""
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    checkpoint: int | None = None
    """The newest step from which the training could go on."""
    result: str | None = None
    """The name in the store, once the adapter is there."""
    best: int | None = None
    """The step that the training itself took for the best."""
    stopped_early: bool = False
    outcome: str | None = None
    """done | failed | interrupted; None while it runs, or where its end was never recorded."""
    error: str = ""
    """What a failed training said."""
    _tokens_of_epoch: int = 0

    @classmethod
    def from_events(cls, path: Path) -> History:
        """The history in the file `path` and, where it lies beside it, the recipe. A last line that was cut is left out.

        Raises NotFoundError where there is no such file and FormatError where a line is no event.
        """
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            raise NotFoundError(
                f"The run {path.parent.name} has no events.", why=f"There is no {path}."
            ) from None
        history = cls(recipe=recipe_of(path.parent))
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
            except ValueError as error:
                if number == len(lines):  # the training writes it now, or was killed while it did
                    break
                raise FormatError(f"Line {number} of {path} is no event.", why=str(error)) from None
            if isinstance(event, dict):
                history.take(event)
        return history

    def take(self, event: Mapping[str, Any]) -> None:
        """Adds one event; events of other kinds, and those without the numbers they should have, change nothing."""
        kind = event.get("event")
        step = event.get("step")
        if isinstance(step, int) and not 0 <= step < _MOST:
            return
        if kind == "training":
            self.planned = _whole(event.get("steps"))
        elif kind == "loaded":
            self._tokens_of_epoch = _whole(event.get("tokens"))
        elif kind == "step" and isinstance(step, int):
            self._take_step(step, event)
        elif kind == "evaluated":
            self._take_evaluation(event)
        elif kind == "sample" and isinstance(step, int):
            said = Sample(step, str(event.get("question")), str(event.get("answer")))
            self.samples.append(said)
        elif kind == "checkpoint" and isinstance(step, int):
            self.checkpoint = step
        elif kind == "added" and isinstance(event.get("name"), str):
            self.result = str(event["name"])
        elif kind == "best" and isinstance(step, int):
            self.best = step
        elif kind == "stopped_early":
            self.stopped_early = True
        elif kind == "resumed" and isinstance(step, int):
            self.steps = [taken for taken in self.steps if taken.step <= step]
            self.evaluations = [scored for scored in self.evaluations if scored.step <= step]
            self.samples = [said for said in self.samples if said.step <= step]
            self.outcome, self.error, self.stopped_early = None, "", False
        elif kind in ("done", "failed", "interrupted"):
            self.outcome = str(kind)
            self.error = str(event.get("error") or "")

    def snapshot(self) -> History:
        """A copy that later events leave alone."""
        return replace(
            self,
            steps=self.steps[:],
            evaluations=self.evaluations[:],
            samples=self.samples[:],
        )

    @property
    def losses(self) -> list[float]:
        """The training loss of every step, nats a token."""
        return [step.loss for step in self.steps]

    @property
    def last(self) -> int:
        """The number of the last step."""
        return self.steps[-1].step if self.steps else 0

    def between(self, first: int, last: int) -> list[Step]:
        """The steps numbered `first` to `last`."""
        start = bisect_left(self.steps, first, key=lambda step: step.step)
        return self.steps[start : bisect_right(self.steps, last, key=lambda step: step.step)]

    def setting(self, key: str, default: Any = None) -> Any:
        """The recipe's value at `key` (`data.held_out`), or `default` where it is not known."""
        found: Any = self.recipe
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return default
            found = found[part]
        return found

    def _take_step(self, step: int, event: Mapping[str, Any]) -> None:
        loss = _number(event.get("loss"))
        if loss is None:
            return
        groups = event.get("grad_norms")
        norms = groups.items() if isinstance(groups, Mapping) else ()
        self.planned = _whole(event.get("steps")) or self.planned
        self.steps.append(
            Step(
                step,
                loss,
                _number(event.get("learning_rate")),
                _number(event.get("grad_norm")),
                {str(name): float(norm) for name, norm in norms if _number(norm) is not None},
                self._tokens(event),
                _number(event.get("tokens_per_second")),
                _number(event.get("memory")),
                _number(event.get("seconds")),
                _number(event.get("eta")),
            )
        )

    def _tokens(self, event: Mapping[str, Any]) -> float | None:
        """The tokens up to and with this step; of a run whose steps don't tell, by its share of an epoch."""
        own = _number(event.get("tokens"))
        if own is not None:
            return ((self.steps[-1].tokens or 0.0) if self.steps else 0.0) + own
        epoch = _number(event.get("epoch"))
        return epoch * self._tokens_of_epoch if epoch and self._tokens_of_epoch else None

    def _take_evaluation(self, event: Mapping[str, Any]) -> None:
        loss, step = _number(event.get("loss")), event.get("step")
        if loss is None:
            return
        if not isinstance(step, int):
            step = 0 if event.get("when") == "before" else self.last
        scored = Evaluation(step, loss, _whole(event.get("rows")) or None)
        if self.evaluations and self.evaluations[-1].step == step:
            self.evaluations[-1] = (
                scored  # the same step scored twice: during training and after it
            )
        else:
            self.evaluations.append(scored)


def recipe_of(run: Path) -> Mapping[str, Any]:
    """The recipe of a run as plain values; empty where it has none that can be read."""
    try:
        found = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run without it can be judged still
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float | None:
    """A number, not finite ones included: json reads NaN and Infinity, and a string of them is one as well."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < _MOST else 0
