"""Files of every format become the same rows, and faults are named by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import Message, read_data, read_rows
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


def test_openai_calls_become_the_same_row_as_sharegpt_ones(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {**CALL, "arguments": '{"a": 1, "b": 2}'}}
    said = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    other = [
        {"from": "human", "value": "1+2?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "It is 3."},
    ]
    (one,) = read_rows(write_rows(tmp_path / "a.json", [{"messages": said, "tools": [TOOL]}]))
    (two,) = read_rows(
        write_rows(tmp_path / "b.json", [{"conversations": other, "tools": json.dumps([TOOL])}])
    )
    assert one == two


def test_words_before_calls_and_calls_at_once_are_one_answer(tmp_path: Path) -> None:
    calls = [{"function": CALL}, {"function": {"name": "now", "arguments": {}}}]
    said = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "1+2, and the time?"},
        {"role": "assistant", "content": "A moment.", "tool_calls": calls},
    ]
    found = messages_of(write_rows(tmp_path / "d.json", [{"messages": said}]))
    assert found[0] == ("system", "Be short.")
    assert found[2][1] == (
        "A moment.\n"
        f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>\n"
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    )
    several = json.dumps([CALL, CALL])
    turns = [{"from": "human", "value": "?"}, {"from": "function_call", "value": several}]
    found = messages_of(write_rows(tmp_path / "e.json", [{"conversations": turns}]))
    assert found[1][1].count("<tool_call>") == 2


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "completion": "hello"},
        {"prompt": "hi", "response": "hello", "id": 3},
        {"question": "hi", "answer": "hello"},
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "hello"}],
        },
    ],
)
def test_prompts_and_completions_are_conversations(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_rows(tmp_path / "d.json", [row])
    assert messages_of(path) == [("user", "hi"), ("assistant", "hello")]


def test_question_and_answer_beside_something_else_are_not_guessed_at(tmp_path: Path) -> None:
    row = {"question": "Who?", "context": "Ann did.", "answer": "Ann"}
    with pytest.raises(FormatError, match="can't be told"):
        read_rows(write_rows(tmp_path / "d.json", [row]))


def test_earlier_turns_of_an_alpaca_row_are_turns(tmp_path: Path) -> None:
    row = {"instruction": "And 2+2?", "output": "4", "history": [["1+1?", "2"]]}
    assert messages_of(write_rows(tmp_path / "d.json", [row])) == [
        ("user", "1+1?"),
        ("assistant", "2"),
        ("user", "And 2+2?"),
        ("assistant", "4"),
    ]


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


def test_rows_know_their_place_but_are_not_told_apart_by_it(tmp_path: Path) -> None:
    paths = [
        write_rows(tmp_path / "d.json", [{"text": "a"}, {"text": "a"}]),
        write_rows(tmp_path / "e.json", [{"text": "a"}]),
    ]
    rows = read_data(paths)
    assert [row.where for row in rows] == ["d.json:1", "d.json:2", "e.json:1"]
    assert len({row.digest for row in rows}) == len(set(rows)) == 1


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
            "messages[0].tool_calls[0] names no function",
        ),
        (
            turns(("user", "x"), ("tool", "3"), ("assistant", "y")),
            "a tool answers, but no call comes before it",
        ),
        (turns(("user", "x"), ("assistant", "y")) | {"images": ["a.jpg"]}, "it has images"),
        (turns(("user", "x"), ("assistant", "y")) | {"label": False}, "label is false"),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y", "reasoning_content": "z"},
                ]
            },
            "messages[1].reasoning_content can't be trained on by itself",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {"role": "assistant", "content": "y", "weight": 0},
                ]
            },
            "messages[1].weight is 0, but every answer is learned alike",
        ),
        ({"conversations": [{"from": "dog", "value": "x"}]}, "conversations[0].from is 'dog'"),
        (
            {"conversations": [{"from": "human", "value": "x"}], "tools": "{"},
            "tools is not valid JSON",
        ),
        ({"text": "  "}, "the text is empty"),
        ({"text": "a\ud800"}, "half of a surrogate pair"),
        ({"prompt": " ", "completion": "y"}, "'prompt' is empty"),
        ({"prompt": "x", "completion": ["y"]}, "'completion' must be a list of turns"),
        (
            {"prompt": turns(("user", "x"), ("assistant", "y"))["messages"], "completion": "z"},
            "'prompt' holds an answer",
        ),
        ({"instruction": "x", "output": "y", "history": ["z"]}, "history[0] must be a question"),
    ],
)
def test_a_faulty_row_is_named_by_its_number(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    sound = {"text": "ok", "instruction": "q", "output": "a"} | turns(
        ("user", "q"), ("assistant", "a")
    )
    sound["conversations"] = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    sound |= {"prompt": "q", "completion": "a"}
    keys = {"messages": "messages", "conversations": "sharegpt", "text": "text"}
    keys["prompt"] = "prompt_completion"
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
    (tmp_path / "d.docx").write_text("x")
    with pytest.raises(UsageError, match=r"\.json, \.jsonl, \.csv, \.parquet, \.txt"):
        read_rows(tmp_path / "d.docx")
