"""Collators that lose, move or eat the marks are found out, whatever shape their batches have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling as MaskingCollator
from transformers import DataCollatorForSeq2Seq
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as LabelCollator

from adapterhub.data import IGNORED, Encoded, Message, Row, encode
from adapterhub.errors import IncompatibleError
from adapterhub.trainer.gates import check_batches
from tests.support.chat import chat_tokenizer

Batch = Mapping[str, Any]
STOP = frozenset({2})
TOKENIZER = chat_tokenizer()  # its padding token is its stop token


def rows(count: int = 6) -> list[Encoded]:
    """Conversations of different lengths, of two answers each."""
    return [
        encode(
            TOKENIZER,
            Row(
                (
                    Message("user", "a" * (n + 1)),
                    Message("assistant", "b" * (2 * n + 1)),
                    Message("user", f"{n}?"),
                    Message("assistant", "ja"),
                )
            ),
            stop_ids=STOP,
        )
        for n in range(count)
    ]


def features(of: Sequence[Encoded]) -> list[dict[str, list[int]]]:
    return [{"input_ids": list(r.input_ids), "labels": list(r.labels)} for r in of]


def collated(collator: Any, items: Sequence[Any], size: int = 3) -> list[Batch]:
    return [collator(items[i : i + size]) for i in range(0, len(items), size)]


def padded(of: Sequence[Encoded]) -> list[Batch]:
    return collated(LabelCollator(pad_token_id=2), features(of))


def padded_left_without_mask(of: Sequence[Encoded]) -> list[Batch]:
    wide = max(len(row.input_ids) for row in of)

    def left(values: Sequence[int], fill: int) -> list[int]:
        return [fill] * (wide - len(values)) + list(values)

    return [
        {
            "input_ids": [left(row.input_ids, 2) for row in of],
            "labels": [left(row.labels, IGNORED) for row in of],
        }
    ]


def padding_free(of: Sequence[Encoded]) -> list[Batch]:
    return collated(
        LabelCollator(pad_token_id=2, padding_free=True, pad_to_multiple_of=64), features(of)
    )


def packed(of: Sequence[Encoded]) -> list[Batch]:
    from datasets import Dataset  # type: ignore[import-untyped]

    sequences = pack_dataset(Dataset.from_list(features(of)), 128, "bfd")
    return collated(LabelCollator(pad_token_id=2, padding_free=True), list(sequences), 1)


SHAPES = [padded, padded_left_without_mask, padding_free, packed]
each_shape = pytest.mark.parametrize("shape", SHAPES)


def check(batches: Sequence[Batch], of: Sequence[Encoded], **options: Any) -> None:
    check_batches(batches, of, STOP, 2, options.pop("conversations", True), **options)


def relabelled(
    batches: Sequence[Batch], change: Callable[[torch.Tensor, torch.Tensor], Any]
) -> list[Batch]:
    """The batches with `labels` made by change(ids, labels)."""
    return [
        {**b, "labels": change(torch.as_tensor(b["input_ids"]), torch.as_tensor(b["labels"]))}
        for b in batches
    ]


@each_shape
def test_batches_that_train_what_the_rows_mark_pass(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    of = rows()
    check(shape([*of, of[0]]), [*of, of[0]])  # a row that is there twice is held twice
    check(shape(of)[:1], of, sampled=True)


@each_shape
def test_documents_that_are_trained_whole_pass(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    """The first token of a row has no predecessor: packing masks it, padding doesn't, and neither changes the loss."""
    of = [Encoded(row.input_ids, row.input_ids) for row in rows()]
    check(shape(of), of, conversations=False)


def test_transformers_own_collator_with_labels_passes() -> None:
    of = rows()
    collator = DataCollatorForSeq2Seq(TOKENIZER, padding=True)
    check(collated(collator, features(of)), of)


def test_a_collator_that_eats_the_stop_token_with_the_padding_is_refused() -> None:
    """DataCollatorForLanguageModeling makes labels of the ids and masks every padding token."""
    of = rows()
    items = [{"input_ids": list(row.input_ids)} for row in of]
    batches = collated(MaskingCollator(TOKENIZER, mlm=False), items)
    with pytest.raises(IncompatibleError, match="stop token is masked away in batch 1") as caught:
        check(batches, of)
    assert "also the padding token" in caught.value.why
    assert "another pad_token" in caught.value.hint
    documents = [Encoded(row.input_ids, row.input_ids) for row in of]
    with pytest.raises(IncompatibleError, match="stop token is masked away"):
        check(batches, documents, conversations=False)


