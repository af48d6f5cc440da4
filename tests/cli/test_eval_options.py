"""No option of `eval` is passed over: where one changes nothing, it is refused before anything is loaded, with what to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from adapterhub.errors import ExitCode
from tests.cli.calling import call

ROOT = Path(__file__).parents[2]
SUITE = ("base", "--suite", "forgetting")
DATA = ("one", "--data", "tickets.json")
BOTH = ("one", "two", "--interactions", "both")
TASKS = ("base", "--harness", "late")
ASKED = re.compile(r"^(?:\$ )?adapterhub eval (.*)$", re.MULTILINE)
EXAMPLE = ROOT / "examples" / "harbor-support" / "README.md"
PAGES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", EXAMPLE)


def lines(page: Path) -> list[list[str]]:
    return [shlex.split(line) for line in ASKED.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("words", "option", "hint"),
    [
        ((*SUITE, "--by", "kind"), "--by", "parts"),
        ((*SUITE, "--held-out", "0.1"), "--held-out", "--max-rows"),
        ((*SUITE, "--split-seed", "0"), "--split-seed", "--max-rows"),
        ((*SUITE, "--limit", "3"), "--limit", "--max-rows"),
        ((*SUITE, "--format", "alpaca"), "--format", "--max-rows"),
        ((*SUITE, "--split", "held_out"), "--split", "--max-rows"),
        ((*SUITE, "--pair", "--split", "all"), "--split", "--max-rows"),
        ((*BOTH, "--suite", "forgetting"), "--suite", "--data"),
        ((*BOTH, "--suite", "forgetting", "--data", "a", "--data", "b"), "--suite", "--data"),
        ((*BOTH, "--data", "a", "--data", "b", "--prompt", "Hi?"), "--prompt", "--interactions"),
        ((*TASKS, "--judge-model", "m"), "--judge-model", "by itself"),
        ((*TASKS, "--rubric", "rubric.md"), "--rubric", "by itself"),
        ((*TASKS, "--judge-against", "base"), "--judge-against", "by itself"),
        ((*TASKS, "--max-new-tokens", "256"), "--max-new-tokens", "by itself"),
        ((*TASKS, "--split", "held_out"), "--split", "by itself"),
        ((*DATA, "--max-new-tokens", "256"), "--max-new-tokens", "--measure"),
        ((*DATA, "--pair", "--max-new-tokens", "8"), "--max-new-tokens", "--measure"),
        ((*BOTH, "--data", "a", "--max-new-tokens", "8"), "--max-new-tokens", "--measure"),
    ],
)
def test_an_option_that_changes_nothing_is_refused_even_with_its_usual_value(
    words: tuple[str, ...], option: str, hint: str
) -> None:
    said = call("eval", *words, "--json")
    assert said.code == ExitCode.USAGE, said.err
    assert said.error["what"].startswith(f"{option}: ")
    assert said.error["why"]
    assert hint in said.error["why"] + said.error["hint"]


def test_all_that_change_nothing_are_named_at_once() -> None:
    said = call("eval", *SUITE, "--limit", "3", "--by", "kind", "--json")
    assert said.error["what"] == "--by, --limit: not with --suite."
    said = call("eval", *TASKS, "--rubric", "r.md", "--judge-model", "m", "--json")
    assert said.error["what"] == "--rubric, --judge-model: not with --harness."


def test_a_suite_beside_data_is_one_question_too_many_whatever_else_is_said(tmp_path: Path) -> None:
    said = call("eval", *SUITE, "--data", tmp_path, "--by", "kind", "--json")
    assert said.code == ExitCode.USAGE
    assert "one of them" in said.error["what"]


@pytest.mark.parametrize(
    "more",
    [
        ("--split", "all", "--held-out", "0"),
        ("--by", "kind", "--limit", "3", "--format", "alpaca", "--split-seed", "1"),
        ("--max-new-tokens", "8", "--measure", "exact"),
        ("--max-new-tokens", "8", "--prompt", "Hi?"),
    ],
)
def test_beside_data_they_are_taken(more: tuple[str, ...]) -> None:
    said = call("eval", *DATA, *more, "--json")
    assert said.code == ExitCode.NOT_FOUND, said.err
    assert "one" in said.error["what"], "it came as far as looking for the adapter"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where none of the documents' adapters and files are, but for a schema: a measure is read first."""
    (tmp_path / "ticket.schema.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_no_line_of_the_documents_is_refused_for_its_options() -> None:
    found = [words for page in PAGES for words in lines(page)]
    assert len(found) > 20
    for words in found:
        said = call("eval", *words)
        assert said.code in (ExitCode.NOT_FOUND, ExitCode.FAILED), (words, said.err)


@pytest.mark.usefixtures("elsewhere")
def test_nor_is_one_of_the_example_in_rehearsal() -> None:
    assert len(lines(EXAMPLE)) > 5
    for words in lines(EXAMPLE):
        said = call("eval", *words, "--max-new-tokens", "8")
        assert said.code != ExitCode.USAGE, (words, said.err)
