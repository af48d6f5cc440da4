"""Preferences as tokens, and their score: what a training on pairs of answers has in place of rows and perplexity.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.data import IGNORED, Encoded, covering_length, encode
from adapterhub.errors import FormatError, IncompatibleError, UsageError
from adapterhub.evaluate.scoring import Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.data import Preference


@dataclass(frozen=True)
class EncodedPair:
    """The two conversations of a preference as tokens, alike up to the answers; only these are marked."""

    chosen: Encoded
    rejected: Encoded

    @property
    def sides(self) -> tuple[Encoded, Encoded]:
        """The chosen one, then the rejected one."""
        return self.chosen, self.rejected

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What both begin with: everything before the answers."""
        return self.chosen.input_ids[: _begin(self.chosen)]

    @property
    def answer_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The chosen and the rejected answer, each with its stop token unless that was cut off."""
        return _answer(self.chosen), _answer(self.rejected)


@dataclass(frozen=True)
class EncodedPairs:
    """Pairs ready for a model, and what the length limit did to them."""

    rows: tuple[EncodedPair, ...]
    truncated: int
    """Pairs of which an answer was cut; it loses its stop token."""
    dropped: int
    """Pairs of which nothing is left to tell the answers apart: the question fills the limit, or all that differs is beyond."""

    @property
    def tokens(self) -> int:
        """All tokens of both sides of all pairs, the prompt counted twice: both sides go through the model."""
        return sum(2 * len(pair.prompt_ids) for pair in self.rows) + self.trained

    @property
    def trained(self) -> int:
        """The tokens of the answers, which the loss counts."""
        return sum(side.trained for pair in self.rows for side in pair.sides)


@dataclass(frozen=True)
class PairScore(Score):
    """The summed DPO loss in nats over `tokens` pairs (equal to `rows`): a loss a pair, not a token."""

    accuracy: float
    """Share of the pairs whose chosen answer gained more over the reference than the rejected one."""
    margin: float
    """Mean of how much more, times beta: the difference of the two implicit rewards, in nats."""

    @property
    def measures(self) -> dict[str, float]:
        return {"loss": self.loss, "accuracy": self.accuracy, "margin": self.margin}


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    preferences: Iterable[Preference],
    *,
    stop_ids: frozenset[int],
    on_row: Callable[[], None] | None = None,
) -> tuple[EncodedPair, ...]:
    """Every pair, uncut, in order; `on_row` is called after each.

    Raises what `encode` raises, FormatError for answers of several turns, and IncompatibleError where the tokens before the
    two answers differ.
    """
    found: list[EncodedPair] = []
    for preference in preferences:
        if len(preference.chosen) > 1 or len(preference.rejected) > 1:
            raise FormatError(
                f"Row {preference.where}: an answer is several turns long.",
                why="Two answers to the same question are compared; here the conversations part earlier.",
                hint="End each conversation after the first answer in which they differ.",
            )
        pair = EncodedPair(
            *(last_answer(encode(tokenizer, row, stop_ids=stop_ids)) for row in preference.sides)
        )
        if pair.prompt_ids != pair.rejected.input_ids[: _begin(pair.rejected)]:
            raise IncompatibleError(
                f"Row {preference.where}: the tokens before the two answers differ.",
                why="A token reaches from the question into one of the answers, or the chat template writes the question"
                " otherwise for another answer.",
                hint="Answers that begin with a space or an empty line do this; remove it from the row.",
            )
        found.append(pair)
        if on_row:
            on_row()
    return tuple(found)


def last_answer(encoded: Encoded) -> Encoded:
    """The same tokens with only the last answer marked: what a preference compares."""
    labels = encoded.labels
    end = max(i for i, label in enumerate(labels) if label != IGNORED) + 1
    begin = next((i for i in range(end, 0, -1) if labels[i - 1] == IGNORED), 0)
    marked = (IGNORED,) * begin + labels[begin:end] + (IGNORED,) * (len(labels) - end)
    return Encoded(encoded.input_ids, marked)


def covering_pairs(pairs: Iterable[EncodedPair]) -> int:
    """As `covering_length`, of both sides of the pairs."""
    return covering_length([side for pair in pairs for side in pair.sides])


def cut_pairs(pairs: Iterable[EncodedPair], max_length: int) -> EncodedPairs:
    """The pairs with both sides cut to `max_length` tokens, without those that have nothing left to compare.

    Raises UsageError when the limit leaves nothing at all.
    """
    kept: list[EncodedPair] = []
    truncated = dropped = 0
    for whole in pairs:
        cut = EncodedPair(*(_cut(side, max_length) for side in whole.sides))
        chosen, rejected = cut.answer_ids
        if not chosen or not rejected or chosen == rejected:
            dropped += 1
            continue
        truncated += cut.answer_ids != whole.answer_ids
        kept.append(cut)
    if not kept:
        raise UsageError(
            f"Nothing would be trained: no two answers begin, and differ, within {max_length} tokens.",
            hint="Raise max_length.",
        )
    return EncodedPairs(tuple(kept), truncated, dropped)


def score_pairs(
    policy: Sequence[float], reference: Sequence[float], beta: float, pairs: int
) -> PairScore:
    """The score from `log p(chosen) - log p(rejected)` of every pair under the policy and under the reference.

    Equation 7 of Rafailov et al. 2023: the loss of a pair is -log sigmoid(beta * (policy - reference)).
    """
    margins = [beta * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
    losses = [math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0) for margin in margins]
    return PairScore(
        math.fsum(losses),
        pairs,
        pairs,
        accuracy=sum(margin > 0 for margin in margins) / pairs,
        margin=math.fsum(margins) / pairs,
    )


def _cut(side: Encoded, max_length: int) -> Encoded:
    return Encoded(side.input_ids[:max_length], side.labels[:max_length])


def _begin(side: Encoded) -> int:
    """Where the answer begins; the length where none of it is left."""
    return next((i for i, label in enumerate(side.labels) if label != IGNORED), len(side.labels))


def _answer(side: Encoded) -> tuple[int, ...]:
    return tuple(label for label in side.labels if label != IGNORED)
