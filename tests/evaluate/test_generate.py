"""Answers made many at a time are those made one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import read_rows
from adapterhub.evaluate.generate import answers
from adapterhub.evaluate.models import (
    Answer,
    load_model,
    load_tokenizer,
    prompt_tokens,
    stream_answer,
)

STOP = frozenset({2})


@pytest.fixture
def model(base: Path) -> Any:
    return load_model(base, "float32")


@pytest.fixture
def questions(base: Path) -> list[list[int]]:
    """Of quite different lengths, the longest in the middle."""
    tokenizer = load_tokenizer(base)
    texts = ["Hi", "What colour is it, " * 6, "a", "Tell me about the sea. " * 3, "And?"]
    return [prompt_tokens(tokenizer, text) for text in texts]


def all_of(found: Any) -> dict[int, Answer]:
    return {place: answer for batch in found for place, answer in batch.items()}


def test_a_batch_answers_as_one_by_one(model: Any, base: Path, questions: list[list[int]]) -> None:
    tokenizer = load_tokenizer(base)
    alone = [stream_answer(model, tokenizer, asked, STOP, 12) for asked in questions]
    for room in (1, 200, 10**6):
        made = all_of(answers(model, tokenizer, questions, STOP, 12, batch_tokens=room))
        assert [made[place].tokens for place in range(5)] == [one.tokens for one in alone]
        assert [made[place].text for place in range(5)] == [one.text for one in alone]
        assert [made[place].ended for place in range(5)] == [one.ended for one in alone]


def test_what_is_known_is_not_asked_again(
    model: Any, base: Path, questions: list[list[int]]
) -> None:
    tokenizer = load_tokenizer(base)
    counted: list[int] = []
    batches = list(
        answers(
            model,
            tokenizer,
            questions,
            STOP,
            4,
            batch_tokens=1,
            known={0, 1, 2},
            on_rows=counted.append,
        )
    )
    assert sorted(place for batch in batches for place in batch) == [3, 4]
    assert sum(counted) == 5, "progress counts what was there"


def test_no_questions_have_no_answers(model: Any, base: Path, data: Path) -> None:
    assert len(read_rows(data)) > 0
    assert list(answers(model, load_tokenizer(base), [], STOP, 4)) == []
