"""QLoRA beside LoRA of one recipe: which pairs are refused, what the verdict says, and that it is attested."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import dataset_digest, read_rows, split_rows
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.evaluate.intervals import ratio_interval
from adapterhub.evaluate.pair import Pair, Word, evaluate_pair, in_words, judge
from adapterhub.evaluate.table import Versus
from adapterhub.evaluate.twins import find_twins, recipe_rows
from adapterhub.evaluated import PAIR
from adapterhub.runs import EVENTS
from adapterhub.trainer.watch import past
from tests.cli.calling import call
from tests.support.evaluated import loss_of
from tests.support.models import peft_adapter
from tests.support.trainings import begun, recipe_file, take

if TYPE_CHECKING:
    from adapterhub.store import Store

Add = Callable[..., str]

TRAINED: dict[str, Any] = {
    "event": "trained",
    "training": "sha256:" + "1" * 64,
    "recipe": {
        "name": "tone",
        "method": "lora",
        "rank": 8,
        "alpha": 16.0,
        "target_modules": "all-linear",
        "learning_rate": 2e-4,
        "steps": 12,
        "data": {"path": ["data.json"], "limit": None, "held_out": 0.2},
        "eval": {"keep": "best", "samples": 0},
    },
    "seed": 3,
    "parents": [],
    "base": {"revision": "a" * 40, "fingerprint": "sha256:" + "b" * 64},
    "data": {
        "digest": "sha256:" + "c" * 64,
        "train_digest": "sha256:" + "d" * 64,
        "held_out_digest": "sha256:" + "e" * 64,
        "held_out": 0.2,
        "split_seed": 0,
        "max_length": 256,
    },
    "template": "sha256:" + "f" * 64,
    "mask": "answers",
    "steps": 12,
    "kept": {"step": 12},
    "seconds": 10.0,
    "peak_memory": 2_000_000_000,
    "versions": {"torch": "2.13.0"},
    "hardware": {"device": {"kind": "cuda", "name": "one"}, "processes": 1},
}
"""As the trainer attests a training, of no base that there is."""


def changed(body: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the values at dotted paths replaced."""
    found: dict[str, Any] = copy.deepcopy(dict(body))
    for path, value in changes.items():
        *tables, key = path.split(".")
        place = found
        for table in tables:
            place = place[table]
        place[key] = value
    return found


