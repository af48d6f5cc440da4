"""From a recipe to rows and tokens: what is trained on, what is held out, and the digests that say which data it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.data import (
    dataset_digest,
    encode_rows,
    read_rows,
    split_rows,
    stop_token_ids,
    template_digest,
)
from adapterhub.data.masking import EncodedRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.data import Row, Split
    from adapterhub.trainer.recipe import Recipe


@dataclass(frozen=True)
class Corpus:
    """The rows of a recipe, split, before any tokenizer has seen them."""

    rows: tuple[Row, ...]
    split: Split
    digest: str
    """Of all rows of the file, whatever their order."""
    train_digest: str
    held_out_digest: str


@dataclass(frozen=True)
class TokenData:
    """The rows as tokens. `held_out` holds only the rows that will be scored; it may be empty."""

    train: EncodedRows
    held_out: EncodedRows
    template: str | None
    """Digest of the chat template the rows were rendered with."""


def load_corpus(recipe: Recipe) -> Corpus:
    """Reads and splits the recipe's data. Raises what `read_rows` and `split_rows` raise."""
    rows = read_rows(Path(recipe.data.path), recipe.data.format)
    split = split_rows(
        rows, recipe.data.held_out, seed=recipe.data.split_seed, limit=recipe.data.limit
    )
    return Corpus(
        rows,
        split,
        dataset_digest(rows),
        dataset_digest(split.train),
        dataset_digest(split.held_out),
    )


def tokenize(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: Any,
    base_folder: Path,
    on_row: Callable[[], None] | None = None,
) -> TokenData:
    """Encodes both sides of the split. Raises what `encode_rows` raises."""
    stop_ids = stop_token_ids(tokenizer, base_folder)

    def encoded(rows: tuple[Row, ...]) -> EncodedRows:
        if not rows:
            return EncodedRows((), 0, 0)
        return encode_rows(
            tokenizer, rows, max_length=recipe.max_length, stop_ids=stop_ids, on_row=on_row
        )

    scored = corpus.split.held_out[: recipe.eval.rows]
    return TokenData(encoded(corpus.split.train), encoded(scored), template_digest(tokenizer))
