"""A merge that was done before is not done again: its result is found by the recipe, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.calling import call
from tests.merge.conftest import state

if TYPE_CHECKING:
    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker

TIES = ("a", "b", "--method", "ties")
STEPS = """
steps:
  - {name: x, method: ties, adapters: [a, b]}
  - {method: linear, adapters: [{step: x, weight: [0, 1]}, a]}
"""


@pytest.fixture
def done(store: Store, make_adapter: AdapterMaker) -> dict[str, Any]:
    """Adapters a and b, and `first`, their TIES, as `merge --json` told it."""
    for seed, name in enumerate("ab"):
        store.add_folder(make_adapter(name, seed=seed), name=name)
    return merged(*TIES, "--name", "first")


def merged(*words: str | Path) -> dict[str, Any]:
    said = call("merge", *words, "--json")
    assert said.code == 0, said.err
    found: dict[str, Any] = said.json
    return found


def runs(store: Store) -> int:
    """How often something was computed."""
    return len(list(store.runs_dir.iterdir()))


def test_the_same_merge_again_computes_and_changes_nothing(
    store: Store, done: dict[str, Any]
) -> None:
    before, computed = state(store), runs(store)
    assert merged(*TIES, "--name", "first") == {**done, "created": False}
    assert (state(store), runs(store)) == (before, computed)


def test_what_is_a_default_may_be_said(store: Store, done: dict[str, Any], tmp_path: Path) -> None:
    computed = runs(store)
    said = ("--density", "0.2", "--weights", "1,1", "--rank", "auto", "--vote", "weighted")
    assert merged(*TIES, *said, "--seed", "9", "--name", "other")["digest"] == done["digest"]
    (tmp_path / "r.yaml").write_text(
        "method: TIES\nadapters: [a, {adapter: b, weight: 1}]\nname: third"
    )
    assert merged(tmp_path / "r.yaml")["digest"] == done["digest"]
    assert runs(store) == computed


def test_another_name_is_pointed_at_it_and_undo_takes_the_name_back(
    store: Store, done: dict[str, Any]
) -> None:
    refs = store.refs.all
    before, computed = refs(), runs(store)
    again = merged(*TIES, "--name", "second")
    assert again == {**done, "name": "second", "created": False}
    assert runs(store) == computed
    said = call("merge", *TIES, "--name", "third")
    assert f"third is @{done['digest'][7:19]}, which this recipe gave before" in said.err
    assert call("undo", "2").code == 0
    assert refs() == before


@pytest.mark.parametrize(
    "change",
    [
        ("--density", "0.3"),
        ("--weights", "1,2"),
        ("--rank", "3"),
        ("--dtype", "bfloat16"),
        ("--tie", "positive"),
        ("--semantics", "peft"),
        ("--method", "dare-ties"),
    ],
)
def test_a_recipe_that_differs_is_another_merge(
    store: Store, done: dict[str, Any], change: tuple[str, ...]
) -> None:
    computed = runs(store)
    assert merged(*TIES, *change, "--name", "other")["created"]
    assert runs(store) == computed + 1


@pytest.mark.usefixtures("done")
def test_the_order_and_the_seed_are_part_of_a_random_recipe(store: Store) -> None:
    dare = ("a", "b", "--method", "dare-linear")
    computed = runs(store)
    digests = {
        merged(*dare, "--seed", "1", "--name", "one")["digest"],
        merged(*dare, "--seed", "2", "--name", "two")["digest"],
        merged("b", *dare[:1], *dare[2:], "--seed", "1", "--name", "three")["digest"],
    }
    assert (len(digests), runs(store)) == (3, computed + 3)
    assert merged(*dare, "--seed", "1", "--name", "four")["digest"] in digests
    assert runs(store) == computed + 3


def test_redo_computes_again_and_comes_to_the_same(store: Store, done: dict[str, Any]) -> None:
    before, computed = store.refs.all(), runs(store)
    assert merged(*TIES, "--name", "first", "--redo") == {**done, "created": False}
    assert runs(store) == computed + 1
    assert store.refs.all() == before


@pytest.mark.usefixtures("done")
@pytest.mark.parametrize("redo", [(), ("--redo",)])
def test_a_taken_name_is_refused_before_anything_is_computed(
    store: Store, redo: tuple[str, ...]
) -> None:
    computed = runs(store)
    for name in ("first", "a"):
        said = call("merge", *TIES, "--density", "0.3", "--name", name, *redo)
        assert said.code == 1
        assert f"The name {name} is taken" in said.err
        assert "--move" in said.err
    assert runs(store) == computed


def test_move_points_a_taken_name_at_what_was_done_before(
    store: Store, done: dict[str, Any]
) -> None:
    computed = runs(store)
    assert merged(*TIES, "--name", "b", "--move")["digest"] == done["digest"]
    assert (runs(store), store.resolve("b").digest) == (computed, done["digest"])


@pytest.mark.usefixtures("done")
def test_two_recipes_that_give_the_same_tensors_are_both_known(store: Store) -> None:
    """The parents' ranks add up to 8, which is what `auto` takes."""
    auto = merged("a", "b", "--name", "auto")
    eight = merged("a", "b", "--rank", "8", "--name", "eight")
    assert (auto["digest"], auto["rank"]) == (eight["digest"], 8)
    computed = runs(store)
    for words in (("--name", "auto"), ("--rank", "8", "--name", "eight"), ("--name", "more")):
        assert merged("a", "b", *words)["created"] is False
    assert runs(store) == computed


def test_what_has_lost_all_its_names_is_merged_again(store: Store, done: dict[str, Any]) -> None:
    """Garbage may be swept at any time, so it is no answer."""
    assert call("rm", "first", "--yes").code == 0
    computed = runs(store)
    assert merged(*TIES, "--name", "again")["digest"] == done["digest"]
    assert runs(store) == computed + 1


@pytest.mark.usefixtures("done")
def test_a_recipe_of_steps_is_found_too(store: Store, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(STEPS)
    first = merged(tmp_path / "r.yaml", "--name", "x")
    computed = runs(store)
    assert merged(tmp_path / "r.yaml", "--name", "y") == {**first, "name": "y", "created": False}
    assert runs(store) == computed
    (tmp_path / "r.yaml").write_text(STEPS.replace("[0, 1]", "[0, 0.9]"))
    assert merged(tmp_path / "r.yaml", "--name", "z")["created"]


def test_another_adapter_under_the_same_name_is_another_parent(
    store: Store, make_adapter: AdapterMaker, done: dict[str, Any]
) -> None:
    store.add_folder(make_adapter("c", seed=5), name="b", move=True)
    again = merged(*TIES, "--name", "other")
    assert again["created"]
    assert again["digest"] != done["digest"]


def test_what_is_attested_is_found_in_a_catalogue_that_was_lost(
    store: Store, done: dict[str, Any], tmp_path: Path
) -> None:
    from shutil import rmtree

    rmtree(tmp_path / "cache")
    computed = runs(store)
    assert merged(*TIES, "--name", "other")["digest"] == done["digest"]
    assert runs(store) == computed
    assert json.loads(call("show", "other", "--json").out)["digest"] == done["digest"]
