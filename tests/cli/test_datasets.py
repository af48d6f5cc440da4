"""`adapterhub data report`: what is in the data, and everything that is wrong with it, by file and number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.data import (
    covering_length,
    cut_rows,
    dataset_digest,
    encode_whole,
    read_data,
    split_rows,
)
from adapterhub.data.report import percentiles
from tests.cli.calling import call
from tests.support.chat import chat_base, chat_rows, chat_tokenizer, write_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 rows; the first three repeat themselves in one way or another."""
    rows = chat_rows(60)
    rows.append(dict(rows[0]))
    rows.append({**rows[1], "output": "Nobody knows, {{name}}.", "topic": "paint"})
    return write_rows(tmp_path / "data.json", rows)


def report(*arguments: str | Path) -> dict[str, Any]:
    said = call("data", "report", *arguments, "--json")
    assert said.code == 0, said.err
    found: dict[str, Any] = said.json
    return found


def test_the_report_counts_what_the_trainer_will_use(data: Path) -> None:
    found = report(data, "--held-out", "0.2", "--split-seed", "3")
    rows = read_data(data)
    split = split_rows(rows, 0.2, seed=3)
    assert found["rows"] == 62
    assert found["digest"] == dataset_digest(rows)
    assert found["split"]["train"] == len(split.train)
    assert found["split"]["held_out_digest"] == dataset_digest(split.held_out)
    assert found["files"] == [
        {"name": "data.json", "source": str(data), "format": "alpaca", "rows": 62, "unused": ["topic"]}
    ]  # fmt: skip
    assert found["example"]["messages"][0]["content"] == "Paint number 0: which colour?"
    assert call("data", "report", data, "-q").out.strip() == found["digest"]


def test_every_problem_is_there_with_its_rows(data: Path) -> None:
    problems = {problem["kind"]: problem for problem in report(data)["problems"]}
    assert problems["duplicates"]["groups"] == [["data.json:1", "data.json:61"]]
    assert problems["conflicts"]["groups"] == [["data.json:2", "data.json:62"]]
    assert problems["placeholders"]["rows"] == ["data.json:62"]
    assert {"few_rows", "boilerplate"} <= set(problems)
    said = call("data", "report", data)
    assert "data.json:1 = 61" in said.out
    assert "example (data.json:1)" in said.out


def test_the_tokens_are_those_the_trainer_counts(data: Path, tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    found = report(data, "--base", base, "--max-length", "auto", "--held-out", "0.2")["tokens"]
    split = split_rows(read_data(data), 0.2)
    encoded = encode_whole(chat_tokenizer(), split.train, stop_ids=frozenset({2}))
    assert found["row"] == percentiles([len(row.input_ids) for row in encoded])
    assert found["auto"] == found["max_length"] == covering_length(encoded)
    cut = cut_rows(encoded, covering_length(encoded))
    assert (found["truncated"], found["dropped"]) == (cut.truncated, cut.dropped) == (1, 0)
    assert (found["trained"], found["total"]) == (cut.trained, cut.tokens)
    short = call("data", "report", data, "--base", base, "--max-length", "40", "--json")
    assert short.code == 1  # the question alone is longer
    assert "dropped" in {p["kind"] for p in short.json["problems"] if p["severity"] == "refuse"}


def test_what_training_refuses_ends_with_exit_code_1(tmp_path: Path) -> None:
    base = chat_base(tmp_path / "base")
    rows: list[Any] = chat_rows(40)
    rows[4] = {"instruction": "x", "output": " "}
    rows[7] = {"instruction": "x", "output": ""}
    rows[9] = {"instruction": "x<|im_end|>", "output": "y"}
    said = call("data", "report", write_rows(tmp_path / "d.json", rows), "--base", base, "--json")
    assert said.code == 1
    refused = {p["kind"]: p for p in said.json["problems"] if p["severity"] == "refuse"}
    assert refused["faulty"]["rows"] == ["d.json:5", "d.json:8"]
    assert refused["control_token"]["rows"] == ["d.json:10"]
    assert (said.json["rows"], said.json["faulty"]) == (38, 2)
    shown = call("data", "report", tmp_path / "d.json")
    assert shown.code == 1
    assert "refused: An assistant's answer is empty. [faulty]" in shown.out
    assert "Training would be refused" in shown.out
    one = call("data", "report", write_rows(tmp_path / "one.json", rows[:1]), "--json")
    assert one.json["problems"][0]["kind"] == "split"


def test_replay_is_counted_and_what_it_lacks_is_said(data: Path, tmp_path: Path) -> None:
    general = [{"text": f"General knowledge {i}."} for i in range(40)]
    path = write_rows(tmp_path / "general.json", general)
    found = report(data, "--replay", path, "--ratio", "0.5")
    assert found["replay"]["taken"] == round(0.5 * found["split"]["train"])
    assert found["replay"]["train"] == found["split"]["train"] + found["replay"]["taken"]
    said = call("data", "report", data, "--replay", path, "--ratio", "2", "--json")
    assert said.code == 1
    assert said.json["problems"][0]["kind"] == "replay"


def test_preferences_are_reported_as_such(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Really {i}?", "chosen": "Yes.", "rejected": f"No, {i}."} for i in range(40)
    ]
    path = write_rows(tmp_path / "p.json", rows)
    found = report(path, "--base", chat_base(tmp_path / "base"))
    assert found["kind"] == "preferences"
    assert [turn["content"] for turn in found["example"]["rejected"]] == ["No, 0."]
    longer = chat_tokenizer()("No, 10.")["input_ids"]  # the side that sets the length
    assert found["tokens"]["answers"]["max"] == len(longer) + 1


def test_strings_from_the_data_command_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[2J.json"
    row = {"instruction": "\x1b]0;owned\x07", "output": "[red]x[/red]\u202e", "\x1b[1m": 1}
    path.write_text(json.dumps([row] * 30))
    said = call("data", "report", path)
    assert "\x1b" not in said.out + said.err
    assert "\u202e" not in said.out
    assert "[red]x[/red]" in said.out
    assert "\\x1b[1m" in said.out


@pytest.mark.parametrize(
    "option", ["--max-length=7", "--max-length=-3", "--max-length=many", "--held-out=1"]
)
def test_a_number_that_can_not_be_is_a_usage_error(data: Path, option: str) -> None:
    said = call("data", "report", data, option, "--json")
    assert said.code == 2
    assert option.rpartition("=")[2] in said.error["what"]
