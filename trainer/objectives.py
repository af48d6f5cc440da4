"""What differs between learning answers (`objective: sft`) and learning which of two answers is better (`dpo`).

Everything else in the trainer is the same for both, and asks the recipe's objective for these few things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapterhub.data import covering_length, cut_rows, encode_whole, read_data, read_preferences
from adapterhub.errors import IncompatibleError
from adapterhub.trainer.gates import check_trainer
from adapterhub.trainer.pairs import covering_pairs, cut_pairs, encode_pairs

if TYPE_CHECKING:
    from adapterhub.data.rows import Example
    from adapterhub.trainer.attention import Apart
    from adapterhub.trainer.loop import QuietTrainer
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import DataSpec, Recipe
    from adapterhub.trainer.watch import Examiner


class Tokens(Protocol):
    """Rows or pairs as tokens, and what the length limit did to them: `EncodedRows` or `EncodedPairs`."""

    @property
    def rows(self) -> Sequence[Any]: ...
    @property
    def truncated(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def trained(self) -> int: ...


@dataclass(frozen=True)
class Objective:
    """How files become tokens, what trains on these, and what scores them. `trainer` and `examiner` load torch."""

    unit: str
    """What one example is called."""
    mask: str
    """Which tokens the loss counts, for the provenance."""
    packs: bool
    """Whether examples can share a sequence."""
    cut: str
    """What becomes of examples longer than max_length, for people."""
    left_out: str
    """Why examples are left out, for people."""
    read: Callable[[DataSpec], tuple[Example, ...]]
    encode: Callable[..., Sequence[Any]]
    """As `encode_whole`."""
    covering_length: Callable[[Sequence[Any]], int]
    """The max_length that `auto` stands for, of whole examples."""
    cut_to: Callable[[Sequence[Any], int], Tokens]
    """As `cut_rows`."""
    trainer: Callable[[Any, Any, Sequence[Any], Recipe, Device, Path], QuietTrainer]
    """(model, tokenizer, examples, settled recipe, device, a folder to write to) -> what trains the model."""
    examiner: Callable[[], type[Examiner]]
    gate: Callable[[Any, Sequence[Any], frozenset[int], bool], None] | None
    """As `check_trainer`: refuses batches that don't train what the examples say."""


def objective_of(recipe: Recipe) -> Objective:
    """The recipe's objective."""
    return PREFERENCES if recipe.objective == "dpo" else ANSWERS


def _answers_trainer(
    model: Any, tokenizer: Any, rows: Sequence[Any], recipe: Recipe, device: Device, scratch: Path
) -> QuietTrainer:
    from adapterhub.trainer.attention import how_rows_stay_apart
    from adapterhub.trainer.head import lean_loss_is_exact
    from adapterhub.trainer.loop import make_trainer
    from adapterhub.trainer.model import scoring_mode
    from adapterhub.trainer.ranks import here

    with scoring_mode(model):
        # With FSDP only the first process has the weights yet.
        apart: Apart | None = here().share(how_rows_stay_apart(model, rows))
        lean = here().share(lean_loss_is_exact(model.get_base_model(), rows[0]))
    if recipe.packing and apart is None:
        raise IncompatibleError(
            f"{recipe.base} mixes rows that are packed into one sequence.",
            why="Two rows packed together got other logits than each alone.",
            hint="Set packing: false; rows are then padded.",
        )
    return make_trainer(model, tokenizer, rows, recipe, device, scratch, apart=apart, lean=lean)


def _preference_trainer(*arguments: Any) -> QuietTrainer:
    from adapterhub.trainer.preferences import make_preference_trainer

    return make_preference_trainer(*arguments)


def _examiner() -> type[Examiner]:
    from adapterhub.trainer.watch import Examiner

    return Examiner


def _preference_examiner() -> type[Examiner]:
    from adapterhub.trainer.preferences import PreferenceExaminer

    return PreferenceExaminer


ANSWERS = Objective(
    unit="row",
    mask="assistant turns, each with its stop token; documents whole",
    packs=True,
    cut="are cut at max_length and lose their stop token",
    left_out="their question alone fills max_length",
    read=lambda data: read_data(data.paths, data.format),
    encode=encode_whole,
    covering_length=covering_length,
    cut_to=cut_rows,
    trainer=_answers_trainer,
    examiner=_examiner,
    gate=check_trainer,
)
"""Conversations and documents, whose answers are learned token by token."""

PREFERENCES = Objective(
    unit="pair",
    mask="the last answer of each conversation, with its stop token",
    packs=False,
    cut="are cut at max_length, and an answer of each loses its stop token",
    left_out="within max_length their answers don't differ",
    read=lambda data: read_preferences(data.paths),
    encode=encode_pairs,
    covering_length=covering_pairs,
    cut_to=cut_pairs,
    trainer=_preference_trainer,
    examiner=_preference_examiner,
    gate=None,  # trl's collator has no labels to lose
)
"""A chosen and a rejected answer to each question, of which the first is to gain on the second."""
