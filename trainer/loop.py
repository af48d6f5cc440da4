"""The training loop: trl's SFTTrainer on rows we tokenised ourselves, with a lean loss and rows that stay apart.

The rows come with their labels, so what trl trains on is what `adapterhub.data.masking` marked and `eval` scores. What
differs from a plain SFTTrainer is what the step costs: no logits (`head`), no attention across rows (`attention`), no
metrics that nobody asked for.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer as HFTrainer
from trl import SFTConfig, SFTTrainer

from adapterhub.evaluate.scoring import summed_nll
from adapterhub.trainer.attention import Apart, rows_apart
from adapterhub.trainer.checkpoints import load_trainable, save_trainable
from adapterhub.trainer.head import install_lean_loss
from adapterhub.trainer.methods import orthogonality
from adapterhub.trainer.ranks import here, sharded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from adapterhub.data import Encoded
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe

_OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


@dataclass
class Stop:
    """Set by the first Ctrl-C (or SIGTERM): training ends after the step that is being computed."""

    asked: bool = False


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

    return len(pack_dataset(to_dataset(rows), recipe.length, "bfd"))


def steps_of(recipe: Recipe, sequences: int, processes: int = 1) -> int:
    """Optimizer steps of the whole training."""
    if recipe.steps is not None:
        return recipe.steps
    a_step = recipe.batch_size * recipe.gradient_accumulation * processes
    return max(1, math.ceil((recipe.epochs or 1) * math.ceil(sequences / a_step)))


def optimizer_of(recipe: Recipe, device: Device) -> str:
    """The recipe's optimizer, `auto` resolved: paged and 8-bit where a quantised base leaves a GPU little else to save."""
    if recipe.optimizer != "auto":
        return recipe.optimizer
    if sharded():  # bitsandbytes' kernels know nothing of parts of a tensor
        return "adamw"
    return "paged_adamw_8bit" if recipe.method == "qlora" and device.kind == "cuda" else "adamw"


def checkpoints_activations(recipe: Recipe, device: Device) -> bool:
    """Whether activations are recomputed in the backward pass rather than kept."""
    wanted = recipe.gradient_checkpointing
    return device.kind == "cuda" if wanted is None else wanted


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    recipe: Recipe,
    device: Device,
    scratch: Path,
    *,
    apart: Apart | None = "rows",
    lean: bool = True,
) -> Trainer:
    """A trainer for `model` (a PEFT model) on `rows`; `scratch` is a folder it may write to.

    Args:
        recipe: with a number as its max_length.
        apart: how rows that follow each other without padding are kept apart (`attention.how_rows_stay_apart`); None: they
            aren't, so they are padded to the longest of a batch, and the recipe must not pack.
        lean: whether the lean loss is exact for this model (`head.lean_loss_is_exact`); else trained positions get logits.
    """
    from accelerate import PartialState

    processes = PartialState(cpu=device.kind == "cpu").num_processes
    config = SFTConfig(
        **arguments(recipe, device, scratch),
        max_steps=steps_of(recipe, packed_sequences(recipe, rows), processes),
        max_length=recipe.length if recipe.packing else None,  # the rows are cut already
        packing=recipe.packing,
        padding_free=apart is not None and not recipe.packing,
    )
    return Trainer(
        model=model,
        args=config,
        train_dataset=to_dataset(rows),
        processing_class=tokenizer,
        loraplus_ratio=recipe.loraplus_ratio,
        apart=apart,
        lean=lean,
        neftune_alpha=recipe.neftune_alpha,
    )


def arguments(recipe: Recipe, device: Device, scratch: Path) -> dict[str, Any]:
    """The arguments that every objective has in common, as transformers calls them."""
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "learning_rate": recipe.learning_rate,
        "optim": _OPTIMIZERS[optimizer_of(recipe, device)],
        "lr_scheduler_type": _scheduler(recipe),
        "warmup_steps": recipe.warmup,  # below 1 it is a fraction of the steps
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": device.kind == "cpu",
        "bf16": device.bf16,
        "gradient_checkpointing": checkpoints_activations(recipe, device),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_liger_kernel": device.kind == "cuda" and find_spec("liger_kernel") is not None,
        "dataloader_pin_memory": device.kind == "cuda",
        "ddp_find_unused_parameters": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # the watch says when
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
    }


