"""What a training would do, told before it is done: rows, tokens, steps, parameters and memory, without loading a weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.trainer.data import load_corpus, tokenize, tokenizer_for
from adapterhub.trainer.libraries import logged_to
from adapterhub.trainer.memory import MemoryPlan, for_people, plan_memory
from adapterhub.trainer.provenance import training_digest
from adapterhub.trainer.remarks import Remark, remarks
from adapterhub.words import counted, human_count

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.cli.output import Output
    from adapterhub.store import Resolved, Store
    from adapterhub.trainer.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The figures `recipe check` and `train --dry-run` print. Counts are exact, not estimates; memory is one."""

    name: str
    training: str
    """The digest by which the store knows the result of this very training."""
    base: str
    objective: str
    method: str
    kind: str
    device: str
    compute_dtype: str
    rows: int
    train_rows: int
    replayed_rows: int
    held_out_rows: int
    scored_rows: int
    truncated_rows: int
    dropped_rows: int
    tokens: int
    trained_tokens: int
    max_length: int
    sequences: int
    """In one epoch: rows, or packed sequences."""
    steps: int
    epochs: float
    optimizer: str
    gradient_checkpointing: bool
    evaluate_every: int | None
    """In steps; None where nothing is scored."""
    evaluations: int
    """After the first step; one more is before it."""
    save_every: int
    target_modules: Mapping[str, int]
    """How many modules of each name get an adapter."""
    trainable_parameters: int
    base_parameters: int
    memory: Mapping[str, Any] | None
    remarks: tuple[Remark, ...]

    @property
    def record(self) -> dict[str, Any]:
        """Every figure as plain values."""
        return {**asdict(self), "remarks": [remark.record for remark in self.remarks]}

    @property
    def sections(self) -> dict[str, Any]:
        """The same for people."""
        share = self.trained_tokens / self.tokens
        found: dict[str, Any] = {
            "what": {
                "name": self.name,
                "base": f"{self.base}, {human_count(self.base_parameters)} parameters",
                "training": f"{self.objective}, {self.method}, {self.kind}",
                "adapter": f"{human_count(self.trainable_parameters)} parameters on "
                + ", ".join(f"{count} {name}" for name, count in self.target_modules.items()),
            },
            "data": {
                "rows": f"{self.rows}: {self.train_rows} to train on, {self.held_out_rows} held out"
                + (f", {self.replayed_rows} replayed" if self.replayed_rows else ""),
                "tokens": f"{self.tokens}, {share:.0%} of them trained",
                "length": f"{self.max_length}: {self.truncated_rows} rows cut, {self.dropped_rows} left out",
                "sequences": self.sequences,
            },
            "steps": {
                "steps": f"{self.steps}, which is {self.epochs:g} {'epoch' if self.epochs == 1 else 'epochs'}",
                "optimizer": self.optimizer,
                "evaluated": f"every {self.evaluate_every} steps on {self.scored_rows} rows"
                if self.evaluate_every
                else "never",
                "checkpoint": f"every {self.save_every} steps",
            },
            "machine": {
                "device": self.device,
                "computes in": self.compute_dtype,
                "activations": "recomputed" if self.gradient_checkpointing else "kept",
            },
        }
        if self.memory is not None:
            found["memory"] = for_people(self.memory)
        return found


def print_plan(store: Store, recipe: Recipe, out: Output, *, move: bool = False) -> None:
    """Makes the plan and prints it: sections for people, everything with --json, the steps with -q.

    Raises what `make_plan` raises, and ConflictError where the name is another adapter's and `move` doesn't allow that.
    """
    from adapterhub.trainer.train import known_result

    with out.progress("reading the data and the base"), logged_to(None):
        start = store.resolve(recipe.start_from) if recipe.start_from else None
        plan = make_plan(recipe, store.bases.open(recipe.base), start)
    if known_result(store, recipe, plan.training, move=move):
        out.note(f"{recipe.name} is the result of this very training already.")
    if out.mode == "human":
        out.record(plan.sections)
    else:
        out.record(plan.record, ids=("steps",))
    if out.mode != "json":
        for remark in plan.remarks:
            (out.warn if remark.severity == "warn" else out.note)(remark.text)


def make_plan(
    recipe: Recipe,
    base: BaseModel,
    start: Resolved | None = None,
    doing: Callable[[str], object] = lambda _: None,
) -> Plan:
    """Reads and tokenises the data, and counts parameters on a model without memory; `start` is the adapter to go on with.

    `doing` is told what begins now.

    Raises what reading, splitting, masking and `attach` raise: a recipe that plans, trains.
    """
    from adapterhub.trainer.loop import (
        checkpoints_activations,
        optimizer_of,
        packed_sequences,
        steps_of,
    )
    from adapterhub.trainer.model import choose_device, count_parameters, meta_model
    from adapterhub.trainer.train import settled
    from adapterhub.trainer.watch import evaluation_steps

    doing("reading the data")
    corpus = load_corpus(recipe)
    doing(f"counting the tokens of {counted(len(corpus.rows), 'row')}")
    tokens = tokenize(recipe, corpus, tokenizer_for(corpus, base.path), base.path)
    settled_recipe = settled(recipe, tokens, start)
    device = choose_device()
    sequences = packed_sequences(settled_recipe, tokens.train.rows)
    steps = steps_of(settled_recipe, sequences)
    doing("counting parameters and memory")
    a_step = recipe.batch_size * recipe.gradient_accumulation
    model = meta_model(settled_recipe, base, steps=steps)
    trainable, total = count_parameters(model)
    every = evaluation_steps(recipe.eval, steps)
    scored = len(tokens.held_out.rows)
    memory = plan_memory(
        settled_recipe,
        base,
        max_length=tokens.max_length,
        device=device,
        model=model,
        trained_share=tokens.train.trained / tokens.train.tokens if tokens.train.tokens else 1.0,
    )
    return Plan(
        name=recipe.name,
        training=training_digest(recipe, corpus, base, start.digest if start else None),
        base=base.label,
        objective=recipe.objective,
        method=recipe.method,
        kind=settled_recipe.kind,
        device=f"{device.kind} ({device.name})" if device.name else device.kind,
        compute_dtype=device.dtype,
        rows=len(corpus.rows),
        train_rows=len(corpus.split.train),
        replayed_rows=corpus.replayed,
        held_out_rows=len(corpus.split.held_out),
        scored_rows=scored,
        truncated_rows=tokens.train.truncated,
        dropped_rows=tokens.train.dropped,
        tokens=tokens.train.tokens,
        trained_tokens=tokens.train.trained,
        max_length=tokens.max_length,
        sequences=sequences,
        steps=steps,
        epochs=round(steps / math.ceil(sequences / a_step), 3),
        optimizer=optimizer_of(recipe, device),
        gradient_checkpointing=checkpoints_activations(recipe, device),
        evaluate_every=every if scored else None,
        evaluations=math.ceil(steps / every) if scored else 0,
        save_every=recipe.save_every or every,
        target_modules=_adapted(model),
        trainable_parameters=trainable,
        base_parameters=total - trainable,
        memory=memory.record,
        remarks=(*remarks(recipe, base, steps), *_on_memory(memory)),
    )


def _adapted(model: Any) -> dict[str, int]:
    """The modules of a PEFT model that carry an adapter, counted by the last part of their names, in the model's order."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return dict(
        Counter(
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        )
    )


def _on_memory(memory: MemoryPlan) -> list[Remark]:
    if memory.fits:
        return []
    return [
        Remark("warn", "It won't fit into memory, by the plan above.", "; ".join(memory.advice))
    ]
