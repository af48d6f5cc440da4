"""Preferences of every spelling become a prompt, a chosen and a rejected answer; what isn't that is named by its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import Message, Preference, read_preferences, read_rows
from adapterhub.errors import FormatError, UsageError
from tests.support.chat import write_rows

ASK, YES, NO = Message("user", "Really?"), Message("assistant", "Yes."), Message("assistant", "No.")
USER = {"role": "user", "content": "Really?"}
GOOD, BAD = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Really?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "Really?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0},
        {"chosen_messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
        {
            "conversations": [{"from": "human", "value": "Really?"}],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {"instruction": "Really?", "input": "", "chosen": "Yes.", "rejected": "No."},
    ],
)
def test_one_preference_has_one_digest_in_every_spelling(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    (found,) = read_preferences(write_rows(tmp_path / "d.json", [row]))
    assert found == Preference((ASK,), (YES,), (NO,))
    assert found.digest == Preference((ASK,), (YES,), (NO,), 7, "other.json").digest
    assert found.where == "d.json:1"


def test_answers_of_several_turns_begin_where_the_conversations_part(tmp_path: Path) -> None:
    more = {"role": "user", "content": "Sure?"}
    row = {"chosen": [USER, GOOD, more, GOOD], "rejected": [USER, GOOD, more, BAD]}
    (found,) = read_preferences(
        write_rows(tmp_path / "d.json", [{**row, "system": "Be short.", "tools": [{"name": "x"}]}])
    )
    assert found.prompt[0].role == "system"
    assert found.prompt[0].content.startswith("Be short.\n\nYou can call functions.")
    assert found.prompt[1:] == (ASK, YES, Message("user", "Sure?"))
    assert (found.chosen, found.rejected) == ((YES,), (NO,))
    chosen, rejected = found.sides
    assert chosen.messages[-1] == YES
    assert rejected.messages[:-1] == chosen.messages[:-1]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "chosen and rejected are the same"),
        ({"prompt": " ", "chosen": "y", "rejected": "z"}, "the prompt is empty"),
        ({"prompt": "x", "chosen": "y", "rejected": " "}, "rejected: an assistant's answer is empty"),
        ({"prompt": "x", "chosen": "y"}, "'rejected' is missing"),
        ({"chosen": "y", "rejected": "z"}, "there is no prompt"),
        ({"prompt": "x", "chosen": [USER], "rejected": [USER, BAD]}, "chosen and rejected begin with another"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [USER, BAD]}, "chosen must begin and end with an answer"),
        ({"prompt": [USER, GOOD], "chosen": "y", "rejected": "z"}, "the prompt ends in an answer"),
        ({"prompt": "x", "chosen": [GOOD, USER], "rejected": "z"}, "chosen must begin and end with an answer"),
    ],
)  # fmt: skip
def test_a_faulty_preference_is_named_by_its_row(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    sound = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(FormatError, match=r"1 faulty row\(s\) of 2") as caught:
        read_preferences(write_rows(tmp_path / "d.json", [sound, row]))
    assert f"row 2: {says}" in caught.value.why


def test_preferences_are_not_mistaken_for_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.json", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    for fmt in (None, "preference"):
        with pytest.raises(UsageError, match="holds preferences") as caught:
            read_rows(path, fmt)
        assert "objective: dpo" in caught.value.hint
