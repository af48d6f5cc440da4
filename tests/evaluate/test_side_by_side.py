"""Evaluations side by side: what may be compared stands in one table, and nothing else does."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapterhub.evaluate import evaluate
from adapterhub.evaluate.gaps import command, missing
from adapterhub.evaluate.measures import parse_measure
from adapterhub.evaluate.side_by_side import (
    MOST_COLUMNS,
    Column,
    Known,
    Table,
    side_by_side,
)
from adapterhub.evaluate.table import EvalRow
from adapterhub.evaluated import PERPLEXITY
from adapterhub.manifest import Attestation
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.chat import chat_base
from tests.support.evaluations import WHOLE

Add = Callable[..., str]
PPL = Column(PERPLEXITY)
DIGEST = "sha256:" + "a" * 64
BASE = "sha256:" + "b" * 64
OF_ONE, OF_TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def body(perplexity: Any = 10.0, *, suite: str | None = None, **given: Any) -> dict[str, Any]:
    """An evaluation as it is attested; `given` replaces what it holds."""
    told = {
        "metric": "perplexity",
        "data": {"digest": DIGEST, "rows_digest": DIGEST, "dropped": 0, "truncated": 0},
        "settings": dict(WHOLE),
        "base": {"repo": "org/base", "fingerprint": BASE},
        "template": "sha256:" + "7" * 64,
        "versions": {"torch": "2.13.0"},
        "result": {"perplexity": perplexity, "loss": 2.0, "rows": 5, "tokens": 50},
    }
    return {**told, **({"suite": suite} if suite else {}), **given}


def known(name: str, *bodies: Mapping[str, Any], fingerprint: str | None = BASE) -> Known:
    """An adapter with these evaluations, the oldest first."""
    digest = {"one": OF_ONE, "two": OF_TWO}.get(name, DIGEST)
    told = [
        Attestation(digest, "eval", f"2026-01-{day + 1:02}T12:00:00+00:00", one, {"body": one})
        for day, one in enumerate(bodies)
    ]
    return Known(name, digest, fingerprint, told)


def measured(value: float, difference: float, verdict: str) -> dict[str, Any]:
    low, high = difference - 0.1, difference + 0.1
    told = {"difference": difference, "low": low, "high": high, "level": 0.95, "verdict": verdict}
    return {"value": value, "versus_base": told}


def of_store(store: Store, *names: str) -> tuple[Table, ...]:
    found = []
    for name in names:
        digest = store.resolve(name).digest
        found.append(
            Known(name, digest, store.known_fingerprint(digest), store.attestations(digest))
        )
    return side_by_side(found, {})


# Of real evaluations


def test_the_table_is_the_one_that_eval_tells_with_the_base_as_it_was(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    add("one", seed=1)
    add("two", seed=2)
    measures = [parse_measure("length"), parse_measure("contains=colour")]
    rows = evaluate(
        store, ["base", "one", "two"], base=str(base), data=data, split="all", max_rows=6,
        measures=measures, max_new_tokens=4,
    )  # fmt: skip
    (table,) = of_store(store, "one", "two")
    assert [line.name for line in table.lines] == ["one", "two"]
    assert [column.measure for column in table.columns] == [PERPLEXITY, "length", "contains=colour"]
    (plain,) = table.base
    for row, line in zip(rows, (plain, *table.lines), strict=True):
        _is_told(row, line.cells)
    assert table.count == 6
    assert (table.absent, table.remark) == ((), "")


def _is_told(row: EvalRow, cells: Mapping[Column, Any]) -> None:
    by_measure = {column.measure: cell for column, cell in cells.items()}
    assert row.perplexity is not None
    assert by_measure[PERPLEXITY].value == pytest.approx(row.perplexity, rel=1e-9)
    for name, one in row.measures.items():
        assert by_measure[name].value == pytest.approx(one.value, abs=1e-12)
        against = by_measure[name].against
        if one.versus_base is not None:
            assert (against.low, against.high) == (one.versus_base.low, one.versus_base.high)
            assert against.verdict == one.versus_base.verdict


def test_parts_tell_what_the_base_was_on_each(
    store: Store, add: Add, base: Path, tmp_path: Path
) -> None:
    add("one", seed=1)
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "about: two parts\nparts:\n"
        "  easy: [{ask: 'Red?', answer: 'Yes.'}, {ask: 'Blue?', answer: 'No.'}]\n"
        "  prose: ['The sky is blue.', 'Grass is green.']\n"
    )
    rows = evaluate(store, ["base", "one"], base=str(base), suite=str(suite), max_new_tokens=4)
    (table,) = of_store(store, "one")
    (plain,) = table.base
    for part, numbers in rows[0].parts.items():
        assert numbers.perplexity is not None
        told = plain.cells[Column(PERPLEXITY, part)].value
        assert told == pytest.approx(numbers.perplexity, rel=1e-9)
    parts = [column.part for column in table.columns]
    assert parts == sorted(parts, key=lambda part: (part is not None, part)), "all rows come first"
    assert table.condition.suite == suite.name


def test_the_line_for_the_gaps_fills_them(store: Store, add: Add, base: Path, data: Path) -> None:
    """What is copied is typed, and then nothing is missing."""
    add("one", seed=1)
    add("two", seed=2)
    given: dict[str, Any] = {"max_rows": 5, "split_seed": 3, "held_out": 0.25, "max_length": 512}
    measures = [parse_measure("length")]
    evaluate(store, ["base", "one"], base=str(base), data=data, measures=measures, max_new_tokens=3, **given)  # fmt: skip
    (table,) = of_store(store, "one", "two")
    assert missing(table) == ("two",)
    assert [one.why for one in table.absent] == ["never evaluated on that"]
    words = shlex.split(command(table))
    assert words[:4] == ["adapterhub", "eval", "base", "two"]
    words[words.index("FILE")] = str(data)
    done = call(*words[1:], "--base", str(base))
    assert done.code == 0, done.err
    (table,) = of_store(store, "one", "two")
    assert missing(table) == ()
    assert [line.name for line in table.lines] == ["one", "two"]


def test_another_base_is_another_table(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    add("one")
    add("two", seed=2)
    other = chat_base(tmp_path / "other", seed=1)
    evaluate(store, ["base", "one"], base=str(base), data=data)
    evaluate(store, ["base", "two"], base=str(other), data=data, allow_mismatch=True)
    first, second = sorted(of_store(store, "one", "two"), key=lambda table: table.lines[0].name)
    assert [one.why for one in first.absent] == ["evaluated on another base"]
    assert first.lines[0].remark == ""
    assert second.lines[0].remark == "evaluated on another base than the adapter's"


# What belongs together


def test_the_newest_evaluation_of_each_counts_number_by_number() -> None:
    settings = {**WHOLE, "measures": ["exact"], "max_new_tokens": 16}
    result = {"perplexity": 9.0, "measures": {"exact": measured(0.5, 0.1, "same")}}
    first, last = body(settings=settings, result=result), body(7.0)
    (table,) = side_by_side([known("one", first, last), known("two", body(8.0))], {})
    one, two = table.lines
    assert one.cells[PPL].value == 7.0
    exact = Column("exact", None, "exact", 16)
    assert one.cells[exact].value == 0.5, "which the newer evaluation doesn't tell"
    assert exact not in two.cells
    assert missing(table) == ("one", "two"), "nobody stands beside the base with everything"


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (body(settings={**WHOLE, "max_rows": 4}), "other settings: max_rows 4 for none"),
        (body(settings={**WHOLE, "server": "openai"}), "other settings: server openai for none"),
        (body(base={"fingerprint": "sha256:" + "c" * 64}), "another base"),
        (body(data={"digest": DIGEST, "rows_digest": "sha256:1"}), "other rows"),
        (body(data={"digest": DIGEST, "rows_digest": DIGEST, "dropped": 2}), "other rows"),
        (body(template="sha256:0"), "another chat template"),
        (body(data={"digest": "sha256:0"}), "never evaluated on that"),
    ],
)
def test_what_was_found_otherwise_is_told_and_not_mixed_in(other: dict[str, Any], why: str) -> None:
    tables = side_by_side([known("one", body()), known("two", other)], {})
    assert sorted(line.name for table in tables for line in table.lines) == ["one", "two"]
    assert len(tables) == 2
    (mine,) = (table for table in tables if table.lines[0].name == "one")
    assert why in mine.absent[0].why


def test_another_version_of_a_suite_comes_last_and_says_so() -> None:
    new = {"digest": "sha256:new", "rows_digest": "sha256:new"}
    one = known("one", body(5.0, suite="s"), body(6.0, suite="s", data=new))
    two = known("two", body(5.5, suite="s"))
    today, before = side_by_side([one, two], {"s": "sha256:new"})
    assert (today.remark, len(today.lines)) == ("", 1), "though the other is fuller"
    assert today.absent[0].why == "evaluated on another version of the suite"
    assert before.remark == "another version of the suite than today's"
    assert all(not table.remark for table in side_by_side([one, two], {}))


def test_other_versions_of_libraries_are_no_other_table() -> None:
    tables = side_by_side(
        [known("one", body()), known("two", body(versions={"torch": "9"}, said={"prompt": "x"}))], {}
    )  # fmt: skip
    assert len(tables) == 1


def test_measures_of_one_name_that_were_others_stand_apart() -> None:
    def schema(digest: str, length: int) -> dict[str, Any]:
        settings = {**WHOLE, "measures": [f"schema={digest}"], "max_new_tokens": length}
        told = {"perplexity": 9.0, "measures": {"schema=ticket.json": measured(0.5, 0.1, "same")}}
        return body(settings=settings, result=told)

    same = [known("one", schema("sha256:1", 8)), known("two", schema("sha256:1", 8))]
    assert len(side_by_side(same, {})[0].columns) == 2
    for other in (schema("sha256:2", 8), schema("sha256:1", 9)):
        (table,) = side_by_side([known("one", schema("sha256:1", 8)), known("two", other)], {})
        assert len(table.columns) == 3


def test_the_base_that_was_told_something_first_has_a_line() -> None:
    told = {"prompted": {"perplexity": 6.0, "measures": {"exact": 0.25}}}
    settings = {**WHOLE, "measures": ["exact"], "max_new_tokens": 8, "system": "sha256:5"}
    result = {"perplexity": 5.0, "base_perplexity": 7.0, "baselines": told,
              "measures": {"exact": measured(0.5, 0.1, "same")}}  # fmt: skip
    tables = side_by_side(
        [known("one", body(settings=settings, result=result)), known("two", body(6.5))], {}
    )
    (table,) = tables
    plain, prompted = table.base
    assert (plain.name, prompted.name) == ("base", "base + system prompt")
    assert plain.cells[PPL].value == 7.0
    exact = Column("exact", None, "exact", 8)
    assert prompted.cells[PPL].value == 6.0
    assert prompted.cells[exact].value == 0.25
    assert plain.cells[exact].value == pytest.approx(0.4)


def test_lines_are_ordered_by_a_column_and_who_has_no_number_is_last() -> None:
    def exact(perplexity: float, value: float) -> dict[str, Any]:
        settings = {**WHOLE, "measures": ["exact"], "max_new_tokens": 8}
        told = {"perplexity": perplexity, "measures": {"exact": measured(value, 0.0, "same")}}
        return body(settings=settings, result=told)

    adapters = [known("a", exact(3, 0.1)), known("b", body(1.0)), known("c", exact(2, 0.9))]
    (table,) = side_by_side(adapters, {})
    column = Column("exact", None, "exact", 8)

    def names(by: Column, *, reverse: bool) -> str:
        return "".join(line.name for line in table.ordered(by, reverse=reverse))

    assert names(PPL, reverse=False) == "bca"
    assert names(PPL, reverse=True) == "acb"
    assert names(column, reverse=False) == "cab"
    assert names(column, reverse=True) == "acb"


def test_the_file_is_known_where_one_was_trained_on_it() -> None:
    one = known("one", body())
    trained = {"event": "trained", "data": {"digest": DIGEST}, "recipe": {"data": {"path": "my data.json"}}}  # fmt: skip
    item = Attestation(OF_ONE, "provenance", "2025", trained, {})
    (table,) = side_by_side([Known("one", OF_ONE, BASE, [item, *one.attestations])], {})
    assert table.path == "my data.json"
    assert "--data 'my data.json'" in command(table)


# What anybody may have written


NO_NUMBERS: list[Any] = [None, True, "7", [], {}, math.nan, math.inf, -math.inf, 10**400]


@pytest.mark.parametrize("key", ["data", "settings", "base", "suite", "result", "template", "harness"])  # fmt: skip
@pytest.mark.parametrize("value", [*NO_NUMBERS, {"digest": 3}, {"measures": {"x": 1}}, "sha256:"])
def test_nothing_that_an_attestation_holds_ends_it(key: str, value: Any) -> None:
    odd = body(**{key: value})
    for table in side_by_side([known("one", odd), known("two", body())], {}):
        assert all(
            math.isfinite(cell.value)
            for line in (*table.base, *table.lines)
            for cell in line.cells.values()
        )
        assert command(table).startswith("adapterhub eval base")
        told = [one.name for one in table.lines] + [one.name for one in table.absent]
        assert sorted(told) == ["one", "two"]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_not_told(value: Any) -> None:
    broken = {"difference": value, "low": 0.0, "high": 1.0, "verdict": "better"}
    result = {
        "perplexity": 5.0,
        "versus_base": broken,
        "measures": {"exact": {"value": value}, "json": measured(0.5, 0.1, "excellent")},
        "parts": {"x": {"perplexity": value}, "y": value},
        "baselines": {"prompted": {"perplexity": value, "measures": {"json": value}}},
    }
    (table,) = side_by_side([known("one", body(result=result))], {})
    (line,) = table.lines
    told = {(column.measure, column.part): cell for column, cell in line.cells.items()}
    assert set(told) == {(PERPLEXITY, None), ("json", None)}
    assert told[PERPLEXITY, None].against is None
    against = told["json", None].against
    assert against is not None
    assert against.verdict is None, "a word that none of ours is"
    assert [one.name for one in table.base] == ["base"]


def test_bodies_that_are_no_evaluation_are_left_out() -> None:
    others: list[dict[str, Any]] = [{"event": "exported", "result": {"bake_loss": {}}}, {"event": "pair"}, {}, {"result": {"perplexity": 3.0}}]  # fmt: skip
    assert side_by_side([known("one", *others)], {}) == ()


def test_as_many_columns_as_anybody_wants_are_cut_and_counted() -> None:
    parts = {f"part {at}": {"perplexity": 1.0 + at} for at in range(500)}
    (table,) = side_by_side([known("one", body(result={"perplexity": 2.0, "parts": parts}))], {})
    assert len(table.columns) == MOST_COLUMNS
    assert table.left_out == 501 - MOST_COLUMNS


def test_no_line_is_offered_for_what_nobody_can_type() -> None:
    (table,) = side_by_side([known("one", body(suite="a\nrm -rf ~"))], {})
    assert command(table) == ""
    (table,) = side_by_side([known("one", body(suite="$(rm -rf ~)"))], {})
    assert shlex.split(command(table))[-1] == "$(rm -rf ~)", "one word, and quoted"


def test_the_line_says_only_what_the_command_takes() -> None:
    settings = {**WHOLE, "split": "held_out", "held_out": 0.2, "max_length": 2048, "max_rows": 9}
    numbers = {"perplexity": 3.0, "measures": {"judge=reference": measured(0.5, 0.1, "same")}}

    def line(**given: Any) -> str:
        told = body(settings={**settings, "max_new_tokens": 7, **given.pop("more", {})}, result=numbers, **given)  # fmt: skip
        (table,) = side_by_side([known("one", told)], {})
        return command(table).removeprefix("adapterhub eval base one ")

    assert line() == "--data FILE --held-out 0.2 --max-rows 9 --max-length 2048", (
        "no judge, no answers"
    )
    suite = "--suite forgetting --max-rows 9 --max-length 2048 --max-new-tokens 7"
    assert line(suite="forgetting") == suite
    assert line(harness="arc_easy") == "--harness arc_easy --max-rows 9"
    assert "--server URL" in line(more={"server": "openai"})


def test_the_same_is_told_in_whatever_order_a_document_has_its_keys() -> None:
    turned = json.loads(json.dumps(body(), sort_keys=True))
    turned["settings"] = dict(reversed(list(turned["settings"].items())))
    assert len(side_by_side([known("one", body()), known("two", turned)], {})) == 1
