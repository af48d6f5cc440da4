"""`eval --answers`: every answer in a file, as the numbers of the table were made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.data import read_rows
from adapterhub.errors import UsageError
from adapterhub.evaluate import evaluate
from adapterhub.evaluate.measures import parse_measure
from adapterhub.store import Store
from tests.cli.calling import call

Add = Callable[..., str]


def test_each_answer_stands_in_it_with_what_the_measures_say(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    add("one")
    out = tmp_path / "answers.jsonl"
    table = evaluate(
        store, ["base", "one"], base=str(base), data=data, split="all", max_new_tokens=4,
        measures=[parse_measure("contains"), parse_measure("length")], answers=out,
    )  # fmt: skip
    told = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(told) == sum(row.rows for row in table)
    rows = {row.number: row for row in read_rows(data)}
    for line in told:
        row = rows[line["row"]]
        assert line["expected"] == row.answers[0]
        assert [turn["content"] for turn in line["question"]] == [t.content for t in row.question]
        assert line["measures"]["length"] == len(line["answer"].split())
        expected = " ".join(line["expected"].split()) in " ".join(line["answer"].split())
        assert line["measures"]["contains"] == float(expected)
        assert 0 < line["tokens"] <= 4
    for found in table:
        lengths = [line["measures"]["length"] for line in told if line["name"] == found.name]
        assert found.measures["length"].value == pytest.approx(sum(lengths) / len(lengths))


def test_what_is_there_already_is_left_alone(store: Store, base: Path, data: Path) -> None:
    how = {"base": str(base), "data": data, "measures": [parse_measure("json")]}
    before = data.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        evaluate(store, ["base"], answers=data, **how)  # type: ignore[arg-type]
    assert data.read_bytes() == before
    with pytest.raises(UsageError, match="no folder"):
        evaluate(store, ["base"], answers=data.parent / "no" / "a.jsonl", **how)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing is asked"):
        evaluate(store, ["base"], base=str(base), data=data, answers=data.parent / "a.jsonl")


def test_parts_of_a_suite_are_told(store: Store, base: Path, tmp_path: Path) -> None:
    suite, out = tmp_path / "hours.yaml", tmp_path / "out.jsonl"
    suite.write_text(
        "about: x\nparts: {a: [{ask: 'Hi?', answer: Hello}], b: ['A text of some words.']}\n"
    )
    said = call(
        "eval", "base", "--base", base, "--suite", suite, "--max-new-tokens", "2", "--answers", out
    )
    assert said.code == 0, said.err
    (only,) = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert (only["part"], only["expected"], list(only["measures"])) == ("a", "Hello", ["passed"])
    for words in (("--harness", "x"), ("--interactions", "m"), ("--pair",)):
        assert call("eval", "base", *words, "--answers", tmp_path / "x.jsonl").code == 2
