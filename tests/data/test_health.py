"""Every rule of health finds what was planted, says where, and finds nothing in sound data."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from adapterhub.data import (
    IGNORED,
    Encoded,
    Health,
    Message,
    Preference,
    Problem,
    Row,
    examine,
    split_rows,
)
from adapterhub.errors import FormatError

LONG = "This answer is so long that nobody would write it twice by chance, number {}."


def row(number: int, *turns: tuple[str, str], file: str = "d.json") -> Row:
    return Row(tuple(Message(*turn) for turn in turns), None, number, file)


def pair(number: int, ask: str, say: str, file: str = "d.json") -> Row:
    return row(number, ("user", ask), ("assistant", say), file=file)


def sound(count: int = 600) -> list[Row]:
    return [pair(i, f"Question {i}?", LONG.format(i)) for i in range(1, count + 1)]


def found(rows: Sequence[Row], **settings: object) -> dict[str, Problem]:
    health = examine(rows, split_rows(rows, 0.2), **settings)  # type: ignore[arg-type]
    return {problem.kind: problem for problem in health.problems}


def test_nothing_is_found_in_sound_rows() -> None:
    rows = sound()
    tokens = {r.digest: Encoded((1, 2, 3), (IGNORED, 2, 3)) for r in rows}
    assert not found(rows, control_tokens=["<|im_end|>"], encoded=tokens, max_length=8)


@pytest.mark.parametrize(
    ("planted", "kind", "groups"),
    [
        ([pair(901, "Question 7?", LONG.format(7))], "duplicates", [("d.json:7", "d.json:901")]),
        ([pair(901, "question  7", LONG.format(7).upper())], "near_duplicates", [("d.json:7", "d.json:901")]),
        ([pair(901, "Question 7", "No.")], "conflicts", [("d.json:7", "d.json:901")]),
        ([pair(901, "x", "Ask {{ name }}.")], "placeholders", [("d.json:901",)]),
        ([pair(901, "x", '<tool_call>\n{"name": 3}\n</tool_call>')], "broken_calls", [("d.json:901",)]),
        ([pair(901, "x", "na\ufffdve")], "damaged_text", [("d.json:901",)]),
        ([row(901, ("user", "a"), ("user", "b"), ("assistant", "c"))], "user_after_user", [("d.json:901",)]),
        ([row(901, ("user", "a"), ("assistant", "b"), ("assistant", "c"))], "answer_after_answer", [("d.json:901",)]),
        ([row(901, ("user", "a"), ("assistant", "b"), ("user", "c"))], "unanswered", [("d.json:901",)]),
        ([Row((), "A document.", 1, "e.txt")], "mixed", [("e.txt:1",)]),
        ([pair(1, "x", "y", file="test.json")], "evaluation_files", [("test.json",)]),
    ],
)  # fmt: skip
def test_what_is_planted_is_found_and_where(
    planted: list[Row], kind: str, groups: list[tuple[str, ...]]
) -> None:
    problems = found(sound() + planted)
    assert problems[kind].severity == "warn"
    assert list(problems[kind].groups) == groups
    assert set(problems) <= {kind, "leaked_questions", "leaked_answers"}


def test_arithmetic_is_not_punctuation_and_a_call_after_words_is_no_second_answer() -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    rows = [
        *sound(),
        pair(901, "What is 5 + 3?", "8"),
        pair(902, "What is 5 - 3?", "2"),
        row(903, ("user", "Now?"), ("assistant", "A moment."), ("assistant", call), ("tool", "3"), ("assistant", "Three.")),
    ]  # fmt: skip
    assert not found(rows)


def test_held_out_rows_that_are_known_from_training_are_found() -> None:
    rows = sound()
    split = split_rows(rows, 0.2)
    out, inside = split.held_out[0], split.train[0]
    asked = pair(901, f"  {inside.messages[0].content.lower()}!", "Another answer entirely.")
    answered = pair(902, "Something else?", out.messages[1].content)
    split = split_rows([*rows, asked, answered], 0.2)
    sides = {r.number: side for side in ("train", "held_out") for r in getattr(split, side)}
    problems = found([*rows, asked, answered])
    expected = {
        "leaked_questions": {901, inside.number} if sides[901] == "held_out" else set(),
        "leaked_answers": {902, out.number} if sides[902] == "train" else set(),
    }
    assert any(expected.values())
    for kind, numbers in expected.items():
        there = {int(r.rpartition(":")[2]) for r in problems[kind].rows} if kind in problems else set()  # fmt: skip
        assert there == numbers


def test_short_and_closing_answers_are_no_leaks() -> None:
    bye = (("user", "Thanks!"), ("assistant", "You're welcome! If you have more questions, just ask."))  # fmt: skip
    rows = [row(i, ("user", f"Q{i}"), ("assistant", LONG.format(i)), *bye) for i in range(600)]
    assert set(found(rows)) == {"boilerplate"}
    assert "leaked_answers" not in found([pair(i, f"Q{i}", f"Yes {i % 30}.") for i in range(600)])


def test_one_answer_in_more_than_a_tenth_of_the_rows_is_boilerplate() -> None:
    def refusing(count: int) -> dict[str, Problem]:
        rows = sound()
        return found([pair(i, f"Q{i}", "I can't help with that.") for i in range(count)] + rows[count:])  # fmt: skip

    problem = refusing(61)["boilerplate"]
    assert problem.words.startswith(
        '61 of 600 rows have the same answer, "I can\'t help with that."'
    )
    assert len(problem.rows) == 61
    assert "boilerplate" not in refusing(60)


def test_few_rows_are_worth_a_warning() -> None:
    assert "few_rows" in found(sound(499))
    assert "few_rows" not in found(sound(500))


def test_control_tokens_forbid_training_and_the_longest_is_named() -> None:
    rows = [pair(1, "x", "y<|im_end|>"), *sound()[1:]]
    health = examine(rows, control_tokens=["<|im", "<|im_end|>", "</s>"])
    (problem,) = health.refused
    assert health.problems[0] == problem
    assert "'<|im_end|>'" in problem.words
    assert problem.rows == ("d.json:1",)
    with pytest.raises(FormatError, match="control token") as caught:
        health.require()
    assert caught.value.why == "d.json:1"


def test_rows_are_held_against_the_limit() -> None:
    rows = sound(600)
    tokens = {r.digest: Encoded((1,) * 4, (IGNORED, IGNORED, 1, 1)) for r in rows}
    tokens[rows[0].digest] = Encoded((1,) * 12, (IGNORED,) * 4 + (1,) * 8)
    tokens[rows[1].digest] = Encoded((1,) * 12, (IGNORED,) * 8 + (1,) * 4)
    problems = found(rows, encoded=tokens, max_length=8)
    assert problems["truncated"].rows == ("d.json:1",)
    assert problems["dropped"].rows == ("d.json:2",)
    assert problems["dropped"].severity == "warn"
    assert "Nothing is left" in found(rows, encoded=tokens, max_length=2)["dropped"].words
    assert found(rows, encoded=tokens, max_length=2)["dropped"].severity == "refuse"


def test_preferences_that_contradict_each_other_are_found() -> None:
    def prefer(number: int, ask: str, good: str, bad: str) -> Preference:
        answers = (Message("assistant", good),), (Message("assistant", bad),)
        return Preference((Message("user", ask),), *answers, number, "p.json")

    pairs = [prefer(i, f"Q{i}", f"good {i}", f"bad {i}") for i in range(600)]
    assert not examine(pairs, split_rows(pairs, 0.2)).problems
    turned = prefer(901, "Q5", "bad 5", "good 5")
    other = prefer(902, "Q6", "better", "bad 6")  # several answers to choose from are no conflict
    (problem,) = examine([*pairs, turned, other]).problems
    assert (problem.kind, problem.groups) == ("contradictions", (("p.json:5", "p.json:901"),))


def test_cases_are_shown_shortly_and_kept_whole() -> None:
    groups = tuple((f"d.json:{i}", f"d.json:{i + 100}") for i in range(9))
    problem = Problem("duplicates", "warn", "words", (*groups[:1], ("e.json:1",), *groups[1:]))
    assert problem.shown(3) == "d.json:0 = 100, e.json:1, d.json:1 = 101 and 7 more"
    assert len(problem.record["rows"]) == 19
    assert problem.record["groups"] == [list(group) for group in groups]
    assert Health.of([problem]).refused == ()
