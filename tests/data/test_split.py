"""The split depends on the rows' contents and on nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from adapterhub.data import Message, Preference, Row, dataset_digest, read_rows, split_rows
from adapterhub.errors import UsageError
from tests.support.chat import chat_rows, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    return list(read_rows(write_rows(tmp_path / "d.json", chat_rows(400))))


def digests(rows: tuple[Row, ...]) -> list[str]:
    return [row.digest for row in rows]


def test_the_split_is_the_same_whatever_the_order_of_the_file(rows: list[Row]) -> None:
    before = split_rows(rows, 0.2)
    random.Random(1).shuffle(rows)
    after = split_rows(rows, 0.2)
    assert digests(after.held_out) == digests(before.held_out)
    assert digests(after.train) == digests(before.train)


def test_new_rows_move_no_old_row_to_the_other_side(rows: list[Row]) -> None:
    before = set(digests(split_rows(rows[:300], 0.2).held_out))
    after = set(digests(split_rows(rows, 0.2).held_out))
    assert before <= after


def test_about_the_fraction_is_held_out_and_no_row_is_on_both_sides(rows: list[Row]) -> None:
    split = split_rows(rows, 0.2)
    assert 50 < len(split.held_out) < 110
    assert not set(digests(split.train)) & set(digests(split.held_out))
    assert len(split.train) + len(split.held_out) == 400


def test_another_seed_holds_out_other_rows(rows: list[Row]) -> None:
    assert digests(split_rows(rows, 0.2, seed=1).held_out) != digests(
        split_rows(rows, 0.2).held_out
    )


def test_rows_that_ask_the_same_question_land_on_the_same_side() -> None:
    rows = [
        Row((Message("user", f"question {i}"), Message("assistant", f"answer {j}")))
        for i in range(30)
        for j in range(3)
    ]
    split = split_rows(rows, 0.3)
    asked = {row.question for row in split.train}
    assert not asked & {row.question for row in split.held_out}


def test_preferences_are_split_as_rows_that_ask_the_same() -> None:
    ask = [(Message("system", "s"), Message("user", f"question {i}")) for i in range(60)]
    yes, no = (Message("assistant", "yes"),), (Message("assistant", "no"),)
    more = (*yes, Message("user", "sure?"))
    rows = split_rows([Row(prompt + yes) for prompt in ask], 0.3, seed=5)
    pairs = split_rows(
        [Preference(prompt + later, yes, no) for prompt in ask for later in ((), more)], 0.3, seed=5
    )
    assert {row.question for row in rows.held_out} == {pair.question for pair in pairs.held_out}
    assert {row.question for row in rows.train} == {pair.question for pair in pairs.train}
    assert len(pairs.held_out) == 2 * len(rows.held_out) > 0
    turned = [Preference(prompt, no, yes) for prompt in ask]
    assert dataset_digest(turned) != dataset_digest([Preference(p, yes, no) for p in ask])


def test_a_limit_keeps_that_many_rows_whatever_the_order(rows: list[Row]) -> None:
    few = split_rows(rows, 0.2, limit=50)
    random.Random(2).shuffle(rows)
    again = split_rows(rows, 0.2, limit=50)
    assert len(few.train) + len(few.held_out) == 50
    assert digests(again.train) == digests(few.train)


def test_nothing_held_out_is_a_choice_but_an_empty_side_is_an_error(rows: list[Row]) -> None:
    assert split_rows(rows, 0.0).held_out == ()
    with pytest.raises(UsageError, match="No row would be held out"):
        split_rows(rows[:1], 0.0001)
    with pytest.raises(UsageError, match="No row would be trained on"):
        split_rows(rows[:1], 0.9999)
    with pytest.raises(UsageError, match="at least 0 and less than 1"):
        split_rows(rows, 1.0)


def test_the_dataset_digest_knows_contents_and_repetition_but_not_order(rows: list[Row]) -> None:
    digest = dataset_digest(rows)
    assert dataset_digest(rows[::-1]) == digest
    assert dataset_digest(rows[:-1]) != digest
    assert dataset_digest([*rows, rows[0]]) != digest
