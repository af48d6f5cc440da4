"""Rows as the model will see them: the text of their tokens, which of these are trained, and what max_length cuts off.

Nothing here prints; the command line and the screen show the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.data.masking import (
    IGNORED,
    Encoded,
    covering_length,
    encode,
    encode_whole,
    stop_token_ids,
)
from adapterhub.data.rows import Preference, Row
from adapterhub.errors import NotFoundError, UsageError
from adapterhub.trainer.data import load_corpus, tokenizer_for
from adapterhub.trainer.pairs import last_answer
from adapterhub.words import counted

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.data.rows import Example
    from adapterhub.trainer.data import Corpus
    from adapterhub.trainer.recipe import Recipe

Side = Literal["training", "held out"]
Answer = Literal["chosen", "rejected"] | None
"""Which answer of a preference; None for other rows."""


@dataclass(frozen=True)
class Piece:
    """A run of tokens that are alike: `cut` ones lie behind max_length, so the model never sees them."""

    text: str
    trained: bool
    control: bool
    cut: bool


@dataclass(frozen=True)
class PreviewedRow:
    """A row's tokens as text. A preference is two of these, one an answer."""

    row: int
    file: str
    side: Side
    answer: Answer
    pieces: tuple[Piece, ...]
    tokens: int
    """Of the whole row, as are the trained ones."""
    trained: int
    max_length: int

    @property
    def lost(self) -> int:
        """Tokens behind max_length."""
        return max(0, self.tokens - self.max_length)

    @property
    def dropped(self) -> bool:
        """Whether nothing that is trained lies within max_length, so the row is left out."""
        return not any(piece.trained and not piece.cut for piece in self.pieces)

    @property
    def headline(self) -> str:
        """Which row it is and what of it counts."""
        where = f"row {self.row}" + (f" of {self.file}" if self.file else "")
        answer = f", the {self.answer} answer" if self.answer else ""
        line = f"{where} ({self.side}{answer}): {self.trained} of {self.tokens} tokens are trained"
        if self.lost:
            line += f"; cut after {self.max_length} tokens, {self.lost} are lost"
            line += ", and nothing is left to train, so the row is left out" if self.dropped else ""
        return line

    @property
    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {**asdict(self), "lost": self.lost, "dropped": self.dropped}


class Preview:
    """A recipe's rows, read and split once, each tokenised when it is looked at."""

    def __init__(self, recipe: Recipe, base: BaseModel) -> None:
        """Reads the data. Raises what reading, splitting and masking raise."""
        self.corpus = load_corpus(recipe)
        self._tokenizer = tokenizer_for(self.corpus, base.path)
        self._stop_ids = stop_token_ids(self._tokenizer, base.path)
        self._length: int | Literal["auto"] = recipe.max_length

    @property
    def max_length(self) -> int:
        """Tokens that a row is cut to; of `auto` it is told from all rows, once."""
        if self._length == "auto":
            rows = _sides(self.corpus.train)
            self._length = covering_length(
                encode_whole(self._tokenizer, rows, stop_ids=self._stop_ids)
            )
        return self._length

    def count(self, side: Side) -> int:
        """How many rows there are on a side."""
        return len(self._side(side))

    def at(self, place: int, side: Side) -> tuple[PreviewedRow, ...]:
        """The row at a place of its side; a preference is two."""
        return self.shown(self._side(side)[place], side)

    def shown(self, example: Example, side: Side) -> tuple[PreviewedRow, ...]:
        """One row as the model will see it; a preference is two."""
        sides = _sides([example])
        answers: tuple[Answer, ...] = ("chosen", "rejected") if len(sides) == 2 else (None,)
        found = []
        for row, answer in zip(sides, answers, strict=True):
            encoded = encode(self._tokenizer, row, stop_ids=self._stop_ids)
            if answer is not None:
                encoded = last_answer(encoded)
            found.append(
                PreviewedRow(
                    row=row.number,
                    file=row.file,
                    side=side,
                    answer=answer,
                    pieces=pieces(self._tokenizer, encoded, self.max_length),
                    tokens=len(encoded.input_ids),
                    trained=encoded.trained,
                    max_length=self.max_length,
                )
            )
        return tuple(found)

    def _side(self, side: Side) -> Sequence[Example]:
        return self.corpus.train if side == "training" else self.corpus.split.held_out


def preview_rows(
    recipe: Recipe,
    base: BaseModel,
    *,
    count: int = 3,
    number: int | None = None,
    held_out: bool = False,
) -> tuple[PreviewedRow, ...]:
    """The first `count` rows of the training side (or of the held-out one), or those with this number in their file.

    Raises NotFoundError for a number that no row has, UsageError when nothing is held out, and what reading, splitting
    and masking raise.
    """
    preview = Preview(recipe, base)
    chosen = _chosen(preview.corpus, count, number, held_out)
    return tuple(row for example, side in chosen for row in preview.shown(example, side))


def _chosen(
    corpus: Corpus, count: int, number: int | None, held_out: bool
) -> list[tuple[Example, Side]]:
    split = corpus.split
    training: list[tuple[Example, Side]] = [(row, "training") for row in corpus.train]
    scored: list[tuple[Example, Side]] = [(row, "held out") for row in split.held_out]
    if number is None:
        if held_out and not scored:
            raise UsageError(
                "The recipe holds no rows out.", hint="Leave out --held-out, or set data.held_out."
            )
        return (scored if held_out else training)[:count]
    listed = scored if held_out else [*training, *scored]
    found = [item for item in listed if item[0].number == number]
    if not found:
        raise NotFoundError(
            f"The recipe uses no row {number}" + (" that is held out." if held_out else "."),
            why=f"It has {counted(len(training), 'row')} to train on and {len(scored)} held out.",
            hint="Rows are numbered as in their file; leave out --row to see some.",
        )
    return found


def _sides(examples: Sequence[Example]) -> list[Row]:
    """The rows as they are tokenised: a preference is two."""
    rows: list[Row] = []
    for example in examples:
        if isinstance(example, Preference):
            rows.extend(example.sides)
        elif isinstance(example, Row):
            rows.append(example)
    return rows


def pieces(tokenizer: Any, encoded: Encoded, max_length: int) -> tuple[Piece, ...]:
    """The row's text in runs of tokens that are alike; put together, they are the text of the whole row.

    A character whose tokens fall into two runs (max_length may cut through one) stands in the later.
    """
    ids = encoded.input_ids
    control = set(tokenizer.all_special_ids)
    control.update(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    kinds = [
        (label != IGNORED, token in control, position >= max_length)
        for position, (token, label) in enumerate(zip(ids, encoded.labels, strict=True))
    ]
    changes = [at for at in range(1, len(ids)) if kinds[at] != kinds[at - 1]]
    bounds = [0, *changes, len(ids)]
    whole = _decoded(tokenizer, ids)
    # Decoded from the start each time: a tokenizer may drop a blank from the beginning of what it decodes.
    places = [len(_decoded(tokenizer, ids[:end]).rstrip("\ufffd")) for end in bounds[:-1]]
    found = zip(pairwise([*places, len(whole)]), (kinds[at] for at in bounds[:-1]), strict=True)
    return tuple(Piece(whole[start:end], *kind) for (start, end), kind in found)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