@pytest.fixture
def plant(store: Store, base: Path, tmp_path: Path) -> Add:
    """plant(name, method, {path: value}, seed=, strength=): an adapter that says it was trained so."""
    store.bases.remember(store.bases.open(str(base)))

    def make(
        name: str,
        method: str,
        changes: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        strength: float = 0.2,
    ) -> str:
        folder = peft_adapter(base, tmp_path / f"peft-{name}", seed=seed, strength=strength, r=4)
        body = changed(TRAINED, {"recipe.method": method, "recipe.name": name, **(changes or {})})
        return store.add_folder(folder, name=name, base=str(base), provenance=body).digest

    return make


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store with two real trainings of one recipe, `paint` in 4 bits and `paint-lora`; and their data."""
    from adapterhub.cli.output import Output
    from adapterhub.store import Store
    from adapterhub.trainer.recipe import load_recipe
    from adapterhub.trainer.train import train

    folder = tmp_path_factory.mktemp("pair")
    store = Store.open(folder / "home")
    path = recipe_file(folder, base)
    for method, name in (("qlora", "paint"), ("lora", "paint-lora")):
        recipe = load_recipe(path, {"name": name}, [f"method={method}"])
        train(store, recipe, Output(stderr=io.StringIO()))
    return folder / "home", folder / "data.json"


@pytest.fixture
def real(trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Path]:
    """That store, as the command line finds it."""
    from adapterhub.store import Store

    home, data = trained
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    return Store.open(home), data


@pytest.mark.slow
def test_real_trainings_are_compared_on_the_rows_that_the_recipe_held_out(
    real: tuple[Store, Path],
) -> None:
    store, data = real
    found = evaluate_pair(store, ["paint-lora", "paint"], data=data)
    assert (found.qlora, found.lora) == ("paint", "paint-lora")
    assert [row.name for row in found.rows] == ["base", "paint", "paint-lora"]
    held_out = split_rows(read_rows(data), 0.2).held_out
    assert {row.rows for row in found.rows} == {len(held_out)}
    assert found.versus is not None
    _, qlora, lora = found.rows
    assert found.versus.difference == pytest.approx(loss_of(qlora) - loss_of(lora), abs=1e-12)
    assert found.versus.low < found.versus.difference < found.versus.high
    assert found.differences == ()
    assert all(one["seconds"] and one["peak_memory"] for one in found.cost.values())


@pytest.mark.slow
def test_the_verdict_is_attested_for_both_once_and_shown(real: tuple[Store, Path]) -> None:
    store, data = real
    found = evaluate_pair(store, ["paint", "paint-lora"], data=data, margin=0.5)
    evaluate_pair(store, ["paint", "paint-lora"], data=data, margin=0.5)
    digests = {name: store.resolve(name).digest for name in ("paint", "paint-lora")}
    for name, method, other in (
        ("paint", "qlora", "paint-lora"),
        ("paint-lora", "lora", "paint"),
    ):
        (body,) = [
            item.body
            for item in store.attestations(digests[name])
            if item.body.get("event") == PAIR and item.body.get("margin") == 0.5
        ]
        assert (body["as"], body["other"]) == (method, digests[other])
        assert body["word"] == found.word == "equivalent"
        assert found.versus is not None
        assert body["versus"]["low"] == found.versus.low
        assert body["evaluated"]["data"]["rows_digest"] == dataset_digest(
            split_rows(read_rows(data), 0.2).held_out
        )
        assert body["evaluated"]["settings"]["held_out"] == 0.2
        assert str(data.parent) not in json.dumps(body)
        told = call("show", name).out
        assert f"as {method} beside @{digests[other][7:19]}: equivalent" in told
        assert "margin 50%" in told


@pytest.mark.slow
def test_the_command_tells_table_verdict_and_cost(real: tuple[Store, Path]) -> None:
    _, data = real
    words = ("eval", "base", "paint", "paint-lora", "--pair", "--data", data)
    said = call(*words, "--measure", "contains=colour", "--max-new-tokens", "4")
    assert said.code == 0, said.err
    assert "contains=colour, less LoRA's" in said.out
    assert "QLoRA took " in said.out
    assert "times the memory" in said.out
    found = call(*words, "--json").json
    assert found["verdict"] in said.out
    assert call(*words, "-q").out.strip() == found["word"]
    trained_on = call(*words, "--split", "all")
    assert trained_on.code == 2
    assert "50 of the 60 rows were trained on" in trained_on.err


@pytest.mark.parametrize(
    ("sums", "word"),
    [
        ([0.004, -0.002, 0.003, 0.001] * 10, "equivalent"),
        ([0.0] * 10, "equivalent"),
        ([0.05, 0.06, 0.04, 0.05] * 10, "worse"),
        ([-0.05, -0.06, -0.04, -0.05] * 10, "better"),
        ([0.9, -1.0, 1.1, -0.8] * 10, "not decided"),
        ([0.1], "not decided"),
        ([0.0] * 9, "not decided"),
        ([0.5] * 9, "not decided"),
    ],
)
def test_each_verdict_follows_from_the_interval_of_the_rows(sums: list[float], word: Word) -> None:
    versus = Versus.of(ratio_interval(sums, [1.0] * len(sums)), lower_is_better=True)
    assert judge(versus, 0.01, len(sums)) == word
    assert word in in_words(word, versus, 0.01, len(sums)).lower()


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [  # in shares of the perplexity, around a margin of 1%
        (-0.0099, 0.0099, "equivalent"),
        (0.001, 0.0099, "equivalent"),
        (0.001, 0.0101, "worse"),
        (-0.0101, -0.001, "better"),
        (-0.0101, 0.0001, "not decided"),
        (-0.0001, 0.0101, "not decided"),
        (0.02, 0.03, "worse"),
    ],
)
def test_the_margin_is_a_share_of_the_perplexity(low: float, high: float, word: Word) -> None:
    versus = Versus((low + high) / 2, math.log1p(low), math.log1p(high), 0.95, None)
    assert judge(versus, 0.01, 40) == word
    told = in_words(word, versus, 0.01, 40)
    straddles = word in ("better", "worse") and min(abs(low), abs(high)) <= 0.01
    assert ("may be less than the margin of 1%" in told) == straddles


@pytest.mark.parametrize(
    ("qlora", "lora", "margin", "word"),
    [
        ((0, 0.2001), (0, 0.2), 0.01, "equivalent"),
        ((1, 0.2), (0, 0.2), 0.01, "worse"),
        ((0, 0.2), (1, 0.2), 0.01, "better"),
        ((0, 0.2), (0, 0.6), 0.001, "not decided"),
    ],
)
def test_planted_adapters_get_the_verdict_they_deserve(
    store: Store,
    plant: Add,
    data: Path,
    qlora: tuple[int, float],
    lora: tuple[int, float],
    margin: float,
    word: Word,
) -> None:
    plant("q", "qlora", seed=qlora[0], strength=qlora[1])
    plant("l", "lora", seed=lora[0], strength=lora[1])
    found: Pair = evaluate_pair(store, ["l", "q"], data=data, split="all", margin=margin)
    assert found.word == word, found.verdict
    assert "these aren't the data of the recipe" in found.remarks[-1]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("recipe.rank", 4, "recipe rank: qlora 4, lora 8"),
        ("recipe.alpha", 32.5, "recipe alpha: qlora 32.5, lora 16"),
        ("recipe.target_modules", ["q_proj"], "recipe target_modules: qlora ['q_proj'], lora 'all-linear'"),
        ("recipe.steps", 20, "recipe steps: qlora 20, lora 12"),
        ("recipe.data.limit", 30, "recipe data.limit: qlora 30, lora unknown"),
        ("seed", 4, "seed: qlora 4, lora 3"),
        ("base.revision", "b" * 40, "base.revision: qlora 'bbbb"),
        ("base.fingerprint", "sha256:" + "0" * 64, "base.fingerprint: qlora 000000000000, lora bbbbbbbbbbbb"),
        ("data.train_digest", "sha256:" + "0" * 64, "data.train_digest: qlora 000000000000"),
        ("template", None, "template: qlora unknown, lora ffffffffffff"),
        ("parents", [{"digest": "sha256:" + "9" * 64}], "start_from: qlora"),
        ("hardware.processes", 2, "hardware.processes: qlora 2, lora 1"),
    ],
)  # fmt: skip
def test_whatever_else_differs_is_listed_and_refused(
    store: Store, plant: Add, path: str, value: object, told: str
) -> None:
    plant("q", "qlora", {path: value})
    plant("l", "lora", seed=1)
    with pytest.raises(IncompatibleError) as caught:
        find_twins(store, ["q", "l"])
    assert told in caught.value.why
    assert "--set method=lora --name q-lora" in caught.value.hint
    assert "--allow-mismatch" in caught.value.hint
    found = find_twins(store, ["q", "l"], allow_mismatch=True)
    assert told in "\n".join(found.differences)


def test_names_outcomes_versions_and_machines_may_differ_and_are_told(
    store: Store, plant: Add
) -> None:
    plant(
        "q",
        "qlora",
        {
            "recipe.data.path": ["elsewhere.json"],
            "recipe.eval.samples": 3,
            "kept.step": 8,
            "versions.torch": "2.14.0",
            "hardware.device.name": "two",
            "peak_memory": 1_000_000_000,
        },
    )
    plant("l", "lora", seed=1)
    found = find_twins(store, ["l", "q"])
    assert found.differences == ()
    assert "versions.torch: qlora '2.14.0', lora '2.13.0'" in found.remarks
    assert "kept.step: qlora 8, lora 12" in found.remarks
    assert "hardware.device.name: qlora 'two', lora 'one'" in found.remarks
    assert recipe_rows(found) == {"held_out": 0.2, "split_seed": 0, "max_length": 256}


def test_cost_is_told_with_its_ratio_and_not_across_machines(
    store: Store, plant: Add, data: Path
) -> None:
    plant("q", "qlora", {"peak_memory": 1_000_000_000, "seconds": 15.0})
    plant("l", "lora", seed=1)
    plant("far", "lora", {"hardware.device.name": "two", "peak_memory": None}, seed=2)
    near = evaluate_pair(store, ["q", "l"], data=data).cost_in_words
    assert near == (
        "QLoRA took 15 s and 1 GB, LoRA 10 s and 2 GB: 1.5 times the time, 0.5 times the memory."
    )
    far = evaluate_pair(store, ["q", "far"], data=data).cost_in_words
    assert far == (
        "QLoRA took 15 s and 1 GB, LoRA 10 s and unknown memory: on different machines, so they don't compare."
    )


def test_the_most_memory_of_a_training_is_known_after_a_resume(tmp_path: Path) -> None:
    run = begun(tmp_path)
    take(run, 1, 10, memory=3_000_000_000)
    take(run, 11, 20, memory=2_000_000_000)
    take(run, 21, 30, memory=9_000_000_000)
    assert past(run.path / EVENTS, 20).memory == 3_000_000_000


def test_what_is_no_pair_is_refused_before_a_model_is_loaded(
    store: Store, add: Add, plant: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("adapterhub.evaluate.models.load_model", never)
    add("plain", seed=5)
    plant("q", "qlora")
    plant("q2", "qlora", seed=1)
    with pytest.raises(UsageError, match="two adapters") as one:
        evaluate_pair(store, ["q"])
    assert "adapterhub train RECIPE.yaml --set method=lora --name q-lora" in one.value.hint
    with pytest.raises(UsageError, match="one adapter trained with QLoRA and one with LoRA"):
        evaluate_pair(store, ["q", "q2"])
    with pytest.raises(UsageError, match="of one adapter"):
        evaluate_pair(store, ["q", "q"])
    with pytest.raises(UsageError, match="3 were named"):
        evaluate_pair(store, ["q", "q2", "plain"])
    with pytest.raises(IncompatibleError, match="wasn't trained here"):
        evaluate_pair(store, ["q", "plain"])
    for margin in (0.0, -1.0, 1.0, math.nan):
        with pytest.raises(UsageError, match="margin"):
            evaluate_pair(store, ["q", "q2"], margin=margin)


@pytest.mark.parametrize(
    "recipe", [[3], None, "x", {"method": ["qlora"]}, {"data": 3, "method": "lora"}]
)
def test_a_provenance_of_any_shape_is_refused_and_no_fault(
    store: Store, base: Path, plant: Add, tmp_path: Path, recipe: object
) -> None:
    plant("q", "qlora")
    folder = peft_adapter(base, tmp_path / "odd", seed=1, strength=0.2, r=4)
    odd = {"event": "trained", "recipe": recipe, "data": recipe, "hardware": recipe, "parents": 3}
    store.add_folder(folder, name="odd", base=str(base), provenance=odd)
    with pytest.raises((UsageError, IncompatibleError)):
        find_twins(store, ["q", "odd"])


def test_options_of_a_pair_are_refused_elsewhere(store: Store, add: Add, data: Path) -> None:
    add("one")
    said = call("eval", "one", "base", "--data", data, "--margin", "0.02")
    assert said.code == 2
    assert "--margin is for --pair" in said.err
    both = call("eval", "one", "base", "--pair", "--interactions", "x", "--data", data)
    assert both.code == 2
