"""An evaluation is an attestation, and is told as one: by `show`, `ls` and the card of an exported model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub.repocard import metadata_load

from adapterhub.evaluate import EvalRow, evaluate
from adapterhub.evaluate.measures import parse_measure
from adapterhub.evaluated import evaluation_in, evaluation_of
from adapterhub.export.card import model_card
from adapterhub.manifest import make_attestation
from adapterhub.perplexity import growth
from adapterhub.tui.library import attested
from tests.cli.calling import call
from tests.support.adapters import AdapterMaker
from tests.support.evaluated import perplexity_of

if TYPE_CHECKING:
    from adapterhub.store import Store

Add = Callable[..., str]

FINGERPRINT = "sha256:" + "f" * 64
EVIL = "\x1b[31mred[/]|`<b>[x](http://e)\u202e\n# more"


def body(
    perplexity: float | None = 6.0,
    *,
    rows: str = "a",
    suite: str | None = None,
    **measures: float,
) -> dict[str, Any]:
    """As `eval` attests it, with chosen numbers on the rows with the digest `rows`."""
    versus = {"difference": -0.145, "low": -0.16, "high": -0.13, "level": 0.95, "verdict": "better"}
    share = {"difference": 0.1, "low": 0.02, "high": 0.2, "level": 0.95, "verdict": "better"}
    return {
        "metric": "perplexity",
        **({"suite": suite} if suite else {}),
        "data": {"digest": "sha256:" + "d" * 64, "rows_digest": "sha256:" + rows * 64},
        "settings": {"split": "held_out", "held_out": 0.1, "dtype": "float32"},
        "base": {"fingerprint": FINGERPRINT},
        "versions": {"torch": "2.13.0"},
        "result": {
            "perplexity": perplexity,
            "base_perplexity": 7.0,
            "rows": 42,
            "versus_base": versus,
            "measures": {
                name: {"value": value, "versus_base": share} for name, value in measures.items()
            },
        },
    }


@pytest.fixture
def three(store: Store, make_adapter: AdapterMaker) -> dict[str, str]:
    """a and b evaluated, c not; by name their digests."""
    digests = {
        name: store.add_folder(make_adapter(name, seed=place), name=name).digest
        for place, name in enumerate("abc")
    }
    store.attest(digests["a"], "eval", body(6.0, json=0.5))
    store.attest(digests["b"], "eval", body(5.0, json=0.9))
    store.attest(digests["a"], "eval", body(3.0, suite="forgetting", passed=0.25))
    return digests


def names(*words: str) -> list[str]:
    """The names that `ls` prints, in their order."""
    said = call("ls", "-q", *words)
    assert said.code == 0, said.err
    return said.out.split()


@pytest.mark.slow
def test_what_was_evaluated_is_shown_listed_and_put_on_the_card(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    digest = add("one")
    rows = evaluate(
        store,
        ["base", "one"],
        base=str(base),
        data=data,
        split="all",
        measures=[parse_measure("length")],
        max_new_tokens=4,
    )
    before, after = rows
    versus = after.versus_base
    assert versus is not None
    change = f"{100 * growth(versus.difference):+.3g}% ({100 * growth(versus.low):+.3g} to"
    told = call("show", "one").out
    assert f"30 rows of data {_data(store, digest)[7:19]}" in told
    assert f"{perplexity_of(after):.4g} (base {perplexity_of(before):.4g})" in told
    assert f"{versus.verdict}, {change}" in told
    length = after.measures["length"]
    assert f"length {length.value:.4g}" in " ".join(told.split())
    listed = call("ls", "--columns", "name,eval:perplexity,eval:length").out
    assert f"{perplexity_of(after):.4g} ({versus.verdict}, {change}" in listed
    model = tmp_path / "model"
    done = call("export", "one", "--base", base, "-o", model, "--no-verify")
    assert done.code == 0, done.err
    _holds_the_numbers(model / "README.md", before, after)


def _holds_the_numbers(card: Path, before: EvalRow, after: EvalRow) -> None:
    text = card.read_text()
    assert "## Evaluation" in text
    first, second = perplexity_of(before), perplexity_of(after)
    assert f"| `perplexity` | {first:.4g} | {second:.4g} | " in text
    length = after.measures["length"].value
    assert f"| `length` | {before.measures['length'].value:.4g} | {length:.4g} | " in text
    assert "max_length 1024" in text
    assert "transformers " in text
    (index,) = metadata_load(card)["model-index"]  # type: ignore[index]  # a card of ours has metadata
    (result,) = index["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"perplexity": after.perplexity, "length": length}


def _data(store: Store, digest: str) -> str:
    found = [evaluation_of(item) for item in store.attestations(digest)]
    (data,) = [one.data for one in found if one is not None]
    assert data is not None
    return data


def test_evaluations_are_shown_the_newest_first_with_their_parts(
    store: Store, three: Mapping[str, str]
) -> None:
    late = body(None, json=0.75)
    late["result"]["parts"] = {"de": late["result"] | {"rows": 3}, "": {"perplexity": 8.0}}
    late["result"]["baselines"] = {"prompted": {"perplexity": 6.5, "measures": {"json": 0.6}}}
    store.attest(three["b"], "eval", late)
    told = call("show", "b").out
    first, second = told.index("0.75 (better, +0.1 (+0.02 to +0.2))"), told.index("5 (base 7)")
    assert first < second < told.index("attestations")
    assert "42 held-out rows of data dddddddddddd" in told
    assert "· de" in told
    assert "· the rest" in told
    assert "perplexity 6.5, json 0.6" in told
    assert "suite forgetting" in call("show", "a").out
    whole = call("show", "b", "--json").json
    assert [item["type"] for item in whole["attestations"]].count("eval") == 2
    assert "evaluations" not in whole


def test_of_many_evaluations_the_older_ones_are_counted(
    store: Store, three: Mapping[str, str]
) -> None:
    for number in range(12):
        store.attest(three["c"], "eval", body(10.0 + number))
    told = call("show", "c").out
    assert "4 older ones: --attestations" in told
    assert "21 (base 7)" in told
    assert "13 (base 7)" not in told


@pytest.mark.parametrize(
    ("sort", "best_first"),
    [
        ("eval:perplexity", ["b", "a", "c"]),
        ("eval:json", ["b", "a", "c"]),
        ("eval:forgetting.passed", ["a", "b", "c"]),
    ],
)
def test_the_best_comes_first_and_what_was_never_evaluated_last(
    three: Mapping[str, str], sort: str, best_first: list[str]
) -> None:
    assert names("--sort", sort) == best_first
    known = 1 if "forgetting" in sort else 2
    assert names("--sort", sort, "--reverse") == [*best_first[:known][::-1], *best_first[known:]]


def test_a_column_tells_number_verdict_and_interval(three: Mapping[str, str]) -> None:
    said = call("ls", "--columns", "name,eval:perplexity,eval:json,eval:forgetting.passed")
    lines = [line.split("\t") for line in said.out.splitlines()[1:]]
    assert lines == [
        [
            "a",
            "6 (better, -13.5% (-14.8 to -12.2))",
            "0.5 (better, +0.1 (+0.02 to +0.2))",
            "0.25 (better, +0.1 (+0.02 to +0.2))",
        ],
        ["b", "5 (better, -13.5% (-14.8 to -12.2))", "0.9 (better, +0.1 (+0.02 to +0.2))", "–"],
        ["c", "–", "–", "–"],
    ]
    assert said.err == ""


def test_the_newest_number_counts_and_goes_when_its_adapter_does(
    store: Store, three: Mapping[str, str]
) -> None:
    assert names("--sort", "eval:json") == ["b", "a", "c"]
    store.attest(three["a"], "eval", body(6.0, json=0.95))
    assert names("--sort", "eval:json") == ["a", "b", "c"]
    (row,) = [row for row in call("ls", "--json").json if row["name"] == "a"]
    told = {one["key"]: one for one in row["evaluations"]}
    assert told.keys() == {"perplexity", "json", "forgetting.passed", "forgetting.perplexity"}
    assert (told["json"]["value"], told["json"]["low"], told["json"]["rows"]) == (0.95, 0.02, 42)
    assert call("rm", "a", "--yes").code == 0
    assert names("--sort", "eval:json") == ["b", "c"]


def test_numbers_of_other_rows_are_marked(store: Store, three: Mapping[str, str]) -> None:
    store.attest(three["c"], "eval", body(1.0, rows="9"))
    said = call("ls", "--columns", "name,eval:perplexity", "--sort", "eval:perplexity")
    assert said.out.splitlines()[1].startswith("c\t~ 1 (")
    assert said.out.count("~") == 1
    assert "don't compare" in said.err


def test_what_nothing_was_measured_by_is_refused(three: Mapping[str, str]) -> None:
    for words in (("--sort", "eval:jsn"), ("--columns", "name,eval:jsn")):
        said = call("ls", *words)
        assert said.code == 2
        assert "Did you mean json?" in said.err
    assert "eval:perplexity" in call("ls", "--sort", "score").err


ODD: list[Any] = [
    {"metric": 3, "result": [1]},
    {"result": {"perplexity": True, "measures": 3, "parts": [1]}},
    {"result": {"perplexity": 10**400, "rows": 10**40, "versus_base": {"low": "x"}}},
    {"result": {"perplexity": 5, "rows": -1, "measures": {"a": 1, "b": None}, "judged": 3}},
    {"event": "pair", "versus": 3, "cost": [1], "margin": "x", "other": 5, "rows": {"a": 1}},
    {"event": "pair", "versus": {"difference": 1e9, "low": 1, "high": 1e9}, "other": EVIL},
    {"suite": EVIL, "result": {"measures": {EVIL: {"value": 1}}, "parts": {EVIL: {"perplexity": 1}}}},
    {"harness": EVIL, "data": 3, "settings": {EVIL: EVIL}, "versions": {EVIL: [EVIL]},
     "base": {"fingerprint": FINGERPRINT}, "result": {"perplexity": 2.0, "baselines": {EVIL: {"perplexity": 1}}}},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_whatever_somebody_attested_is_told_without_a_fault(
    store: Store, make_adapter: AdapterMaker, odd: dict[str, Any], tmp_path: Path
) -> None:
    digest = store.add_folder(make_adapter("tone"), name="tone").digest
    store.attest(digest, "eval", odd)
    for words in (("show", "tone"), ("show", "tone", "--json"), ("ls",), ("ls", "--json")):
        said = call(*words)
        assert said.code == 0, said.err
        assert "\x1b" not in said.out
        assert "\u202e" not in said.out
    document = {"type": "eval", "created": "2026-01-01T00:00:00+00:00", "body": odd}
    card = model_card(record([document]), tmp_path)
    assert "\x1b" not in card
    assert card.count("\n# ") == 1
    (tmp_path / "card.md").write_text(card)
    found = dict(metadata_load(tmp_path / "card.md") or {})
    assert found["library_name"] == "transformers"


def test_the_screen_tells_a_pair_in_the_same_words() -> None:
    versus = {"difference": 0.002, "low": -0.001, "high": 0.005, "level": 0.95, "verdict": "same"}
    cost = {
        "qlora": {"seconds": 12.0, "peak_memory": 1e9},
        "lora": {"seconds": 10.0, "peak_memory": None},
    }
    pair = {
        "event": "pair", "as": "qlora", "other": "sha256:" + "5" * 64, "word": "equivalent",
        "margin": 0.01, "rows": 42, "versus": versus, "cost": cost,
    }  # fmt: skip
    item = make_attestation("sha256:" + "1" * 64, "eval", pair, "2026-01-01T00:00:00+00:00")
    (section,) = attested.sections([item], {})
    assert section.title.startswith("Compared 2026-01-01")
    (fact,) = section.facts
    assert fact.text == (
        "as qlora beside @555555555555: equivalent, perplexity of qlora +0.2% (-0.1 to +0.501),"
        " margin 1%, on 42 rows, qlora took 12 s and 1 GB, lora took 10 s"
    )
    trained = {"event": "trained", "steps": 3, "peak_memory": 2_000_000_000}
    (section,) = attested.sections(
        [make_attestation("sha256:" + "1" * 64, "provenance", trained, "2026-01-01")], {}
    )
    assert "3 steps, 2 GB" in [fact.text for fact in section.facts]


def record(*attestations: list[Any], **changes: Any) -> dict[str, Any]:
    """An export of as many adapters."""
    return {
        "base": {"repo": "org/base", "revision": None, "fingerprint": FINGERPRINT},
        "adapters": [
            {"name": f"n{place}", "digest": "sha256:" + str(place) * 64, "attestations": told}
            for place, told in enumerate(attestations)
        ],
        "recipe": {"method": "linear", "weights": [1.0] * len(attestations)},
        "allowed_mismatch": [],
        "engine": {"adapterhub": "0.1.0"},
        **changes,
    }


def documents(*bodies: dict[str, Any]) -> list[Any]:
    """As a record holds them."""
    return [
        {"type": "eval", "created": f"2026-01-0{at + 1}", "body": b} for at, b in enumerate(bodies)
    ]


def test_the_card_tells_the_newest_on_each_rows_beside_the_base(tmp_path: Path) -> None:
    known = documents(body(9.0), body(6.0, json=0.5), body(3.0, rows="b", suite="forgetting"))
    card = model_card(record(known), tmp_path)
    better = "better, -13.5% (-14.8 to -12.2)"
    assert f"| data `dddddddddddd` | 42 | `perplexity` | 7 | 6 | {better} |" in card
    assert "| `json` | 0.4 | 0.5 | better, +0.1 (+0.02 to +0.2) |" in card
    assert f"| suite `forgetting` | 42 | `perplexity` | 7 | 3 | {better} |" in card
    assert "| 9 |" not in card
    assert (
        f"rows `sha256:{'a' * 64}`: `split held_out, held_out 0.1, dtype float32`; `torch 2.13.0`"
        in card
    )


def test_only_what_was_found_on_this_base_counts(tmp_path: Path) -> None:
    other = body() | {"base": {"fingerprint": "sha256:" + "0" * 64}}
    card = model_card(record(documents(other)), tmp_path)
    assert "Nothing is attested of how well it does on this base." in card
    assert "model-index" not in card


@pytest.mark.parametrize(
    "changes",
    [
        {"quantize": {"method": "nf4"}},
        {"base_view": {"view": "trained", "quantization": None, "trained_on": None}},
        {"recipe": {"method": "linear", "weights": [0.5]}},
    ],
)
def test_the_hub_is_told_numbers_of_the_model_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    known = documents(body())
    assert "model-index" in model_card(record(known), tmp_path)
    card = model_card(record(known, **changes), tmp_path)
    assert "model-index" not in card
    assert "`perplexity`" in card
    merged = model_card(record(known, known), tmp_path)
    assert "model-index" not in merged
    assert "their merge, which this is, was not" in merged


def test_an_evaluation_without_a_number_is_none() -> None:
    assert evaluation_in({"perplexity": 3.25}, "") is None
    assert evaluation_in(json.loads('{"result": {"perplexity": null}}'), "") is None
