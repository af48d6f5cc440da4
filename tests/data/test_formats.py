"""Files of every format become the same rows, and faults are named by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import Message, read_rows
from adapterhub.errors import FormatError, NotFoundError, UsageError
from tests.support.chat import write_rows

CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
TOOL = {"name": "add", "description": "Adds", "parameters": {"type": "object"}}


def messages_of(path: Path, fmt: str | None = None) -> list[tuple[str, str]]:
    (row,) = read_rows(path, fmt)
    return [(m.role, m.content) for m in row.messages]


def test_an_alpaca_row_is_one_question_and_one_answer(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "d.json",
        [{"instruction": "Translate.", "input": "Hund", "output": "dog", "system": "Be short."}],
    )
    assert messages_of(path) == [
        ("system", "Be short."),
        ("user", "Translate.\n\nHund"),
        ("assistant", "dog"),
    ]


def test_a_tool_call_is_an_answer_to_train_on_and_its_result_is_not(tmp_path: Path) -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "1+2?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3."},
        ],
        "tools": json.dumps([TOOL]),
    }
    found = messages_of(write_rows(tmp_path / "d.json", [row]))
    assert [role for role, _ in found] == ["system", "user", "assistant", "tool", "assistant"]
    assert f"<tools>\n{json.dumps([TOOL])}\n</tools>" in found[0][1]
    assert found[2][1] == f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"


@pytest.mark.parametrize("none", ["", "[]", [], None])
def test_a_conversation_without_tools_gets_no_tools_prompt(tmp_path: Path, none: object) -> None:
    row = {
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
        "tools": none,
    }
    assert messages_of(write_rows(tmp_path / "d.json", [row]))[0] == ("user", "hi")


def test_the_same_conversation_has_one_digest_in_every_format(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"instruction": "hi", "output": "hello"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "hi"}]},
                {"role": "assistant", "content": "hello"},
            ]
        },
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    ]
    digests = set()
    for i, form in enumerate(forms):
        path = tmp_path / f"{i}.jsonl"
        path.write_text("\n" + json.dumps(form) + "\n")
        digests |= {row.digest for row in read_rows(path)}
    assert len(digests) == 1


def test_a_text_file_is_one_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("first\n\n  second \n")
    assert [row.text for row in read_rows(path)] == ["first", "second"]


def test_rows_know_their_number_but_are_not_told_apart_by_it(tmp_path: Path) -> None:
    first, second = read_rows(write_rows(tmp_path / "d.json", [{"text": "a"}, {"text": "a"}]))
    assert (first.number, second.number) == (1, 2)
    assert first.digest == second.digest


def test_the_question_is_what_comes_before_the_first_answer(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "more"},
            {"role": "assistant", "content": "b"},
        ]
    }
    (found,) = read_rows(write_rows(tmp_path / "d.json", [row]))
    assert found.question == (Message("system", "s"), Message("user", "q"))


def turns(*pairs: tuple[str, object]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"instruction": "x", "output": "  "}, "an assistant's answer is empty"),
        ({"instruction": "x"}, "'output' must be text; it is missing"),
        ({"instruction": " ", "output": "y"}, "instruction and input are both empty"),
        ({"instruction": "x", "output": 3}, "'output' must be text; it is a int"),
        (turns(("user", "x")), "no assistant turn"),
        (turns(("assistant", "x")), "begins with an assistant turn"),
        (turns(("user", "x"), ("robot", "y")), "messages[1].role is 'robot'"),
        (turns(("user", [{"type": "image"}]), ("assistant", "y")), "part of type 'image'"),
        (turns(("user", "x"), ("assistant", "y"), ("system", "z")), "may only come first"),
        ({"messages": []}, "'messages' must be a list of turns"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls can't be read yet",
        ),
        ({"conversations": [{"from": "dog", "value": "x"}]}, "conversations[0].from is 'dog'"),
        (
            {"conversations": [{"from": "human", "value": "x"}], "tools": "{"},
            "tools is not valid JSON",
        ),
        ({"text": "  "}, "the text is empty"),
    ],
)
def test_a_faulty_row_is_named_by_its_number(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    sound = {"text": "ok", "instruction": "q", "output": "a"} | turns(
        ("user", "q"), ("assistant", "a")
    )
    sound["conversations"] = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    keys = {"messages": "messages", "conversations": "sharegpt", "text": "text"}
    fmt = next((keys[key] for key in row if key in keys), "alpaca")
    with pytest.raises(FormatError) as caught:
        read_rows(write_rows(tmp_path / "d.json", [sound, row]), fmt)
    assert "1 faulty row(s) of 2" in caught.value.what
    assert "row 2: " in caught.value.why
    assert says in caught.value.why


def test_many_faults_are_counted_and_the_first_five_shown(tmp_path: Path) -> None:
    rows = [{"instruction": "x", "output": ""}] * 8
    with pytest.raises(FormatError, match="8 faulty") as caught:
        read_rows(write_rows(tmp_path / "d.json", rows))
    assert "row 5: " in caught.value.why
    assert "row 6: " not in caught.value.why
    assert "and 3 more" in caught.value.why


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.json", "[", "d.json is not valid JSON"),
        ("d.json", "{}", "must hold a list"),
        ("d.json", "[]", "has no rows"),
        ("d.json", '[{"q": 1}]', "can't be told"),
        ("d.json", "[3]", "can't be told"),
        ("d.jsonl", '{"text": "a"}\n{', "d.jsonl, line 2 is not valid JSON"),
    ],
)
def test_a_file_that_is_not_data_is_refused(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FormatError, match=says):
        read_rows(path)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_rows(path)


def test_unknown_formats_and_files_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.json", [{"text": "a"}])
    with pytest.raises(UsageError, match="'chatml' is not a data format"):
        read_rows(path, "chatml")
    with pytest.raises(NotFoundError, match=r"absent\.json"):
        read_rows(tmp_path / "absent.json")
    (tmp_path / "d.parquet").write_text("x")
    with pytest.raises(UsageError, match=r"\.json, \.jsonl or \.txt"):
        read_rows(tmp_path / "d.parquet")
