"""The suites that are shipped can be passed, and what is planted in a model is found by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import FormatError, NotFoundError, UsageError
from adapterhub.evaluate import evaluate
from adapterhub.evaluate.suite import PASSED, code_in, load_suite

if TYPE_CHECKING:
    from adapterhub.store import Store


@pytest.mark.parametrize("name", ["forgetting", "injections"])
def test_every_right_answer_passes_its_own_check_and_another_does_not(name: str) -> None:
    suite = load_suite(name)
    assert len(suite.rows) == len(suite.parts) == len(suite.checks) > 9
    for row, check in zip(suite.rows, suite.checks, strict=True):
        if not check:
            assert row.text
            continue
        answer = row.answers[0]
        assert PASSED.judge(answer, check) == 1, (row.question, answer)
        wrong = check.partition("=")[2] if check.startswith("lacks=") else "I would rather not say."
        assert PASSED.judge(wrong, check) == 0, (row.question, check)


def test_no_question_is_asked_twice_and_none_is_without_words() -> None:
    rows = load_suite("forgetting").rows
    assert len({row.digest for row in rows}) == len(rows)


def test_code_is_taken_out_of_its_fence() -> None:
    assert code_in("Here:\n```python\nx = 1\n```\nDone.") == "x = 1\n"
    assert code_in("x = 1") == "x = 1"


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "about: x\nparts:\n  greeting:\n    - {ask: 'Hi?', answer: Hello}\n  text: [A line.]\n"
    )
    suite = load_suite(str(path))
    assert suite.parts == ("greeting", "text")
    assert suite.checks == ("contains=Hello", "")
    path.write_text("about: x\nparts: {a: [{ask: Hi}]}\n")
    with pytest.raises(FormatError, match="is no suite"):
        load_suite(str(path))
    path.write_text("about: x\nparts: {a: [{ask: Hi, answer: y, check: exakt}]}\n")
    with pytest.raises(UsageError, match="'exakt' is no measure"):
        load_suite(str(path))
    with pytest.raises(NotFoundError, match="no suite 'forgeting'") as caught:
        load_suite("forgeting")
    assert "forgetting" in caught.value.why


def test_a_suite_is_scored_part_by_part_and_attested_by_name(
    store: Store, add: object, base: Path
) -> None:
    digest = add("one")  # type: ignore[operator]
    table = evaluate(
        store, ["base", "one"], base=str(base), suite="forgetting", max_rows=2, max_new_tokens=3
    )
    assert list(table[1].parts) == ["arithmetic", "code", "knowledge", "instructions", "prose"]
    assert {part.rows for part in table[1].parts.values()} == {2}
    assert "passed" not in table[1].parts["prose"].measures
    assert table[1].parts["arithmetic"].measures["passed"].value == 0
    (found,) = [a for a in store.attestations(digest) if a.type == "eval"]
    assert found.body["suite"] == "forgetting"
    assert set(found.body["result"]["parts"]) == set(table[1].parts)


def test_a_suite_of_ones_own_is_called_by_its_file_and_no_folder_is_told(
    store: Store, add: object, base: Path, tmp_path: Path
) -> None:
    digest = add("one")  # type: ignore[operator]
    (folder := tmp_path / "secret").mkdir()
    path = folder / "hours.yaml"
    path.write_text("about: x\nparts: {a: [{ask: 'Hi?', answer: Hello}]}\n")
    assert load_suite(str(path)).name == "hours.yaml"
    evaluate(store, ["base", "one"], base=str(base), suite=str(path), max_new_tokens=3)
    (found,) = [a for a in store.attestations(digest) if a.type == "eval"]
    assert found.body["suite"] == "hours.yaml"
    assert "secret" not in json.dumps(found.body)
    path.write_text("about: x\nparts: {a: [{ask: Hi}]}\n")
    with pytest.raises(FormatError, match=r"secret/hours\.yaml is no suite"):
        load_suite(str(path))


def test_a_file_cant_pass_for_a_suite_that_is_shipped(tmp_path: Path) -> None:
    path = tmp_path / "forgetting"
    path.write_text("about: x\nparts: {a: [{ask: 'Hi?', answer: Hello}]}\n")
    with pytest.raises(UsageError, match="called as one that is shipped") as caught:
        load_suite(str(path))
    assert "forgetting.yaml" in caught.value.hint


def test_either_data_or_a_suite_is_named(store: Store, base: Path, data: Path) -> None:
    for given in ({}, {"data": data, "suite": "forgetting"}):
        with pytest.raises(UsageError, match="one of them"):
            evaluate(store, ["base"], base=str(base), **given)  # type: ignore[arg-type]
