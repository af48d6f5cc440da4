"""Measures of answers whose values anybody can tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.evaluate.measures import parse_measure


@pytest.mark.parametrize(
    ("measure", "answer", "reference", "value"),
    [
        ("exact", " Yes,\n it is ", "Yes, it is", 1),
        ("exact", "yes, it is", "Yes, it is", 0),
        ("exact", "", "", 1),
        ("contains", "Well, it is  blue.", "it is blue", 1),
        ("contains", "It was blue.", "it is blue", 0),
        ("contains=order 12", "Your order 12 is on its way", "anything", 1),
        ("contains=", "whatever", "", 1),
        (r"regex=order \d+", "your order 12", "", 1),
        (r"regex=^order", "your order 12", "", 0),
        (r"regex=a.b", "a\nb", "", 1),
        ("json", ' {"a": [1, null]} ', "", 1),
        ("json", 'Here it is: {"a": 1}', "", 0),
        ("json", '{"a": NaN}', "", 0),
        ("json", '{"a": 1', "", 0),
        ("json", "[" * 100_000, "", 0),
        ("length", "three short words", "", 3),
    ],
)
def test_what_a_measure_says(measure: str, answer: str, reference: str, value: float) -> None:
    assert parse_measure(measure).judge(answer, reference) == value


def test_a_schema_is_met_or_not(tmp_path: Path) -> None:
    path = tmp_path / "ticket.json"
    path.write_text(
        json.dumps(
            {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}
        )
    )
    measure = parse_measure(f"schema={path}")
    assert measure.name == "schema=ticket.json"
    said = ['{"id": 3}', '{"id": "3"}', "{}", "no json", "[]"]
    assert [measure.judge(answer, "") for answer in said] == [1, 0, 0, 0, 0]
    path.write_text('{"type": "array"}')
    assert parse_measure(f"schema={path}").identity != measure.identity


def test_only_a_length_is_neither_good_nor_bad() -> None:
    assert not parse_measure("length").share
    assert parse_measure("json").share


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exakt", "Did you mean"),
        ("exact=yes", "takes no value"),
        ("regex", "needs a pattern"),
        ("regex=(", "is no pattern"),
        ("schema", "needs a file"),
        ("schema=absent.json", "is no JSON schema"),
    ],
)
def test_what_is_no_measure_is_said_to_be_none(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_measure(text)
    assert words in f"{caught.value.what} {caught.value.why}"


def test_a_pattern_that_goes_astray_is_stopped() -> None:
    measure = parse_measure(r"regex=(a|aa)+(b|bb)+$c")
    with pytest.raises(UsageError, match="takes too long"):
        measure.judge("a" * 200 + "b" * 200, "")
