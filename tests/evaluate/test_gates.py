"""A gate opens for evidence about these very weights, and for nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import dataset_digest, read_rows
from adapterhub.errors import ExitCode, GateError, UsageError
from adapterhub.evaluate import evaluate
from adapterhub.evaluate.measures import parse_measure
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.chat import chat_base
from tests.support.evaluated import perplexity_of
from tests.support.models import peft_adapter

if TYPE_CHECKING:
    from adapterhub.evaluate import EvalRow

Add = Callable[..., str]
PROD = parse_name("one:prod")


def configure(store: Store, text: str) -> Store:
    """A store with these gates; a demand for tag prod of every name."""
    store.layout.settings.write_text(f"[[gates]]\n{text}")
    return Store.open(store.home)


def known(digest: str, **numbers: Any) -> dict[str, Any]:
    """The body of an evaluation."""
    settings = {"split": "all", "max_rows": None, "limit": None, "max_length": 1024}
    return {"data": {"digest": digest, "dropped": 0}, "settings": settings, "result": numbers}


@pytest.fixture
def one(store: Store, add: Add) -> str:
    return add("one")


@pytest.fixture
def trained(store: Store, base: Path, tmp_path: Path) -> str:
    """An adapter that changes nothing, which is no worse than the base."""
    folder = peft_adapter(base, tmp_path / "nothing", strength=0.0, r=4)
    return store.add_folder(folder, name="nothing", base=str(base)).digest


def table(store: Store, base: Path, data: Path, *names: str, **given: Any) -> list[EvalRow]:
    return evaluate(store, ["base", *names], base=str(base), data=data, split="all", **given)


def test_without_gates_every_name_is_free(store: Store, one: str) -> None:
    assert store.tag(store.resolve("one"), PROD)


def test_the_gate_opens_once_the_evidence_is_there(
    store: Store, trained: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    store = configure(store, f'[[gates.demands]]\ndata = "{digest[:20]}"\nverdict = "not worse"\n')
    prod = parse_name("nothing:prod")
    with pytest.raises(GateError, match="asks for more") as caught:
        store.tag(store.resolve("nothing"), prod)
    assert "never evaluated on that" in caught.value.why
    assert store.refs.read(prod) is None
    table(store, base, data, "nothing", max_rows=3)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("nothing"), prod)
    assert "only some of the rows" in caught.value.why
    table(store, base, data, "nothing")
    assert store.tag(store.resolve("nothing"), prod)
    assert not store.tag(store.resolve("nothing"), prod), "it has that name already"


def test_what_is_worse_than_the_base_stays_out_and_is_told_by_how_much(
    store: Store, one: str, base: Path, data: Path
) -> None:
    row = table(store, base, data, "one")[1]
    assert row.versus_base is not None
    digest = dataset_digest(read_rows(data))
    demand = f'[[gates.demands]]\ndata = "{digest}"\nat_most_worse = -0.9\n'
    store = configure(store, demand)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert f"perplexity {row.perplexity:.4g}" in caught.value.why
    assert "that isn't enough" in caught.value.hint
    assert "adapterhub eval" not in caught.value.hint, "it is known already"
    grown = perplexity_of(row) / perplexity_of(table(store, base, data)[0]) - 1
    assert f"{grown:+.1%}" in caught.value.why
    store = configure(store, demand.replace("-0.9", "1000"))
    assert store.tag(store.resolve("one"), PROD)


def test_evidence_about_another_base_or_other_data_is_none(
    store: Store, one: str, base: Path, data: Path, tmp_path: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    other = chat_base(tmp_path / "other", seed=1)
    evaluate(store, ["base", "one"], base=str(other), data=data, split="all", allow_mismatch=True)
    store = configure(store, f'[[gates.demands]]\ndata = "{digest}"\nat_most = 1e9\n')
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert "another base" in caught.value.why
    table(store, base, data, "one")
    assert store.tag(store.resolve("one"), PROD)
    store = configure(store, '[[gates.demands]]\ndata = "sha256:00000000"\nat_most = 1e9\n')
    with pytest.raises(GateError):
        store.tag(store.resolve("one"), parse_name("two:prod"))


def test_a_suite_that_has_changed_since_asks_for_a_new_evaluation(
    store: Store, one: str, base: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "about: x\nparts: {a: [{ask: 'Hi?', answer: Hello}, {ask: 'So?', answer: Sure}]}\n"
    )
    store = configure(
        store,
        f'[[gates.demands]]\nsuite = "{suite}"\npart = "a"\nmeasure = "passed"\nat_least = 0.0\nmax_new_tokens = 2\n',
    )
    evaluate(store, ["base", "one"], base=str(base), suite=str(suite), max_new_tokens=2)
    assert store.tag(store.resolve("one"), PROD)
    whole = suite.read_text()
    for changed in (whole.replace("So?", "And?"), whole.replace("Sure", "Sure, check: lacks=no")):
        suite.write_text(changed)
        with pytest.raises(GateError) as caught:
            store.tag(store.resolve("one"), parse_name("two:prod"))
        assert "another version of the suite" in caught.value.why


def test_a_release_is_held_against_the_one_before_it(
    store: Store, one: str, trained: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    demand = f'[[gates.demands]]\ndata = "{digest}"\nthan = "current"\nverdict = "not worse"\n'
    store = configure(store, demand)
    prod = parse_name("nothing:prod")
    assert store.tag(store.resolve("nothing"), prod), "nothing to compare with yet"
    table(store, base, data, "one")
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), prod, move=True)
    assert "not evaluated beside" in caught.value.why
    assert "adapterhub eval base @" in caught.value.hint
    row = table(store, base, data, "one", "nothing")[1]
    beside = row.versus[trained].loss
    assert beside is not None
    if beside.verdict == "worse":
        with pytest.raises(GateError) as caught:
            store.tag(store.resolve("one"), prod, move=True)
        assert "worse than now" in caught.value.why
    else:
        assert store.tag(store.resolve("one"), prod, move=True)


def test_no_way_to_a_name_goes_round_its_gate(
    store: Store, one: str, base: Path, tmp_path: Path
) -> None:
    store = configure(store, '[[gates.demands]]\nsuite = "forgetting"\nat_most = 1e9\n')
    folder = peft_adapter(base, tmp_path / "new", seed=5, r=4)
    before = len(store.log())
    with pytest.raises(GateError, match="new:prod asks for more"):
        store.add_folder(folder, name="new:prod")
    assert call("merge", "one", "--name", "one:prod").code == ExitCode.FAILED
    assert len(store.log()) == before
    found = call("tag", "one", "one:prod", "--json")
    assert found.code == ExitCode.FAILED
    assert "never evaluated" in found.error["why"]


def test_going_round_the_gate_on_purpose_is_recorded_and_going_back_needs_none(
    store: Store, one: str
) -> None:
    store = configure(store, '[[gates.demands]]\nsuite = "forgetting"\nat_most = 1e9\n')
    assert call("tag", "one", "one:prod", "--without-gates").code == ExitCode.OK
    (note,) = [a for a in store.attestations(one) if a.type == "note"]
    assert note.body["name"] == "one:prod"
    assert note.body["without_gates"][0]["found"] == "never evaluated on that"
    assert call("undo").code == ExitCode.OK
    assert call("undo").code == ExitCode.OK
    assert store.refs.read(PROD) == one


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": []},
        {"data": {"digest": 3}},
        {"data": {"digest": "sha256:aaaaaaaa"}, "settings": None, "result": [1]},
        known("sha256:aaaaaaaa", perplexity="low"),
        known("sha256:aaaaaaaa", versus_base={"difference": "much"}),
    ],
)
def test_foreign_evidence_of_any_shape_opens_nothing(
    store: Store, one: str, body: dict[str, Any]
) -> None:
    body = {**body, "base": {"fingerprint": store.known_fingerprint(one)}}
    store.attest(one, "eval", body)
    store = configure(store, '[[gates.demands]]\ndata = "sha256:aaaaaaaa"\nat_most = 9\n')
    with pytest.raises(GateError):
        store.tag(store.resolve("one"), PROD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "demands"),
        ("[[gates.demands]]\nat_least = 1\n", "a suite or data, one of them"),
        ('[[gates.demands]]\nsuite = "a"\ndata = "sha256:aaaaaaaa"\n', "one of them"),
        ('[[gates.demands]]\ndata = "tickets.json"\n', "is no digest"),
        ('[[gates.demands]]\nsuite = "a"\nat_lest = 1\n', "at_lest"),
        ('[[gates.demands]]\nsuite = "a"\nat_most = nan\n', "no number"),
    ],
)
def test_a_gate_that_makes_no_sense_is_said_so(
    store: Store, one: str, text: str, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        configure(store, text).tag(store.resolve("one"), PROD)
    assert words in f"{caught.value.what} {caught.value.why}"


def test_a_first_release_meets_the_absolute_demands_all_the_same(
    store: Store, one: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    demand = f'[[gates.demands]]\ndata = "{digest}"\nthan = "current"\nverdict = "not worse"\n'
    store = configure(store, demand + "at_most = 0.5\n")
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert "never evaluated" in caught.value.why
    table(store, base, data, "one")
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert "perplexity" in caught.value.why


def test_removing_a_name_is_no_way_round_the_comparison(
    store: Store, one: str, trained: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    demand = f'[[gates.demands]]\ndata = "{digest}"\nthan = "current"\nverdict = "better"\n'
    store = configure(store, demand)
    assert store.tag(store.resolve("nothing"), PROD), "nothing to compare with yet"
    store.remove([PROD])
    table(store, base, data, "one")
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert "not evaluated beside" in caught.value.why


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"split": "held_out", "split_seed": 7}, "other rows"),
        ({"split": "held_out", "held_out": 0.5}, "other rows"),
        ({"split": "all", "limit": 20}, "only some of the rows"),
        ({"split": "all", "max_length": 200}, "cut short"),
    ],
)
def test_rows_that_were_picked_are_no_evidence(
    store: Store, one: str, base: Path, data: Path, given: dict[str, Any], words: str
) -> None:
    digest = dataset_digest(read_rows(data))
    store = configure(store, f'[[gates.demands]]\ndata = "{digest}"\nat_most = 1e9\n')
    evaluate(store, ["base", "one"], base=str(base), data=data, **given)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert words in caught.value.why
    evaluate(store, ["base", "one"], base=str(base), data=data)
    assert store.tag(store.resolve("one"), PROD), "the usual split"


def test_what_is_neither_better_nor_worse_opens_nothing(
    store: Store, one: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    demand = f'[[gates.demands]]\ndata = "{digest}"\nmeasure = "length"\nverdict = "not worse"\nmax_new_tokens = 3\n'
    store = configure(store, demand)
    table(store, base, data, "one", measures=[parse_measure("length")], max_new_tokens=3)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert "neither better nor worse" in caught.value.why


def test_an_evaluation_without_the_measure_leaves_an_older_one_its_word(
    store: Store, one: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    demand = f'data = "{digest}"\nmeasure = "length"\nat_least = 0\nmax_new_tokens = 2\n'
    store = configure(store, f"[[gates.demands]]\n{demand}")
    table(store, base, data, "one")
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert "its evaluation has no length" in caught.value.why
    table(store, base, data, "one", measures=[parse_measure("length")], max_new_tokens=2)
    table(store, base, data, "one", system="Be brief.")
    assert store.tag(store.resolve("one"), PROD)


def test_a_newer_evaluation_that_has_diverged_counts(
    store: Store, one: str, base: Path, data: Path
) -> None:
    digest = dataset_digest(read_rows(data))
    store = configure(store, f'[[gates.demands]]\ndata = "{digest}"\nat_most = 1e9\n')
    table(store, base, data, "one")
    assert store.tag(store.resolve("one"), PROD)
    (*_, latest) = (item for item in store.attestations(one) if item.type == "eval")
    diverged = {**latest.body, "result": {**latest.body["result"], "perplexity": None}}
    store.attest(one, "eval", diverged)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), parse_name("two:prod"))
    assert "its evaluation has no perplexity" in caught.value.why


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        ('data = "sha256:00000000"\nmeasure = "containz"', "there is no measure 'containz'"),
        ('suite = "ours.yaml"', "there is no suite"),
        ('suite = "hours"', "there is no suite"),
    ],
)
def test_what_a_gate_names_and_isnt_there_is_told(
    store: Store, one: str, demand: str, said: str
) -> None:
    store = configure(store, f"[[gates.demands]]\n{demand}\nat_least = 0.5\n")
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    assert said in caught.value.why
    assert "mend config.toml" in caught.value.why


def test_what_a_refusal_says_to_type_opens_the_gate(
    store: Store, one: str, trained: str, base: Path, tmp_path: Path
) -> None:
    assert call("base", "add", base).code == 0
    (store.home / "mine.yaml").write_text(
        "about: x\nparts: {a: [{ask: 'Hi?', answer: Hello}, {ask: 'So?', answer: Sure}]}\n"
    )
    suite = 'suite = "mine.yaml"\nmax_new_tokens = 2\n'
    store = configure(
        store,
        f'[[gates.demands]]\n{suite}measure = "passed"\nat_least = 0\n'
        f'[[gates.demands]]\n{suite}measure = "lacks=it\'s"\nat_least = 0\n'
        f"[[gates.demands]]\n{suite}at_most = 1e9\n",
    )
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    first, evaluate_it, tag_it = caught.value.hint.split("\n  ")
    assert "--without-gates" in first
    assert evaluate_it.count("--measure") == 1
    for line in (evaluate_it, tag_it):
        said = call(*shlex.split(line)[1:])
        assert said.code == 0, said.err
    assert store.refs.read(PROD) == one

    than = f'[[gates.demands]]\n{suite}than = "current"\nat_most_worse = 1e9\n'
    store = configure(store, than)
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("nothing"), PROD, move=True)
    for line in caught.value.hint.split("\n  ")[1:]:
        said = call(*shlex.split(line)[1:])
        assert said.code == 0, said.err
    assert store.refs.read(PROD) == trained


def test_of_data_the_refusal_says_which_rows_and_parts(store: Store, one: str) -> None:
    data = 'data = "sha256:00000000"\n'
    store = configure(
        store,
        f'[[gates.demands]]\n{data}held_out = 0.3\nsplit_seed = 4\nby = "lang"\npart = "de"\nat_most = 9\n'
        f'[[gates.demands]]\n{data}measure = "late/acc"\nat_least = 0.5\n',
    )
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    _, by_data, by_task, _ = caught.value.hint.split("\n  ")
    assert by_data.endswith(" --data FILE --held-out 0.3 --split-seed 4 --by lang")
    assert by_task.endswith(" --harness late")
