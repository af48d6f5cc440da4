"""What happens beside the steps: events, evaluations with the adapter attached, the best one kept, an early end.

Everything is written to the run's events as it happens, and a resumed run reads its own past from there.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerCallback

from adapterhub.errors import AdapterHubError
from adapterhub.evaluate.models import answer
from adapterhub.evaluate.scoring import Score, score
from adapterhub.fsio import flush
from adapterhub.runs import EVENTS
from adapterhub.trainer.board import Board
from adapterhub.trainer.checkpoints import seal
from adapterhub.trainer.doctor import during
from adapterhub.trainer.history import History
from adapterhub.trainer.model import scoring_mode
from adapterhub.trainer.pairs import PairScore
from adapterhub.trainer.ranks import Ranks, here

if TYPE_CHECKING:
    from adapterhub.data.rows import Example
    from adapterhub.runs import Run
    from adapterhub.trainer.finding import Finding
    from adapterhub.trainer.loop import QuietTrainer, Stop
    from adapterhub.trainer.recipe import EvalSpec, Recipe

_RECENT = 20
"""Steps whose mean duration the time left is told from."""


@dataclass(frozen=True)
class Scored:
    """Held-out loss after `step` steps (0: before the first)."""

    step: int
    score: Score


@dataclass
class Course:
    """What the loop has measured so far."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    evaluations: list[Scored] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    """Steps whose adapter is in the run's `checkpoints` folder."""
    seconds: float = 0.0
    memory: int = 0
    """The most bytes that were in use after a step, as `memory_in_use` tells them; 0 before the first."""
    epochs: float = 0.0
    stopped_early: bool = False

    @property
    def before(self) -> Score | None:
        """The held-out score before the first step."""
        return next((e.score for e in self.evaluations if e.step == 0), None)

    @property
    def best(self) -> Scored | None:
        """The evaluation with the lowest loss after the first step; the earlier one of equals."""
        trained = [e for e in self.evaluations if e.step > 0]
        return min(trained, key=lambda e: (e.score.loss, e.step), default=None)

    @property
    def without_gain(self) -> int:
        """Evaluations since the best one."""
        best = self.best
        return 0 if best is None else sum(e.step > best.step for e in self.evaluations)

    def at(self, step: int) -> Score | None:
        """The held-out score after `step` steps, where it was taken."""
        return next((e.score for e in self.evaluations if e.step == step), None)


def past(events: Path, step: int) -> Course:
    """The history up to `step` as the events tell it: what was done after the checkpoint is done again."""
    history = Course()
    for line in events.read_text(encoding="utf-8").splitlines():
        told: dict[str, Any] = json.loads(line)
        if (told.get("step") or 0) > step:  # a finding about the data has none
            continue
        match told.get("event"):
            case "step":
                del history.losses[told["step"] - 1 :]
                history.losses.append(told["loss"])
                history.seconds, history.epochs = told["seconds"], told["epoch"]
                history.memory = max(history.memory, told.get("memory") or 0)
            case "evaluated":
                _replace(history.evaluations, Scored(told["step"], _score_of(told)))
            case "saved" if told["step"] not in history.saved:
                history.saved.append(told["step"])
    history.steps = step
    return history


def drop_lost(run: Run, course: Course) -> list[int]:
    """Makes the run's folder and `course` agree: returns the steps whose adapter is gone and with it their claim to be
    the best, and removes adapters of steps that will be computed again."""
    for folder in (run.path / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) not in course.saved:
            shutil.rmtree(folder)
    lost = [
        step
        for step in course.saved
        if not (checkpoint_folder(run, step) / "adapter_config.json").is_file()
    ]
    course.saved = [step for step in course.saved if step not in lost]
    course.evaluations = [e for e in course.evaluations if e.step not in lost]
    return lost


def _replace(evaluations: list[Scored], new: Scored) -> None:
    evaluations[:] = [e for e in evaluations if e.step != new.step] + [new]


def _score_of(told: Mapping[str, Any]) -> Score:
    summed = told["nll"], told["tokens"], told["rows"]
    if "margin" in told:
        return PairScore(*summed, told["accuracy"], told["margin"])
    return Score(*summed)


def evaluation_steps(spec: EvalSpec, steps: int) -> int:
    """Steps between evaluations: the recipe's, or ten evaluations a run at least 20 steps apart."""
    return spec.every or max(20, math.ceil(steps / 10))


