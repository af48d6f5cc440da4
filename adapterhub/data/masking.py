"""Rows to tokens, with the answers marked: which positions are trained, and so which positions perplexity counts.

The loss is taken on assistant turns only, stop token included: a model that never sees its own stop token trained
never learns to stop. Where in the text the answers are, `answers` reads off the chat template; here they become tokens.
Tokens are those of the whole text, as a server makes them of a conversation that goes on, and a token is trained when
all of it lies in an answer. Whoever fails a check is refused: trained on the wrong tokens, the loss would look just as
healthy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.canonical import parse_object
from adapterhub.chat_template import digest_of_template
from adapterhub.data.answers import answer_spans, place
from adapterhub.errors import FormatError, IncompatibleError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.data.rows import Row

IGNORED = -100
"""The label of a position that is not trained; PyTorch's cross entropy skips it by default."""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens: `input_ids` (T,) and `labels` (T,), the token itself where it is trained, else IGNORED."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def trained(self) -> int:
        """Positions the loss counts. The first token has no predecessor, so it never does."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class EncodedRows:
    """Rows ready for a model, and what the length limit did to them."""

    rows: tuple[Encoded, ...]
    truncated: int
    """Rows cut at the end; they lose their stop token, so many of these teach not to stop."""
    dropped: int
    """Rows whose question alone fills the limit, so nothing of the answer is left."""

    @property
    def tokens(self) -> int:
        """All tokens of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def trained(self) -> int:
        """The positions the loss counts, over all rows."""
        return sum(row.trained for row in self.rows)


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    *,
    max_length: int,
    stop_ids: frozenset[int],
    on_row: Callable[[], None] | None = None,
) -> EncodedRows:
    """Encodes every row and cuts it to `max_length` tokens; `on_row` is called after each.

    Raises what `encode` and `cut_rows` raise.
    """
    return cut_rows(encode_whole(tokenizer, rows, stop_ids=stop_ids, on_row=on_row), max_length)


def encode_whole(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[Row],
    *,
    stop_ids: frozenset[int],
    on_row: Callable[[], None] | None = None,
) -> tuple[Encoded, ...]:
    """Every row, uncut, in order; `on_row` is called after each. Raises what `encode` raises."""
    found: list[Encoded] = []
    for row in rows:
        found.append(encode(tokenizer, row, stop_ids=stop_ids))
        if on_row:
            on_row()
    return tuple(found)


def cut_rows(rows: Iterable[Encoded], max_length: int) -> EncodedRows:
    """The rows cut to `max_length` tokens, without those that have nothing left to train on.

    Raises UsageError when the limit leaves nothing at all.
    """
    kept: list[Encoded] = []
    truncated = dropped = 0
    for whole in rows:
        cut = Encoded(whole.input_ids[:max_length], whole.labels[:max_length])
        truncated += len(whole.input_ids) > max_length and cut.trained > 0
        dropped += cut.trained == 0
        if cut.trained:
            kept.append(cut)
    if not kept:
        raise UsageError(
            f"Nothing would be trained: no answer begins within {max_length} tokens.",
            hint="Raise max_length.",
        )
    return EncodedRows(tuple(kept), truncated, dropped)


def covering_length(rows: Sequence[Encoded], share: float = 0.95) -> int:
    """The smallest multiple of 8 tokens into which at least `share` of the rows fit whole."""
    lengths = sorted(len(row.input_ids) for row in rows)
    needed = lengths[max(0, math.ceil(share * len(lengths)) - 1)]
    return max(8, -(-needed // 8) * 8)


def encode(tokenizer: PreTrainedTokenizerBase, row: Row, *, stop_ids: frozenset[int]) -> Encoded:
    """The whole row, uncut. A conversation goes through the chat template, a document gets the end token appended.

    Raises:
        FormatError: the row's text contains one of the tokenizer's control tokens.
        IncompatibleError: the template can't render the row, doesn't show where answers are and end, or begins them
            otherwise than a server would have the model begin them.
        UnsupportedError: a tokenizer without offsets (not a "fast" one).
    """
    if not tokenizer.is_fast:
        raise UnsupportedError(
            "This tokenizer can't say which characters a token covers.",
            why="It is a slow (pure Python) tokenizer.",
            hint="Convert it to a tokenizer.json.",
        )
    _refuse_control_tokens(tokenizer, row)
    if row.text is not None:
        return _encode_document(tokenizer, row.text)
    text, spans = answer_spans(tokenizer, row)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(encoding["input_ids"])
    return Encoded(ids, _labels(ids, encoding["offset_mapping"], spans, stop_ids, row))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, base_folder: Path) -> frozenset[int]:
    """The tokens that end generation: the tokenizer's end token and those of generation_config.json.

    Raises IncompatibleError when there is none.
    """
    found: set[int] = set()
    if isinstance(tokenizer.eos_token_id, int):
        found.add(tokenizer.eos_token_id)
    path = base_folder / "generation_config.json"
    if path.is_file():
        stated = parse_object(path.read_bytes(), path.name).get("eos_token_id")
        found.update(
            i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int)
        )
    if not found:
        raise IncompatibleError(
            "The base model names no stop token, so no answer could be taught to end.",
            why="Neither its tokenizer nor its generation_config.json has an eos_token.",
        )
    return frozenset(found)


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """`sha256:<hex>` of the chat template, or None when there is none."""
    return digest_of_template(tokenizer.chat_template)


@lru_cache(maxsize=4)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokenizer's named control tokens, and the many that only its list of added tokens knows (`<|eot_id|>`)."""
    added = tokenizer.added_tokens_decoder.values()
    return (*tokenizer.all_special_tokens, *(t.content for t in added if t.special))


def _refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    texts = [row.text] if row.text is not None else [m.content for m in row.messages]
    for token in control_tokens(tokenizer):
        if any(token in text for text in texts):
            raise FormatError(
                f"Row {place(row)} contains the control token {token!r} in its text.",
                why="The tokenizer would read it as the end or beginning of a turn.",
                hint="Remove it from the data.",
            )


def _encode_document(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    ids = list(tokenizer(text)["input_ids"])
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise IncompatibleError("The tokenizer has no end token, so a document could not be ended.")
    if ids[-1:] != [end]:
        ids.append(end)
    return Encoded(tuple(ids), tuple(ids))


def _labels(
    ids: tuple[int, ...],
    offsets: Sequence[tuple[int, int]],
    spans: Sequence[tuple[int, int]],
    stop_ids: frozenset[int],
    row: Row,
) -> tuple[int, ...]:
    """Labels for the tokens of each span up to its first stop token; what a template puts behind that is never generated."""
    labels = [IGNORED] * len(ids)
    position = 0
    for begin, end in spans:
        stopped = False
        while position < len(ids) and offsets[position][0] < end:
            start, stop = offsets[position]
            # A token that begins in the question belongs to it, though it may reach over: when the model answers, the
            # prompt ends before the span, so that token is never its to choose.
            if begin <= start < stop <= end and not stopped:
                labels[position] = ids[position]
                stopped = ids[position] in stop_ids
            position += 1
        if not stopped:
            raise IncompatibleError(
                "The stop token would not be trained: an answer's marked tokens don't contain it.",
                why=f"Row {place(row)}: the chat template counts the end of the turn to the next one."
                " The model would never learn to stop.",
                hint="Correct the {% generation %} marks of the template, or the tokenizer's eos_token.",
            )
    return tuple(labels)
