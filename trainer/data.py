"""From a recipe to rows and tokens: what is trained on, what is held out, and the digests that say which data it was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adapterhub.chat_template import digest_of_template
from adapterhub.data import (
    dataset_digest,
    mix_replay,
    read_data,
    split_rows,
    stop_token_ids,
    template_digest,
)
from adapterhub.data.masking import EncodedRows
from adapterhub.data.templates import read_template, with_template
from adapterhub.trainer.objectives import objective_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.data import Row, Split
    from adapterhub.data.rows import Example
    from adapterhub.trainer.objectives import Tokens
    from adapterhub.trainer.recipe import Recipe


@dataclass(frozen=True)
class Corpus:
    """The rows of a recipe (or its preferences), split, before any tokenizer has seen them."""

    rows: tuple[Example, ...]
    """All of the data; replayed rows are not among them."""
    split: Split[Example]
    train: tuple[Example, ...]
    """What is trained on: the split's side of it, and replayed rows."""
    template: str | None
    """The chat template's text, where the recipe gives one in place of the base's."""

    @property
    def replayed(self) -> int:
        """How many of `train` are replayed rows."""
        return len(self.train) - len(self.split.train)

    @cached_property
    def digest(self) -> str:
        """Of all rows of the data, whatever their order."""
        return dataset_digest(self.rows)

    @cached_property
    def train_digest(self) -> str:
        """Of what is trained on."""
        return dataset_digest(self.train)

    @cached_property
    def held_out_digest(self) -> str:
        """Of what never is."""
        return dataset_digest(self.split.held_out)

    @property
    def template_digest(self) -> str | None:
        """Of the given template."""
        return digest_of_template(self.template)


@dataclass(frozen=True)
class TokenData:
    """The rows (or pairs) as tokens. `held_out` holds only the rows that will be scored; it may be empty."""

    train: Tokens
    held_out: Tokens
    template: str | None
    """Digest of the chat template the rows were rendered with."""
    max_length: int
    """Tokens a row was cut to: the recipe's, or for `auto` what 95 of 100 training rows need."""


def load_corpus(recipe: Recipe) -> Corpus:
    """Reads and splits the recipe's data. Raises what `read_data`, `split_rows`, `mix_replay` and `read_template` raise."""
    data = recipe.data
    rows = objective_of(recipe).read(data)
    split = split_rows(rows, data.held_out, seed=data.split_seed, limit=data.limit)
    train: tuple[Example, ...] = split.train
    if data.replay is not None:  # the recipe's validation allows it for rows alone
        general = read_data([data.replay.path], data.replay.format)
        own, held_out = cast("Split[Row]", split).train, cast("Split[Row]", split).held_out
        train = mix_replay(own, general, data.replay.ratio, data.split_seed, held_out).rows
    template = read_template(Path(recipe.template)) if recipe.template is not None else None
    return Corpus(rows, split, train, template)


def tokenizer_for(corpus: Corpus, base_folder: Path) -> Any:
    """The base's tokenizer, with the template that the recipe gives."""
    from adapterhub.evaluate.models import load_tokenizer

    tokenizer = load_tokenizer(base_folder)
    return tokenizer if corpus.template is None else with_template(tokenizer, corpus.template)


def tokenize(
    recipe: Recipe,
    corpus: Corpus,
    tokenizer: Any,
    base_folder: Path,
    on_row: Callable[[], None] | None = None,
) -> TokenData:
    """Encodes both sides of the split. Raises what `encode_rows` or `encode_pairs` raises."""
    objective = objective_of(recipe)
    stop_ids = stop_token_ids(tokenizer, base_folder)
    train = objective.encode(tokenizer, corpus.train, stop_ids=stop_ids, on_row=on_row)
    scored = objective.encode(
        tokenizer, corpus.split.held_out[: recipe.eval.rows], stop_ids=stop_ids, on_row=on_row
    )
    length = objective.covering_length(train) if recipe.max_length == "auto" else recipe.max_length
    return TokenData(
        objective.cut_to(train, length),
        objective.cut_to(scored, length) if scored else EncodedRows((), 0, 0),
        template_digest(tokenizer),
        length,
    )
