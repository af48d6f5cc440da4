"""The filter's language and its fuzzy search, without a screen."""

from dataclasses import replace

import pytest

from adapterhub.store.consequences import Use
from adapterhub.tui.library.fuzzy import spans
from adapterhub.tui.library.model import Answer, Library
from adapterhub.tui.library.rows import Row, spaces
from adapterhub.tui.library.terms import Asked, parse
from adapterhub.tui.library.words import told
from adapterhub.tui.problem import Problem

ROWS = (
    Row("desk/both", "d1", kind="lora", base="org/Smol", rank=12, targets=("q_proj",), event="merged", method="ties"),
    Row("legal/terms", "d2", kind="lora", base="org/Smol", rank=8, targets=("q_proj", "up_proj"), event="trained"),
    Row("odd/stranger", problem=Problem("gone", damage=True)),
    Row("support/tone", "d4", kind="dora", base="org/Qwen3", rank=64, targets=("v_proj",), event="trained"),
    Row("support/tone:prod", "d4", kind="dora", base="org/Qwen3", rank=64, targets=("v_proj",), event="trained"),
)  # fmt: skip


def found(query: str, state: Library | None = None) -> list[str]:
    return [row.name for row in replace(state or Library(ROWS), query=query).visible]


TONES = ["support/tone", "support/tone:prod"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("rank:12", ["desk/both"]),
        ("rank:>=12", ["desk/both", *TONES]),
        ("rank:8..12 base:SMOL", ["desk/both", "legal/terms"]),
        ("kind:dora", TONES),
        ("kind:dor", []),
        ("target:q_proj target:up", ["legal/terms"]),
        ("method:ties", ["desk/both"]),
        ("method:trained terms", ["legal/terms"]),
        ("damaged", ["odd/stranger"]),
        ("tone:prod", ["support/tone:prod"]),
        ('base:"org/Qwen3" prod', ["support/tone:prod"]),
        ('"', []),
    ],
)
def test_the_command_lines_words_narrow_the_list(query: str, names: list[str]) -> None:
    assert found(query) == names


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("rank:x", "'x' is no rank."),
        ("unused:soon", "is no duration"),
        ("bas:qwen", "Did you mean base?"),
        ("eval:<22", "There is no filter eval: — those there are: base:, rank:"),
        ("rank:", "rank:8..64"),
    ],
)
def test_a_wrong_word_is_told_and_filters_nothing_by_itself(query: str, words: str) -> None:
    assert words in told(Library(ROWS, query=query, loaded=True))[0]
    if not query.startswith(("bas", "eval")):
        assert len(found(query)) == len(ROWS)


def test_marked_and_running_are_words_too() -> None:
    state = Library(ROWS, marked=frozenset({"legal/terms"}), uses={"d4": (Use("serve", ":8000"),)})
    assert found("marked", state) == ["legal/terms"]
    assert found("running", state) == TONES


def test_what_only_the_hub_knows_narrows_when_the_answer_is_there() -> None:
    asked = Asked("parent", "legal/terms")
    state = Library(ROWS, query="parent:legal/terms")
    assert len(state.visible) == len(ROWS)
    assert told(state) == ("asking the store: parent:legal/terms …", False)
    state = replace(state, answers={asked: Answer(frozenset({"d1"}))})
    assert [row.name for row in state.visible] == ["desk/both"]
    state = replace(state, answers={asked: Answer(problem=Problem("There is no x."))})
    assert told(state) == ("There is no x.", True)


def test_the_best_match_comes_first() -> None:
    rows = tuple(Row(name, "d") for name in ("t/o-n-e", "stone", "old/base", "a/tone", "tone"))
    rows = (*rows, Row("zz", "d", base="some/tone"))
    assert found("tone", Library(rows)) == ["a/tone", "tone", "stone", "zz", "t/o-n-e"]


@pytest.mark.parametrize(
    ("word", "name", "marks"),
    [
        ("tone", "stone/tone", "      ^^^^"),
        ("ton", "stone", " ^^^"),
        ("spto", "support/tone", "^ ^     ^^  "),
        ("zz", "tone", ""),
    ],
)
def test_the_matched_characters_are_known(word: str, name: str, marks: str) -> None:
    matched = {place for first, end in spans(word, name) for place in range(first, end)}
    if word == "spto":
        assert "".join(name[place] for place in sorted(matched)) == "spto"
    else:
        assert matched == {place for place, mark in enumerate(marks) if mark == "^"}


@pytest.mark.parametrize(
    "query", ["tone prod", "t r m", "rank:>=12 to", "base:smol te", "sup kind:dora", "up_proj t"]
)
def test_typing_letter_by_letter_finds_what_the_whole_filter_finds(query: str) -> None:
    state = Library(ROWS)
    for end in range(len(query) + 1):
        state = replace(state, query=query[:end])
        assert state.visible == Library(ROWS, query=query[:end]).visible, query[:end]
    for end in range(len(query), -1, -1):
        state = replace(state, query=query[:end])
        assert state.visible == Library(ROWS, query=query[:end]).visible, query[:end]


def test_parsing_never_raises() -> None:
    for query in (
        ":",
        "::",
        "rank:>=",
        "fits:",
        "unused:1x",
        "base:",
        '"a',
        "rank:99999999999999999999",
        "\x1b",
        " ",
    ):
        parse(query)
        found(query)


def test_marks_are_of_what_is_listed() -> None:
    state = Library(ROWS, query="tone", marked=frozenset({"desk/both"}))
    assert state.marking_all().marked == {"desk/both", *TONES}
    assert state.marking_all().marking_all().marked == {"desk/both"}
    assert state.marking(TONES[0]).inverted().marked == {"desk/both", TONES[1]}


def test_sorting_keeps_what_has_no_value_at_the_end() -> None:
    state = Library(ROWS, sort="rank").ordered()
    assert [row.rank for row in state.rows] == [8, 12, 64, 64, None]
    assert [row.rank for row in replace(state, reverse=True).ordered().rows] == [
        64,
        64,
        12,
        8,
        None,
    ]


def test_namespaces_are_counted_and_names_with_several_tags_stand_in_them() -> None:
    rows = (*ROWS, Row("alone", "d"))
    told_of = [
        (space.path, space.count, [part.path for part in space.parts]) for space in spaces(rows)
    ]
    assert told_of == [
        ("/", 1, []),
        ("desk", 1, []),
        ("legal", 1, []),
        ("odd", 1, []),
        ("support", 2, ["support/tone"]),
    ]
    assert [row.name for row in Library(rows, space="/").visible] == ["alone"]
    assert [row.name for row in Library(rows, space="support/tone").visible] == TONES