class Examiner:
    """Scores the held-out rows and answers some of their questions, with the adapter attached and its mode restored."""

    def __init__(
        self, model: Any, tokenizer: Any, rows: Sequence[Any], run: Run, recipe: Recipe,
        questions: Sequence[Example], stop_ids: frozenset[int],
    ) -> None:  # fmt: skip
        self._model, self._tokenizer, self._rows, self._run = model, tokenizer, rows, run
        self._recipe = recipe
        self._questions = [row for row in questions if row.question][: recipe.eval.samples]
        self._stop_ids = stop_ids
        self.on_sample: Callable[[str, str], None] = lambda _asked, _said: None
        """Called with each held-out question that was answered, and the answer."""

    @property
    def rows(self) -> int:
        """How many held-out rows there are to score."""
        return len(self._rows)

    def examine(self, step: int, on_rows: Callable[[int], None] | None = None) -> Scored | None:
        """Scores the model as it is, writes the events, and returns the score; None without held-out rows."""
        if not self._rows:
            return None
        with scoring_mode(self._model):
            found = self._measure(on_rows)
            for row in self._questions:
                said = answer(
                    self._model, self._tokenizer, row.question, self._stop_ids,
                    self._recipe.eval.sample_tokens,
                )  # fmt: skip
                asked = row.question[-1].content
                self._run.event("sample", step=step, question=asked, answer=said)
                self.on_sample(asked, said)
        self._run.event(
            "evaluated", step=step, when="before" if step == 0 else "during", **found.measures,
            nll=found.nll, tokens=found.tokens, rows=found.rows,
        )  # fmt: skip
        return Scored(step, found)

    def _measure(self, on_rows: Callable[[int], None] | None) -> Score:
        return score(self._model, self._rows, on_rows=on_rows)


class Watch(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """The callback that sees every step. Stops when asked, when nothing gets better, or when the loss is lost."""

    def __init__(
        self,
        trainer: QuietTrainer,
        recipe: Recipe,
        run: Run,
        stop: Stop,
        examiner: Examiner,
        save: Callable[[Path], None],
        history: Course,
    ) -> None:
        self._trainer, self._recipe, self._run, self._stop = trainer, recipe, run, stop
        self._examiner, self._save = examiner, save
        self._ranks = here()
        self.history = history
        self.stopped = False
        """Whether the training ended because somebody asked for it; all processes agree."""
        self.on_each: Callable[[], None] = lambda: None
        """Called after every step, for whoever draws it."""
        self.on_finding: Callable[[Finding], None] = lambda _: None
        """Called with what the doctor has to say while it runs, each rule once."""
        self._judged = History.from_events(run.path / EVENTS) if self._ranks.first else History()
        wanted = recipe.tensorboard and self._ranks.first
        self._board = Board(run.path / "tensorboard") if wanted else None
        self._told: set[str] = set()
        steps = trainer.args.max_steps
        self._every = evaluation_steps(recipe.eval, steps)
        self._save_every = recipe.save_every or self._every
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._groups: dict[str, float] = {}
        self._tokens = 0
        self._earlier = history.seconds
        self._began = self._last = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether a run that is gone on with had ended for want of a gain already."""
        self.history.stopped_early = self._impatient
        return self.history.stopped_early

    @property
    def _impatient(self) -> bool:
        """Whether as many evaluations brought no gain as the recipe waits for."""
        patience = self._recipe.eval.patience
        return bool(patience and self.history.without_gain >= patience)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = self._last = time.monotonic()
        self._tell("training", steps=state.max_steps)
        if self._ranks.sharded and state.global_step == 0:
            before = self._examiner.examine(0)
            if before is not None:
                self.history.evaluations.append(before)
            self._began = self._last = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._groups = _squared_gradients(self._trainer.model, self._ranks)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        tuner: Any = cast("Any", self._trainer.model).base_model
        if hasattr(tuner, "update_and_allocate"):  # AdaLoRA moves its rank where it is needed
            tuner.update_and_allocate(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> Any:
        if not logs or "loss" not in logs:
            return control
        self._step(state, logs)
        step, last = state.global_step, state.global_step >= state.max_steps
        self.stopped = not last and self._ranks.any(self._stop.asked)
        if self.stopped:
            control.should_training_stop = control.should_save = True
            return control
        if step % self._every == 0 or last:
            self._examine(step)
            # The first process decides; the others, which may have no scores, wait for it here.
            if self._ranks.any(self._impatient and not last):
                self.history.stopped_early = control.should_training_stop = True
                self._run.event("stopped_early", step=step, patience=self._recipe.eval.patience)
        if step % self._save_every == 0 and not last:
            control.should_save = True
        # What the evaluation took is no part of the next step.
        self._last = time.monotonic()
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._board is not None:
            self._board.close()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ranks.wait()  # each process has written its random states
        if self._ranks.first:
            # What a resumed run reads of its past is there with the checkpoint.
            flush(self._run.path / EVENTS)
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)
        self._run.event("checkpoint", step=state.global_step)

    def keep(self, step: int) -> None:
        """Writes the adapter as it is now to the run's `checkpoints`, once."""
        folder = checkpoint_folder(self._run, step)
        if not self._ranks.share(folder.is_dir()):
            self._save(folder)
        if step not in self.history.saved:
            self.history.saved.append(step)
            self._run.event("saved", step=step)

    def _examine(self, step: int) -> None:
        self.keep(step)
        found = self._examiner.examine(step) if self._ranks.computes else None
        if found is None:
            return
        _replace(self.history.evaluations, found)
        self._show("evaluated", step=step, loss=found.score.loss, perplexity=found.score.perplexity)
        best = self.history.best
        if best is not None and best.step == step:
            self._run.event("best", step=step, loss=found.score.loss)

    def _step(self, state: Any, logs: Mapping[str, Any]) -> None:
        loss, norm = float(logs["loss"]) - self._trainer.penalty, logs.get("grad_norm")
        self._trainer.penalty = 0.0
        if not math.isfinite(loss):
            raise AdapterHubError(
                f"The loss is {loss} at step {state.global_step}: the training has diverged.",
                hint="Lower learning_rate, or raise warmup.",
            )
        now = time.monotonic()
        took, self._last = now - self._last, now
        self._recent.append(took)
        (tokens,) = self._ranks.sum([float(self._trainer.tokens_seen - self._tokens)])
        self._tokens = self._trainer.tokens_seen
        history = self.history
        history.steps = state.global_step
        history.epochs = float(state.epoch or 0)
        history.seconds = self._earlier + now - self._began
        history.losses.append(loss)
        memory = memory_in_use()
        history.memory = max(history.memory, memory)
        left = (state.max_steps - state.global_step) * sum(self._recent) / len(self._recent)
        self._tell(
            "step",
            step=state.global_step,
            steps=state.max_steps,
            loss=loss,
            learning_rate=logs.get("learning_rate"),
            grad_norm=norm,
            grad_norms=_unclipped(self._groups, norm),
            tokens=int(tokens),
            tokens_per_second=round(tokens / max(took, 1e-9), 1),
            memory=memory,
            epoch=state.epoch,
            seconds=round(history.seconds, 3),
            eta=round(left, 1),
            **_rewards(logs),
        )
        self.on_each()
        self._judge()

    def _tell(self, what: str, **fields: Any) -> None:
        self._run.event(what, **fields)
        self._show(what, **fields)

    def _show(self, what: str, **fields: Any) -> None:
        event = {"event": what, **fields}
        self._judged.take(event)
        if self._board is not None:
            self._board.take(event)

    def _judge(self) -> None:
        for finding in during(self._judged, self._told):
            self._told.add(finding.rule)
            self._run.event("finding", **finding.record)
            self.on_finding(finding)


def _rewards(logs: Mapping[str, Any]) -> dict[str, float]:
    """What trl tells of the pairs of a step, by the names that evaluations have."""
    told = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}
    return {name: logs[key] for name, key in told.items() if key in logs}


