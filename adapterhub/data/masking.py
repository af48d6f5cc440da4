"""Rows to tokens, with the answers marked: which positions are trained, and so which positions perplexity counts.

The loss is taken on assistant turns only, stop token included: a model that never sees its own stop token trained
never learns to stop. Which tokens those are is read off the chat template itself. A template with `{% generation %}`
marks says so in its own words; any other is rendered turn by turn, and what an assistant turn adds after the
generation prompt is the answer. That is right only where rendering more turns leaves the earlier text unchanged, which
is checked on every row, as is that every answer ends in a stop token. Whoever fails the check is refused: trained on
the wrong tokens, the loss would look just as healthy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.canonical import canonical_bytes, digest_of, parse_object
from adapterhub.data.formats import Row
from adapterhub.errors import FormatError, IncompatibleError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a position that is not trained; PyTorch's cross entropy skips it by default."""

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


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

    Raises what `encode` raises, and UsageError when the limit leaves nothing to train on.
    """
    kept: list[Encoded] = []
    truncated = dropped = 0
    for row in rows:
        whole = encode(tokenizer, row, stop_ids=stop_ids)
        cut = Encoded(whole.input_ids[:max_length], whole.labels[:max_length])
        truncated += len(whole.input_ids) > max_length and cut.trained > 0
        dropped += cut.trained == 0
        if cut.trained:
            kept.append(cut)
        if on_row:
            on_row()
    if not kept:
        raise UsageError(
            f"Nothing would be trained: no answer begins within {max_length} tokens.",
            hint="Raise max_length.",
        )
    return EncodedRows(tuple(kept), truncated, dropped)


def encode(tokenizer: PreTrainedTokenizerBase, row: Row, *, stop_ids: frozenset[int]) -> Encoded:
    """The whole row, uncut. A conversation goes through the chat template, a document gets the end token appended.

    Raises:
        FormatError: the row's text contains one of the tokenizer's control tokens.
        IncompatibleError: the template can't render the row, or doesn't show where answers are and end.
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
    messages = [{"role": m.role, "content": m.content} for m in row.messages]
    template = _chat_template(tokenizer)
    if _GENERATION_MARK.search(template):
        ids, mask = _mask_from_marks(tokenizer, row, messages)
    else:
        ids, mask = _mask_from_prefixes(tokenizer, row, messages)
    return Encoded(tuple(ids), _labels_up_to_stop(ids, mask, stop_ids, row))


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
    template: object = tokenizer.chat_template
    if not template:
        return None
    if isinstance(template, Mapping):
        return digest_of(canonical_bytes(template))
    return digest_of(str(template).encode("utf-8"))


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    template: object = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise IncompatibleError(
            "The base model has no chat template, and the data are conversations.",
            hint="Use an instruction-tuned base, or data of the format `text`.",
        )
    return template


def _refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    texts = [row.text] if row.text is not None else [m.content for m in row.messages]
    for token in tokenizer.all_special_tokens:
        if any(token in text for text in texts):
            raise FormatError(
                f"Row {row.number} contains the control token {token!r} in its text.",
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


def _mask_from_marks(
    tokenizer: PreTrainedTokenizerBase, row: Row, messages: list[dict[str, str]]
) -> tuple[list[int], list[bool]]:
    output = _render(
        tokenizer, row, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(output["input_ids"]), [bool(flag) for flag in output["assistant_masks"]]


def _mask_from_prefixes(
    tokenizer: PreTrainedTokenizerBase, row: Row, messages: list[dict[str, str]]
) -> tuple[list[int], list[bool]]:
    text: str = _render(tokenizer, row, messages, tokenize=False)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt: str = _render(
            tokenizer, row, messages[:index], tokenize=False, add_generation_prompt=True
        )
        upto: str = _render(tokenizer, row, messages[: index + 1], tokenize=False)
        if not (text.startswith(upto) and upto.startswith(prompt)):
            raise IncompatibleError(
                "The chat template doesn't show which tokens are the answers.",
                why=f"Row {row.number}: turn {index + 1} is not the generation prompt and then the answer,"
                " or looks different once more turns follow it.",
                hint="Use rows with one answer each, or a template with {% generation %} marks.",
            )
        spans.append((len(prompt), len(upto)))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [False] * len(encoding["input_ids"])
    for position, (start, end) in enumerate(encoding["offset_mapping"]):
        # A token that begins in the question belongs to it, though it may reach over: when the model answers, the
        # prompt ends before the span, so that token is never its to choose.
        mask[position] = start < end and any(a <= start and end <= b for a, b in spans)
    return list(encoding["input_ids"]), mask


def _labels_up_to_stop(
    ids: list[int], mask: list[bool], stop_ids: frozenset[int], row: Row
) -> tuple[int, ...]:
    """Labels for each run of marked tokens up to its last stop token (templates put a line feed behind it)."""
    labels = [IGNORED] * len(ids)
    answers = 0
    position = 0
    while position < len(ids):
        if not mask[position]:
            position += 1
            continue
        end = position
        while end < len(ids) and mask[end]:
            end += 1
        last = next((i for i in range(end - 1, position - 1, -1) if ids[i] in stop_ids), None)
        if last is None:
            raise IncompatibleError(
                "The stop token would not be trained: an answer's marked tokens don't contain it.",
                why=f"Row {row.number}: the chat template counts the end of the turn to the next one."
                " The model would never learn to stop.",
                hint="Correct the {% generation %} marks of the template, or the tokenizer's eos_token.",
            )
        labels[position : last + 1] = ids[position : last + 1]
        answers += 1
        position = end
    if answers == 0:
        raise IncompatibleError(
            "Nothing would be trained: the chat template marks no token of the answers.",
            why=f"Row {row.number} was rendered without any assistant tokens.",
        )
    return tuple(labels)


def _render(
    tokenizer: PreTrainedTokenizerBase, row: Row, messages: list[dict[str, str]], **options: Any
) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        raise IncompatibleError(
            f"The base model's chat template can't render row {row.number}.",
            why=str(error),
            hint="Some templates know no system or tool messages; leave them out of the data.",
        ) from error