class QuietTrainer(HFTrainer):  # type: ignore[misc,unused-ignore] # transformers' types are not followed
    """What our trainers change in transformers' and trl's: nothing is sent or printed, adapters are trained in float32,
    checkpoints hold the trained tensors as they are, and B may learn faster than A."""

    def __init__(self, *, loraplus_ratio: float | None = None, **options: Any) -> None:
        from transformers.trainer_callback import PrinterCallback

        # trl rounds the adapter of a 4-bit base to bf16; the optimizer is made later, so this is in time.
        trained = [(p, p.data) for p in options["model"].parameters() if p.requires_grad]
        super().__init__(**options)
        for parameter, exact in trained:
            parameter.data = exact.to(parameter.device, torch.float32)
        self.optimizer: Any
        self.remove_callback(PrinterCallback)
        self._loraplus_ratio = loraplus_ratio
        self.penalty = 0.0
        """What was added to the loss that is no loss of tokens, since somebody last set it to 0."""
        self.tokens_seen = 0
        """Tokens that went through the model, padding not counted."""

    def _send_telemetry(self) -> None:
        return

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the arguments; with LoRA+ (Hayou et al. 2024) B learns `loraplus_ratio` times faster than A."""
        if self.optimizer is None and self._loraplus_ratio is not None:
            from peft.optimizers import create_loraplus_optimizer

            whole: Any = self.model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, whole)
            self.optimizer = create_loraplus_optimizer(
                whole,
                kind,
                lr=settings.pop("lr"),
                loraplus_lr_ratio=self._loraplus_ratio,
                loraplus_weight_decay=self.args.weight_decay,
                **settings,
            )
        return super().create_optimizer(model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained tensors as they are in memory: what a resumed run needs. Adapters for people are saved elsewhere."""
        ranks = here()
        if ranks.computes:
            save_trainable(
                self.model, Path(str(output_dir or self.args.output_dir)), write=ranks.first
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        HFTrainer._save_checkpoint(self, model, trial)  # trl's write a model card as well

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(self.model, Path(resume_from_checkpoint))


class Trainer(QuietTrainer, SFTTrainer):  # type: ignore[misc,unused-ignore]
    """trl's SFTTrainer with the lean loss, and rows that follow each other without padding kept apart."""

    def __init__(
        self,
        *,
        apart: Apart | None = "rows",
        lean: bool = True,
        neftune_alpha: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._apart, self._lean = apart, lean
        base = options["model"].get_base_model()
        if lean:
            install_lean_loss(base)
        self.model_accepts_loss_kwargs = True  # either loss takes num_items_in_batch
        self._lengths = torch.ones(0)
        if neftune_alpha is not None:
            self._neftune(base.get_input_embeddings(), neftune_alpha)
        tuner: Any = options["model"].base_model
        self._allocator = tuner if hasattr(tuner, "rankallocator") else None
        if self._allocator is not None:
            # PEFT adds its penalty to the loss of every forward pass; here it is added once a step.
            config = self._allocator.peft_config["default"]
            self._penalty_weight, config.orth_reg_weight = config.orth_reg_weight, 0.0

    def training_step(self, model: Any, *args: Any, **options: Any) -> Any:
        with rows_apart(self.model) if self._apart == "rows" else nullcontext():
            return super().training_step(model, *args, **options)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the batch's trained positions (of the whole step, where Trainer says how many it has)."""
        mask = inputs.get("attention_mask")
        self.tokens_seen += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        self._lengths = _row_lengths(inputs)
        outputs = None
        if self._lean:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
            loss = outputs.loss
        else:
            labels = inputs.pop("labels")
            total, count = summed_nll(model, inputs, labels)
            loss = total / max(1, int(count if num_items_in_batch is None else num_items_in_batch))
        if self._allocator is not None and model.training:
            penalty = self._penalty_weight * orthogonality(self._allocator)
            penalty = penalty / self.current_gradient_accumulation_steps
            self.penalty += float(penalty.detach())
            loss = loss + penalty / (
                1 if num_items_in_batch is None else self.accelerator.num_processes
            )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = (
                loss * self.accelerator.num_processes
            )  # DDP averages what was divided by everybody's positions
        return (loss, outputs) if return_outputs else loss

    def _neftune(self, embedding: Any, alpha: float) -> None:
        """Noise of alpha/√(L·H) on the embeddings while training (Jain et al. 2023, algorithm 1), L of each row alone:
        rows that follow each other in one line are no longer for that."""

        def noisy(module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if not module.training:
                return output
            scale = alpha / (self._lengths.to(output.device) * output.shape[-1]).sqrt()
            noise = torch.empty_like(output).uniform_(-1, 1)
            return output + noise * scale[..., None].to(output.dtype)

        embedding.register_forward_hook(noisy)


def _row_lengths(inputs: Mapping[str, Any]) -> torch.Tensor:
    """(B, T): how many tokens the row has that a token belongs to."""
    bounds, mask = inputs.get("cu_seq_lens_q"), inputs.get("attention_mask")
    if bounds is not None:
        lengths = bounds.diff()
        return torch.repeat_interleave(lengths, lengths)[None].float()
    ids = inputs["input_ids"]
    whole = torch.full(ids.shape[:1], ids.shape[1]) if mask is None else mask.sum(1)
    return whole[:, None].expand(ids.shape).float()


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
