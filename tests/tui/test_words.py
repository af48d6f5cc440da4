"""The words and layouts without a screen: what is said of a record, and how it is fitted into a width."""

from typing import Any

import pytest

from adapterhub.manifest import AttestationType, make_attestation
from adapterhub.tui.facts import MOST_LINES, Fact, Section, said
from adapterhub.tui.library import attested
from adapterhub.tui.library.about import folded, sparkline
from adapterhub.tui.library.model import Library, Listing
from adapterhub.tui.library.rows import Row
from adapterhub.tui.widgets.adapter_columns import COLUMNS, age, fit, natural_widths, shorten_repo
from adapterhub.tui.widgets.detail_pane import lay_out

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32


def told(
    kind: AttestationType, body: dict[str, Any], names: dict[str, str] | None = None
) -> dict[str, str]:
    """The facts of one attestation by label."""
    [section] = attested.sections(
        [make_attestation(DIGEST, kind, body, "2026-01-01T12:00:00+00:00")], names or {}
    )
    return {"title": section.title, **{fact.label: fact.text for fact in section.facts}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (True, "yes"),
        (0.123456, "0.1235"),
        ([1, 2.0, "x"], "1, 2, x"),
        ({"density": 0.2, "lambda": 1.0}, "density 0.2, lambda 1"),
        (DIGEST, "tone (@abababababab)"),
        (OTHER, "@cdcdcdcdcdcd"),
    ],
)
def test_values_are_said_in_words(value: object, words: str) -> None:
    assert said(value, {DIGEST: "tone"}) == words


def test_a_parent_that_lost_its_name_is_told_by_digest_and_the_name_it_had() -> None:
    body = {
        "event": "merged",
        "parents": [{"digest": DIGEST, "name": "old"}, {"digest": OTHER, "name": "b"}],
    }
    facts = told("provenance", body, {OTHER: "now/b"})
    assert facts["parents"] == "@abababababab (was old)"
    assert facts["title"] == "Merged 2026-01-01 12:00 UTC"


def test_an_attestation_of_an_unknown_version_is_told_field_by_field() -> None:
    body = {
        "event": "merged",
        "recipe": "no table",
        "parents": 3,
        "report": [1],
        "future": {"deep": {"x": 1}},
    }
    facts = told("provenance", body)
    assert facts["recipe"] == "no table"
    assert facts["parents"] == "3"
    assert facts["report"] == "1"
    assert facts["  deep"] == "x 1"


@pytest.mark.parametrize("event", [["trained"], {"merged": 1}, 7, None, "eval"])
def test_an_event_of_any_shape_is_no_error(event: object) -> None:
    assert told("provenance", {"event": event, "steps": 3})["steps"] == "3"


def test_a_template_is_one_whatever_event_brought_it() -> None:
    assert told("template", {"event": "trained", "digest": OTHER})["title"].startswith(
        "Chat template"
    )


def test_an_answer_keeps_its_lines_and_nothing_else_of_control() -> None:
    answer = told("eval", {"said": {"answer": "one\ntwo\x1b[2J", "prompt": "?"}})["answer"]
    lines = [str(line).strip() for line in lay_out((Section("", (Fact("a", answer),)),), 40)]
    assert lines == ["a            one", "two\\x1b[2J"]


def test_long_lists_end_with_how_many_there_are_more() -> None:
    facts = told("note", {"runs": [{"n": n} for n in range(100)]})
    assert facts["…"] == f"and {100 - MOST_LINES} more: adapterhub show"


def test_an_import_without_anything_to_say_still_says_what_it_was() -> None:
    assert told("provenance", {"event": "imported", "notes": []})["title"].startswith("Imported")


@pytest.mark.parametrize("width", [8, 20, 48, 76, 200])
def test_no_line_is_wider_than_the_pane(width: int) -> None:
    facts = (
        Fact("label", "word " * 30),
        Fact("a label that is too long", "x" * 300),
        Fact("", "漢字" * 60, "warning"),
    )
    lines = list(
        lay_out((Section("A title of some length", facts), Section("", (Fact("", "end"),))), width)
    )
    assert max(line.cell_length for line in lines) <= max(width, 18 + 8)
    assert "".join(str(line) for line in lines).replace(" ", "").count("x") == 300, "nothing is cut"


@pytest.mark.parametrize("width", range(1, 200, 7))
def test_the_columns_fit_and_the_name_always_stays(width: int) -> None:
    row = Row(
        "support/a-rather-long-name:v2",
        DIGEST,
        "2026-01-01T00:00:00+00:00",
        base="org/" + "m" * 60,
        rank=8,
        targets=("q",) * 9,
        size=10,
        metric="perplexity",
        score=7.5,
    )
    widths = fit(width, natural_widths([row], {}, 0))
    assert COLUMNS[0] in widths
    if len(widths) > 1:
        assert sum(cells + 2 for cells in widths.values()) - 2 <= width


