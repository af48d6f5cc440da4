"""The training loop: trl's SFTTrainer on rows we tokenised ourselves, with its events written to the run.

The rows come with their labels, so what trl trains on is what `adapterhub.data.masking` marked and `eval` scores.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from adapterhub.errors import AdapterHubError
from adapterhub.evaluate.scoring import summed_nll

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from adapterhub.data import Encoded
    from adapterhub.runs import Run
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe


@dataclass
class Stop:
    """Set by the first Ctrl-C (or SIGTERM): training ends after the step that is being computed."""

    asked: bool = False


@dataclass
class History:
    """What the loop has measured so far."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    epochs: float = 0.0


def to_dataset(rows: Sequence[Encoded]) -> Any:
    """The rows as trl takes them when they are tokenised already: `input_ids` and `labels`."""
    from datasets import Dataset  # type: ignore[import-untyped]

    return Dataset.from_dict(
        {"input_ids": [list(r.input_ids) for r in rows], "labels": [list(r.labels) for r in rows]}
    )


def packed_sequences(recipe: Recipe, rows: Sequence[Encoded]) -> int:
    """How many sequences one epoch has: the rows, or with packing the packed sequences."""
    if not recipe.packing:
        return len(rows)
    from trl.data_utils import pack_dataset

    return len(pack_dataset(to_dataset(rows), recipe.max_length, "bfd"))


def steps_of(recipe: Recipe, sequences: int) -> int:
    """Optimizer steps of the whole training."""
    if recipe.steps is not None:
        return recipe.steps
    a_step = recipe.batch_size * recipe.gradient_accumulation
    return max(1, math.ceil((recipe.epochs or 1) * math.ceil(sequences / a_step)))


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    recipe: Recipe,
    device: Device,
    scratch: Path,
) -> Trainer:
    """A trainer for `model` (a PEFT model) on `rows`; `scratch` is a folder it may write to."""
    checkpointing = recipe.gradient_checkpointing
    config = SFTConfig(
        output_dir=str(scratch),
        max_steps=steps_of(recipe, packed_sequences(recipe, rows)),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=_scheduler(recipe),
        warmup_steps=recipe.warmup,  # below 1 it is a fraction of the steps
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_length=recipe.max_length,
        packing=recipe.packing,
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=device.kind == "cpu",
        bf16=device.bf16,
        gradient_checkpointing=device.kind == "cuda" if checkpointing is None else checkpointing,
        dataloader_pin_memory=device.kind == "cuda",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model=model, args=config, train_dataset=to_dataset(rows), processing_class=tokenizer
    )


class Trainer(SFTTrainer):  # type: ignore[misc,unused-ignore] # trl's types are not followed
    """SFTTrainer that sends nothing anywhere, prints nothing, and trains adapters in float32."""

    def __init__(self, **options: Any) -> None:
        from transformers.trainer_callback import PrinterCallback

        super().__init__(**options)
        self.remove_callback(PrinterCallback)
        # trl rounds the adapter of a 4-bit base to bf16; the optimizer is made later, so this is in time.
        for parameter in options["model"].parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def _send_telemetry(self) -> None:
        return

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """trl's loss. On a CPU, where trl projects *every* position to the vocabulary, only the marked ones are."""
        if return_outputs or self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        total, count = summed_nll(model, inputs, labels)
        return total / max(1, int(count if num_items_in_batch is None else num_items_in_batch))


class Reporter(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Writes each step to the run's events and tells the caller; stops when asked, or when the loss is lost."""

    def __init__(self, run: Run, stop: Stop, on_step: Callable[[int, float], None]) -> None:
        self._run = run
        self._stop = stop
        self._on_step = on_step
        self._began = time.monotonic()
        self.history = History()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.monotonic()
        self._run.event("training", steps=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.history.steps = state.global_step
        self.history.epochs = float(state.epoch or 0)
        self.history.seconds = time.monotonic() - self._began
        if self._stop.asked:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise AdapterHubError(
                f"The loss is {loss} at step {state.global_step}: the training has diverged.",
                hint="Lower learning_rate, or raise warmup.",
            )
        self.history.losses.append(loss)
        self._run.event(
            "step",
            step=state.global_step,
            steps=state.max_steps,
            loss=loss,
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            epoch=state.epoch,
            seconds=round(time.monotonic() - self._began, 3),
        )
        self._on_step(state.global_step, loss)


@contextmanager
def stopping_on_interrupt(stop: Stop, on_ask: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop` and calls `on_ask`; a second one interrupts at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        on_ask()

    try:
        before = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # not the main thread: signals are somebody else's business
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _scheduler(recipe: Recipe) -> str:
    return "constant_with_warmup" if recipe.scheduler == "constant" else recipe.scheduler