def checkpoint_folder(run: Run, step: int) -> Path:
    """Where the adapter after `step` steps lies in the run."""
    return run.path / "checkpoints" / f"step-{step}"


def memory_in_use() -> int:
    """Bytes: of the GPU at its peak, else of this process's memory now."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _squared_gradients(model: Any, ranks: Ranks) -> dict[str, float]:
    """The summed squares of the gradients, by the kind of module they belong to (q_proj, up_proj, ...)."""
    import torch

    groups: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            part = grad.to_local() if ranks.sharded else grad
            groups.setdefault(_kind(name), []).append(part)
    kinds = sorted(groups)
    squares = [float(torch.stack(torch._foreach_norm(groups[k])).square().sum()) for k in kinds]
    return dict(zip(kinds, ranks.sum(squares) if ranks.sharded else squares, strict=True))


def _kind(parameter: str) -> str:
    """`...self_attn.q_proj.lora_A.default.weight` -> `q_proj`."""
    parts = parameter.split(".")
    end = next(
        (i for i, part in enumerate(parts) if part.startswith(("lora_", "ia3_"))), len(parts) - 1
    )
    return parts[end - 1]


def _unclipped(groups: Mapping[str, float], norm: float | None) -> dict[str, float]:
    """Norms a group, as they were before the whole gradient (of norm `norm`) was clipped."""
    total = math.sqrt(sum(groups.values()))
    scale = norm / total if norm and total > 0 else 1.0
    return {kind: math.sqrt(square) * scale for kind, square in groups.items()}
