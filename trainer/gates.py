"""The last look before training: what the real collator hands to the model is what was marked, token for token.

A mask that is lost between the data and the loss shows in no number: the loss falls all the same. The best-known case is
a collator that masks every padding token while the padding token is also the stop token; the model then never learns to
stop. So the batches themselves are taken apart into the rows they hold, and each is compared with its row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from adapterhub.data.masking import IGNORED, Encoded
from adapterhub.errors import IncompatibleError
from adapterhub.words import counted

_ENOUGH = 5
"""Tokens of a kind that must be expected in a sample before their absence means anything."""

_Tokens = tuple[int, ...]

SAMPLED = 64
"""Lines of the trainer's own data that are looked at before it starts."""


def check_batches(
    batches: Iterable[Mapping[str, Any]],
    rows: Sequence[Encoded],
    stop_ids: frozenset[int],
    pad_id: int | None,
    conversations: bool,
    *,
    sampled: bool = False,
) -> None:
    """Raises IncompatibleError unless the batches train exactly what the rows do.

    Args:
        batches: with `input_ids` and `labels` (B, T), as tensors or lists. Padding is told by `attention_mask` (B, T),
            several rows in one line by `position_ids` that begin again at 0.
        stop_ids: the tokens that end generation (`stop_token_ids`).
        conversations: the rows have questions, which must be masked; plain documents are trained whole.
        sampled: the batches are only some of those the rows make, and lines may hold pieces of rows.
    """
    check_rows(rows, stop_ids, conversations)
    known = {row.input_ids: row for row in rows}
    left = Counter(row.input_ids for row in rows)
    pieces: list[tuple[_Tokens, _Tokens]] = []
    for number, batch in enumerate(batches, start=1):
        held = list(_sequences(batch, number, known, pad_id))
        if not any(_positions(labels) for _, labels in held):
            raise IncompatibleError(
                f"Batch {number} trains nothing: all its labels are masked.",
                why="The collator masks tokens that the rows mark as answers.",
                hint="Use a collator that takes the rows' own labels.",
            )
        for ids, labels in held:
            _check_own_tokens(number, ids, labels)
            row = known.get(ids)
            if row is None:
                pieces.append((ids, labels))
            else:
                left[ids] -= 1
                _check_as_marked(number, row, labels, stop_ids, pad_id)
    if sampled:
        _check_pieces(pieces, rows, stop_ids, conversations)
    else:
        _check_all_there(left, len(pieces))


def check_trainer(
    trainer: Any, rows: Sequence[Encoded], stop_ids: frozenset[int], conversations: bool
) -> None:
    """`check_batches` on what the trainer's own collator makes of the first of its rows. No random number is drawn."""
    dataset, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    count = min(len(dataset), SAMPLED)
    batches = (
        trainer.data_collator([dataset[i] for i in range(start, min(start + size, count))])
        for start in range(0, count, size)
    )
    pad_id = trainer.processing_class.pad_token_id
    check_batches(batches, rows, stop_ids, pad_id, conversations, sampled=count < len(dataset))


def check_rows(rows: Sequence[Encoded], stop_ids: frozenset[int], conversations: bool) -> None:
    """Raises IncompatibleError when the rows, taken together, can't teach an answer that ends."""
    if not any(row.trained for row in rows):
        raise IncompatibleError(
            "Nothing would be trained: no token of any row is marked as an answer.",
            hint="Look at rows as the model sees them:  adapterhub recipe preview RECIPE",
        )
    if not any(_stops(row.labels, stop_ids) for row in rows):
        raise IncompatibleError(
            "The stop token would not be trained: no row's marked tokens contain it.",
            why="The model would never learn to end its answers.",
            hint="Raise max_length if every row is cut; else correct the marks of the chat template.",
        )
    if conversations and all(_whole(row.labels) for row in rows):
        raise IncompatibleError(
            "The questions would be trained like answers: no token of any row is masked.",
            why="The mask was lost, or the chat template marks everything as an answer.",
            hint="Mark the assistant's turns only; docs/templates.md shows how.",
        )


def _sequences(
    batch: Mapping[str, Any], number: int, known: Mapping[_Tokens, Encoded], pad_id: int | None
) -> Iterator[tuple[_Tokens, _Tokens]]:
    """(ids, labels) of every row, or piece of one, that the batch holds; padding is left out."""
    if "labels" not in batch:
        raise IncompatibleError(
            f"Batch {number} has no labels.",
            why="The collator dropped them, so nothing says what is trained.",
            hint="Use a collator that takes the rows' own labels.",
        )
    ids, labels = _lines(batch["input_ids"]), _lines(batch["labels"])
    masks, positions = _lines(batch.get("attention_mask")), _lines(batch.get("position_ids"))
    for at, (line, targets) in enumerate(zip(ids, labels, strict=True)):
        kept = [i for i in range(len(line)) if not masks or masks[at][i]]
        starts = [n for n, i in enumerate(kept) if n == 0 or (positions and positions[at][i] == 0)]
        for start, end in zip(starts, [*starts[1:], len(kept)], strict=True):
            part = kept[start:end]
            found = _unpadded(
                tuple(line[i] for i in part), tuple(targets[i] for i in part), known, pad_id
            )
            if found[0]:
                yield found


