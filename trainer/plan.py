"""What a training would do, told before it is done: rows, tokens, steps and parameters, without loading a weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.trainer.data import load_corpus, tokenize

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.trainer.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The figures `train --dry-run` prints. Counts are exact, not estimates."""

    name: str
    base: str
    method: str
    device: str
    compute_dtype: str
    rows: int
    train_rows: int
    held_out_rows: int
    truncated_rows: int
    dropped_rows: int
    tokens: int
    trained_tokens: int
    sequences: int
    """In one epoch: rows, or packed sequences."""
    steps: int
    epochs: float
    trainable_parameters: int
    base_parameters: int

    @property
    def record(self) -> dict[str, Any]:
        """As `out.record` takes it."""
        return asdict(self)


def make_plan(recipe: Recipe, base: BaseModel) -> Plan:
    """Reads and tokenises the data, and counts parameters on a model without memory.

    Raises what reading, splitting, masking and `attach` raise: a recipe that plans, trains.
    """
    from adapterhub.evaluate.models import load_tokenizer
    from adapterhub.trainer.loop import packed_sequences, steps_of
    from adapterhub.trainer.model import choose_device, count_parameters, meta_model

    corpus = load_corpus(recipe)
    tokens = tokenize(recipe, corpus, load_tokenizer(base.path), base.path)
    device = choose_device()
    trainable, total = count_parameters(meta_model(recipe, base))
    sequences = packed_sequences(recipe, tokens.train.rows)
    steps = steps_of(recipe, sequences)
    return Plan(
        name=recipe.name,
        base=base.label,
        method=recipe.method,
        device=f"{device.kind} ({device.name})" if device.name else device.kind,
        compute_dtype=device.dtype,
        rows=len(corpus.rows),
        train_rows=len(corpus.split.train),
        held_out_rows=len(corpus.split.held_out),
        truncated_rows=tokens.train.truncated,
        dropped_rows=tokens.train.dropped,
        tokens=tokens.train.tokens,
        trained_tokens=tokens.train.trained,
        sequences=sequences,
        steps=steps,
        epochs=round(steps * recipe.batch_size * recipe.gradient_accumulation / sequences, 3),
        trainable_parameters=trainable,
        base_parameters=total - trainable,
    )