def test_the_same_collator_with_another_padding_token_loses_the_mask() -> None:
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    of = rows()
    items = [{"input_ids": list(row.input_ids)} for row in of]
    batches = collated(MaskingCollator(tokenizer, mlm=False), items)
    with pytest.raises(IncompatibleError, match="mask is lost in batch 1"):
        check_batches(batches, of, STOP, 0, True)
    documents = [Encoded(row.input_ids, row.input_ids) for row in of]
    check_batches(batches, documents, STOP, 0, False)


@each_shape
def test_one_stop_token_lost_in_one_row_of_one_batch_is_found(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    of = rows()
    batches = shape(of)
    labels = torch.as_tensor(batches[-1]["labels"]).clone()
    last = (labels == 2).nonzero()[-1]
    labels[tuple(last)] = IGNORED
    with pytest.raises(IncompatibleError, match=f"masked away in batch {len(batches)}"):
        check([*batches[:-1], {**batches[-1], "labels": labels}], of)


@each_shape
def test_labels_that_are_shifted_are_refused(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    of = rows()

    def shift(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)

    with pytest.raises(IncompatibleError, match="labels of batch 1 are not its own") as caught:
        check(relabelled(shape(of), shift), of)
    assert "shifted by one" in caught.value.why
    foreign = relabelled(shape(of), lambda ids, labels: torch.where(labels == 2, 7, labels))
    with pytest.raises(IncompatibleError, match="not its own") as caught:
        check(foreign, of, sampled=True)
    assert "another token" in caught.value.why


@each_shape
def test_a_batch_that_trains_nothing_is_refused(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    of = rows()
    batches = shape(of)
    masked = relabelled(batches[-1:], lambda ids, labels: torch.full_like(labels, IGNORED))
    with pytest.raises(IncompatibleError, match=f"Batch {len(batches)} trains nothing"):
        check([*batches[:-1], *masked], of)
    without = [{k: v for k, v in b.items() if k != "labels"} for b in batches]
    with pytest.raises(IncompatibleError, match="Batch 1 has no labels"):
        check(without, of)


@each_shape
def test_questions_that_are_trained_are_found(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    of = rows()
    whole = shape([Encoded(row.input_ids, row.input_ids) for row in of])
    with pytest.raises(IncompatibleError, match="mask is lost in batch 1"):
        check(whole, of)
    more = shape([Encoded(r.input_ids, (*r.labels[:-1], r.input_ids[-1])) for r in of])
    with pytest.raises(IncompatibleError, match="trains other tokens than the rows mark") as caught:
        check(more, of)
    assert "0 marked tokens would not be trained, 1 masked token would" in caught.value.why


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: (IGNORED,) * len(r.labels), "no token of any row is marked"),
        (lambda r: tuple(IGNORED if i == 2 else i for i in r.labels), "stop token would not be trained"),
        (lambda r: r.input_ids, "questions would be trained like answers"),
    ],
    ids=["nothing marked", "stop token outside of the marks", "everything marked"],
)  # fmt: skip
def test_rows_that_can_teach_no_answer_are_refused_before_any_batch(
    change: Callable[[Encoded], tuple[int, ...]], says: str
) -> None:
    of = [Encoded(row.input_ids, change(row)) for row in rows()]
    with pytest.raises(IncompatibleError, match=says):
        check(padded(of), of)


@each_shape
def test_rows_that_are_missing_repeated_or_cut_are_counted(
    shape: Callable[[Sequence[Encoded]], list[Batch]],
) -> None:
    of = rows()
    for batches, why in (
        (shape(of[1:]), "1 row missing, 0 sequences too many"),
        (shape([*of, of[0]]), "0 rows missing, 1 sequence too many"),
        (shape([*of[1:], Encoded(of[0].input_ids[:-1], of[0].labels[:-1])]), "1 row missing, 1 sequence too many"),
    ):  # fmt: skip
        with pytest.raises(IncompatibleError, match="don't hold the rows, each once") as caught:
            check(batches, of)
        assert why in caught.value.why


def test_pieces_of_rows_are_judged_by_what_the_rows_have_many_of() -> None:
    """Sequences cut anywhere, as trl's packing strategy `wrapped` makes them."""
    of = rows(40)
    ids = [i for row in of for i in row.input_ids]
    labels = [i for row in of for i in row.labels]

    def wrapped(targets: list[int]) -> list[Batch]:
        starts = range(0, len(ids), 200)
        return [{"input_ids": [ids[i : i + 200]], "labels": [targets[i : i + 200]]} for i in starts]

    check(wrapped(labels), of, sampled=True)
    with pytest.raises(IncompatibleError, match="stop token is masked away in the batches"):
        check(wrapped([IGNORED if i == 2 else i for i in labels]), of, sampled=True)
    with pytest.raises(IncompatibleError, match="mask is lost in the batches"):
        check(wrapped(ids), of, sampled=True)