def _lines(value: Any) -> list[list[int]]:
    """A (B, T) tensor or list as lists; [] for None and for masks of more dimensions, which separate packed rows."""
    if value is None:
        return []
    lines: list[Any] = value.tolist() if hasattr(value, "tolist") else [list(v) for v in value]
    return [] if lines and lines[0] and isinstance(lines[0][0], list) else lines


def _unpadded(
    ids: _Tokens, labels: _Tokens, known: Mapping[_Tokens, Encoded], pad_id: int | None
) -> tuple[_Tokens, _Tokens]:
    """Without the padding that no attention mask told of: as little of it is taken off as makes a known row."""
    if ids in known or pad_id is None:
        return ids, labels
    shorter, targets = ids, labels
    for end in (-1, 0):
        while shorter and shorter[end] == pad_id and targets[end] == IGNORED:
            cut = slice(None, -1) if end else slice(1, None)
            shorter, targets = shorter[cut], targets[cut]
            if shorter in known:
                return shorter, targets
    return shorter, targets


def _check_own_tokens(number: int, ids: _Tokens, labels: _Tokens) -> None:
    """Every label is the token at its own position; the model shifts them itself."""
    trained = [i for i, label in enumerate(labels) if label != IGNORED]
    if all(labels[i] == ids[i] for i in trained):
        return
    ahead = [i for i in trained if i + 1 < len(ids)]
    shifted = bool(ahead) and all(labels[i] == ids[i + 1] for i in ahead)
    raise IncompatibleError(
        f"The labels of batch {number} are not its own tokens.",
        why="They are shifted by one; the model shifts them once more, so it would learn to skip every other token."
        if shifted
        else "Some labels name another token than the input has at their position.",
        hint="Give the model labels that equal the input ids wherever they are not masked.",
    )


def _check_as_marked(
    number: int, row: Encoded, labels: _Tokens, stop_ids: frozenset[int], pad_id: int | None
) -> None:
    """The labels train the positions that the row marks."""
    wanted, got = _positions(row.labels), _positions(labels)
    if wanted == got:
        return
    eaten = {row.labels[i] for i in wanted - got} & stop_ids
    if eaten:
        padding = pad_id in eaten
        raise IncompatibleError(
            f"The stop token is masked away in batch {number}, so the model would never learn to stop.",
            why="The stop token is also the padding token, and the collator masks every padding token."
            if padding
            else f"The rows train token {min(eaten)}; the collator's labels leave it out.",
            hint="Use a collator that takes the rows' own labels"
            + (", or give the tokenizer another pad_token." if padding else "."),
        )
    if _whole(labels):
        raise IncompatibleError(
            f"The mask is lost in batch {number}: a question is trained like an answer.",
            why=f"The row marks {counted(len(wanted), 'token')}, the labels train all {len(labels)}.",
            hint="Use a collator that takes the rows' own labels.",
        )
    raise IncompatibleError(
        f"Batch {number} trains other tokens than the rows mark.",
        why=f"{counted(len(wanted - got), 'marked token')} would not be trained,"
        f" {counted(len(got - wanted), 'masked token')} would.",
        hint="Use a collator that takes the rows' own labels.",
    )


def _check_pieces(
    pieces: Sequence[tuple[_Tokens, _Tokens]],
    rows: Sequence[Encoded],
    stop_ids: frozenset[int],
    conversations: bool,
) -> None:
    """Pieces of rows can't be compared one by one; what the rows have many of, they must have some of."""
    trained = sum(len(_positions(labels)) for _, labels in pieces)
    of_rows = sum(row.trained for row in rows)
    stops = sum(_stops(row.labels, stop_ids) for row in rows)
    if trained * stops >= _ENOUGH * of_rows and not any(_stops(p[1], stop_ids) for p in pieces):
        raise IncompatibleError(
            "The stop token is masked away in the batches, so the model would never learn to stop.",
            why=f"One in {of_rows // stops} trained tokens of the rows is a stop token,"
            f" none of {trained} in the batches.",
            hint="Use a collator that takes the rows' own labels.",
        )
    masked = sum(len(row.labels) - 1 - row.trained for row in rows)
    if not conversations or trained * masked < _ENOUGH * of_rows:
        return
    if all(_whole(labels) for _, labels in pieces):
        raise IncompatibleError(
            "The mask is lost in the batches: questions are trained like answers.",
            why="The rows have masked tokens, the batches none.",
            hint="Use a collator that takes the rows' own labels.",
        )


def _check_all_there(left: Counter[_Tokens], foreign: int) -> None:
    missing = sum(count for count in left.values() if count > 0)
    extra = foreign - sum(count for count in left.values() if count < 0)
    if missing or extra:
        raise IncompatibleError(
            "The batches don't hold the rows, each once.",
            why=f"{counted(missing, 'row')} missing, {counted(extra, 'sequence')} too many or not a row.",
            hint="Check the collator: it must neither cut rows nor drop or repeat them.",
        )


def _positions(labels: _Tokens) -> set[int]:
    """The positions the loss counts: the first has no predecessor, so it never does."""
    return {i for i, label in enumerate(labels) if i and label != IGNORED}


def _whole(labels: _Tokens) -> bool:
    return IGNORED not in labels[1:]


def _stops(labels: _Tokens, stop_ids: frozenset[int]) -> int:
    return sum(label in stop_ids for label in labels[1:])