def test_a_column_in_which_nothing_stands_takes_no_room() -> None:
    plain = natural_widths([Row("a", DIGEST)], {}, 0)
    tagged = natural_widths([Row("a", DIGEST), Row("a:v2", DIGEST)], {}, 0)
    assert not {"tag", "eval", "served"} & {column.key for column in fit(200, plain)}
    assert "tag" in {column.key for column in fit(200, tagged)}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(5, "now"), (60, "1m"), (7200, "2h"), (86400, "1d"), (8e5, "1w"), (4e7, "1y")],
)
def test_an_age_is_told_in_the_largest_unit_that_fits(seconds: float, words: str) -> None:
    assert age("1970-01-01T00:00:00+00:00", seconds) == words


def test_a_long_base_keeps_the_name_of_the_model() -> None:
    assert shorten_repo("meta-llama/Llama-3.1-8B", 30) == "meta-llama/Llama-3.1-8B"
    assert shorten_repo("meta-llama/Llama-3.1-8B", 14) == "Llama-3.1-8B"


def test_a_sparkline_has_a_column_a_value_and_the_highest_is_full() -> None:
    assert sparkline([0.0, 1.0, 4.0, 8.0], 32) == "▁▁▄█"
    assert sparkline([0.0, 0.0], 32) == "▁▁", "nothing is changed"
    assert sparkline([float("nan"), 1.0], 32) == "▁▁", "nothing can be said"
    assert len(sparkline(range(1, 127), 32)) == 32


def listing(*rows: Row) -> Listing:
    return Listing(rows, {}, {})


def test_when_the_selected_name_is_gone_its_successor_is_selected() -> None:
    rows = tuple(Row(name, DIGEST, "") for name in "abc")
    state = Library(rows, selected="b", loaded=True)
    assert state.read(listing(*rows[:1], *rows[2:])).current == rows[2]
    assert state.read(listing(*rows[:1])).current == rows[0]
    assert state.read(listing()).current is None


def test_a_hidden_selection_comes_back_with_its_row() -> None:
    rows = tuple(Row(name, DIGEST, "") for name in ("tone", "terms"))
    state = Library(rows, query="tone", selected="terms", loaded=True)
    assert state.current == rows[0]
    assert Library(rows, selected="terms").current == rows[1]


def test_an_evaluation_is_told_beside_the_base_and_part_by_part() -> None:
    versus = {"difference": -0.145, "low": -0.16, "high": -0.13, "level": 0.95, "verdict": "better"}
    share = {
        "value": 0.5,
        "versus_base": {"difference": 0.1, "low": 0.02, "high": 0.2, "verdict": "better"},
    }
    part = {"rows": 6, "perplexity": 77.0, "versus_base": versus, "measures": {"passed": share}}
    result = {
        "perplexity": 6.1, "base_perplexity": 7.0, "versus_base": versus,
        "measures": {"passed": share}, "parts": {"arithmetic": part},
        "versus": {"sha256:" + "a" * 64: {"loss": versus, "measures": {}}},
    }  # fmt: skip
    facts = told("eval", {"suite": "forgetting", "result": result})
    assert facts["perplexity"] == "6.1 (base 7)"
    assert facts["against base"] == "better, -13.5% (-14.8 to -12.2)"
    assert facts["suite"] == "forgetting"
    assert facts["passed"] == "0.5 (better, +0.1 (+0.02 to +0.2))"
    assert facts["· arithmetic"].startswith("perplexity 77 (better, -13.5%")
    assert facts["beside"] == "@aaaaaaaaaaaa: better, -13.5% (-14.8 to -12.2)"


@pytest.mark.parametrize(
    "versus", [{"difference": "x"}, {"difference": 1e9, "low": 1, "high": 1e9}, 3, None, [1]]
)
def test_a_foreign_evaluation_of_any_shape_is_told_without_a_fault(versus: object) -> None:
    body = {
        "result": {
            "versus_base": versus,
            "measures": {"a": versus},
            "parts": {"p": {"versus_base": versus}},
        }
    }
    assert told("eval", body) is not None


def test_what_is_set_for_every_module_is_told_as_how_many_have_which() -> None:
    pattern = {f"layers.{n}.q_proj": 8 if n < 9 else 24 for n in range(21)}
    assert folded(pattern) == "12 modules at 24, 9 at 8"
    assert folded({"q_proj": 8}) == "q_proj 8"


def test_a_trainings_settings_are_cut_to_a_few_lines() -> None:
    recipe = {f"setting_{n}": n for n in range(30)}
    facts = told("provenance", {"event": "trained", "recipe": recipe})
    assert len(facts["settings"]) < 200
    assert facts["settings"].endswith("more: adapterhub show")
