"""Preferences as an objective: direct preference optimisation (DPO, Rafailov et al. 2023) with trl's DPOTrainer.

Each pair goes through the model twice, as it is trained and as the reference that it must not leave too far behind: the
base for a fresh adapter, else the adapter as it was when training began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import use_adapter

from adapterhub.evaluate.scoring import score
from adapterhub.trainer.loop import QuietTrainer, arguments, steps_of
from adapterhub.trainer.pairs import EncodedPair, PairScore, score_pairs
from adapterhub.trainer.watch import Examiner

if TYPE_CHECKING:
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe

REFERENCE = "ref"
"""What trl calls the frozen copy of the adapter."""


class PreferenceTrainer(QuietTrainer, DPOTrainer):  # type: ignore[misc,unused-ignore] # trl's types are not followed
    """trl's DPOTrainer on pairs we tokenised ourselves."""

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(self, *, fresh: bool = False, **options: Any) -> None:
        """`fresh`: the adapter changes nothing yet, so the base, without any adapter, is the reference."""
        model = options["model"]
        config = model.peft_config["default"]
        init = config.init_lora_weights
        # trl gives the copy the same configuration. What it begins as is overwritten, but PiSSA and OLoRA would take
        # their part out of the base a second time.
        config.init_lora_weights = True
        try:
            super().__init__(**options)
        finally:
            config.init_lora_weights = init
        if fresh:
            model.delete_adapter(REFERENCE)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        return dataset  # the pairs are tokens already

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the batch's pairs; where Trainer says how many the step has, their part of the step's mean.

        trl takes the mean of the batches' means, in which the pairs of a smaller last batch count for more.
        """
        self.tokens_seen += int(inputs["attention_mask"].sum())
        loss = super().compute_loss(model, inputs)
        if num_items_in_batch is not None:
            # Each process divides by everybody's pairs, and DDP averages what they have.
            loss = loss * (_pairs(inputs) * self.accelerator.num_processes / num_items_in_batch)
        return (loss, None) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        """Pairs of a step, over all its batches and processes."""
        pairs = torch.tensor(sum(map(_pairs, batch_samples)), device=device)
        everybodys: Any = self.accelerator.gather(pairs)
        return everybodys.sum()


def _pairs(batch: Mapping[str, Any]) -> int:
    """The collator stacks the chosen sides on the rejected ones."""
    return len(batch["input_ids"]) // 2


def make_preference_trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[EncodedPair],
    recipe: Recipe,
    device: Device,
    scratch: Path,
) -> PreferenceTrainer:
    """A trainer for `model` (a PEFT model) on `pairs`, padded to the longest of a batch; `scratch` is a folder it may write to."""
    from accelerate import PartialState  # type: ignore[import-untyped,unused-ignore]

    processes = PartialState(cpu=device.kind == "cpu").num_processes
    config = DPOConfig(
        **arguments(recipe, device, scratch),
        max_steps=steps_of(recipe, len(pairs), processes),
        max_length=None,  # the pairs are cut already
        beta=recipe.dpo.beta,
    )
    return PreferenceTrainer(
        model=model,
        args=config,
        train_dataset=to_pair_dataset(pairs),
        processing_class=tokenizer,
        loraplus_ratio=recipe.loraplus_ratio,
        fresh=recipe.start_from is None and recipe.init == "default",
    )


def to_pair_dataset(pairs: Sequence[EncodedPair]) -> Any:
    """The pairs as trl takes them when they are tokenised: `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    from datasets import Dataset  # type: ignore[import-untyped]

    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for pair in pairs:
        for column, ids in zip(columns.values(), (pair.prompt_ids, *pair.answer_ids), strict=True):
            column.append(list(ids))
    return Dataset.from_dict(columns)


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """While the block runs, `model` (of a PreferenceTrainer) is the reference; then the adapter is trained on as before."""
    with use_adapter(model, REFERENCE if REFERENCE in model.peft_config else None):
        yield


class PreferenceExaminer(Examiner):
    """Scores held-out pairs: loss, accuracy and margin against the reference, which is asked once."""

    _pairs: Sequence[EncodedPair]
    _reference: list[float] | None = None

    def _measure(self, on_rows: Callable[[int], None] | None) -> PairScore:
        if self._reference is None:
            with as_reference(self._model):
                self._reference = self._preferred(None)
        policy = self._preferred(on_rows)
        return score_pairs(policy, self._reference, self._recipe.dpo.beta, len(policy))

    def _preferred(self, on_rows: Callable[[int], None] | None) -> list[float]:
        """log p(chosen) - log p(rejected) of every pair under the model as it is, in nats."""
        found: list[float] = []
        for pair in self._rows:
            chosen, rejected = (score(self._model, [side]).nll for side in pair.sides)
            found.append(rejected - chosen)
            if on_rows:
                on_rows(1)
        return found
