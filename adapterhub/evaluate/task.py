"""What is asked: the rows of the data that are scored, as tokens, with their questions, references and parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from adapterhub.data import Row, dataset_digest, read_rows, split_rows
from adapterhub.data.columns import column_of
from adapterhub.data.masking import Encoded, cut_rows, encode_whole
from adapterhub.data.rows import Message
from adapterhub.errors import UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.subjects import Kind, Subject
from adapterhub.evaluate.suite import Suite

T = TypeVar("T")
SplitName = Literal["held_out", "all"]


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on beside model and rows; attested with them."""

    split: SplitName
    held_out: float
    split_seed: int
    limit: int | None
    max_rows: int | None
    max_length: int
    dtype: str


@dataclass(frozen=True)
class Chosen:
    """The rows there are, and those of them that are scored."""

    every: tuple[Row, ...]
    rows: tuple[Row, ...]
    parts: tuple[str, ...]
    """What each scored row is a part of; nothing where they aren't told apart."""
    references: tuple[str, ...]
    """What each answer is held against: the row's own answer, or the check of a suite."""
    digest: str
    """Of all rows there are; of a suite with their checks and parts."""
    suite: str | None = None


def choose(data: Path, fmt: str | None, settings: Settings, by: str | None) -> Chosen:
    """Reads and splits as the trainer does; the rows are in order of their digests.

    UsageError where nothing is held out, or no record has the column `by`.
    """
    every = read_rows(data, fmt)
    share = settings.held_out if settings.split == "held_out" else 0.0
    split = split_rows(every, share, seed=settings.split_seed, limit=settings.limit)
    if settings.split == "held_out" and not split.held_out:
        raise UsageError("No rows are held out.", hint="Give --held-out, or evaluate all rows.")
    chosen = split.held_out if settings.split == "held_out" else split.train
    rows = tuple(sorted(chosen, key=lambda row: row.digest)[: settings.max_rows])
    parts = column_of(data, rows, by) if by is not None else ()
    if parts:  # told in the order of the column's values
        order = sorted(range(len(rows)), key=lambda place: (parts[place], rows[place].digest))
        rows, parts = tuple(rows[at] for at in order), tuple(parts[at] for at in order)
    references = tuple(row.answers[0] if row.answers else "" for row in rows)
    return Chosen(every, rows, parts, references, dataset_digest(every))


def choose_suite(suite: Suite, settings: Settings) -> Chosen:
    """All rows of a suite, or so many of each part."""
    seen: Counter[str] = Counter()
    places = []
    for place, part in enumerate(suite.parts):
        seen[part] += 1
        if settings.max_rows is None or seen[part] <= settings.max_rows:
            places.append(place)

    def of(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[place] for place in places)

    return Chosen(
        suite.rows, of(suite.rows), of(suite.parts), of(suite.checks), suite.digest, suite.name
    )


@dataclass(frozen=True)
class Asking:
    """The rows as they are asked in one way: plainly, or told something first."""

    rows: tuple[Row, ...]
    encoded: tuple[Encoded, ...]
    questions: tuple[tuple[int, ...], ...]
    """The tokens up to each answer: of a document none; no questions at all where nothing has to be answered."""


@dataclass(frozen=True)
class Asked:
    """The rows as tokens. A row whose answer lies behind max_length in one way of asking is left out of all."""

    plain: Asking
    others: Mapping[Kind, Asking]
    """What is asked of the base in another way, by the kind of subject."""
    references: tuple[str, ...]
    parts: tuple[str, ...]
    truncated: int
    """Rows that were cut to max_length."""
    dropped: int
    """Rows of which nothing to score was left."""

    def of(self, subject: Subject) -> Asking:
        """The rows as this one is asked."""
        return self.others.get(subject.kind, self.plain)


def ask(
    tokenizer: Any,
    chosen: Chosen,
    stop_ids: frozenset[int],
    max_length: int,
    *,
    others: Mapping[Kind, Sequence[Row]],
    answering: bool,
) -> Asked:
    """Turns the chosen rows into tokens. Raises what encoding raises, and UsageError where documents should be answered.

    Args:
        others: the same rows as the base is asked in other ways, by the kind of subject.
    """
    ways: list[tuple[Kind | None, Sequence[Row]]] = [(None, chosen.rows), *others.items()]
    whole = {kind: encode_whole(tokenizer, rows, stop_ids=stop_ids) for kind, rows in ways}
    truncated = cut_rows(whole[None], max_length).truncated
    fits = {kind: [_cut(one, max_length) for one in found] for kind, found in whole.items()}
    kept = [
        place
        for place in range(len(chosen.rows))
        if all(cut[place].trained for cut in fits.values())
    ]
    if not kept:
        raise UsageError(
            f"No answer begins within {max_length} tokens in every way of asking.",
            why="Rows are left out for all where one way of asking has no room for their answer.",
            hint="Raise --max-length, or give the base less to read first.",
        )
    if answering and not any(chosen.rows[place].question for place in kept):
        raise UsageError(
            "There is nothing to answer in these rows.",
            why="They are documents, which ask no question.",
            hint="Leave out --measure: perplexity needs no questions.",
        )

    def asking(kind: Kind | None, of: Sequence[Row]) -> Asking:
        rows = tuple(of[place] for place in kept)
        questions = (
            tuple(models.prompt_tokens(tokenizer, row.question)) if row.question else ()
            for row in rows
        )
        return Asking(
            rows,
            tuple(fits[kind][place] for place in kept),
            tuple(questions) if answering else (),
        )

    return Asked(
        plain=asking(None, chosen.rows),
        others={kind: asking(kind, rows) for kind, rows in others.items()},
        references=tuple(chosen.references[place] for place in kept),
        parts=tuple(chosen.parts[place] for place in kept) if chosen.parts else (),
        truncated=truncated,
        dropped=len(chosen.rows) - len(kept),
    )


def _cut(row: Encoded, max_length: int) -> Encoded:
    return Encoded(row.input_ids[:max_length], row.labels[:max_length])


def with_system(row: Row, system: str) -> Row:
    """The row as it would be asked with the system prompt, in place of one of its own. A document is asked nothing."""
    if row.text is not None:
        return row
    turns = [message for message in row.messages if message.role != "system"]
    return replace(row, messages=(Message("system", system), *turns))
