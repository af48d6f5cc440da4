"""`rebuild`: a merged adapter follows from its recipe, to the last bit, or it is said why it doesn't."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.merge.specs import methods
from tests.cli.calling import Said, call
from tests.merge.conftest import state
from tests.support.adapters import llama_modules

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker

STEPS = """
steps:
  - {name: x, method: dare_ties, adapters: [a, b], rank: 6}
  - {method: slerp, adapters: [{step: x}, a], parameters: {t: [0, 1], scope: model}}
seed: 4
"""


@pytest.fixture
def two(store: Store, make_adapter: AdapterMaker) -> Store:
    """A store with the adapters a and b."""
    for seed, name in enumerate("ab"):
        folder = make_adapter(name, seed=seed, modules=llama_modules(), dtype="bfloat16")
        store.add_folder(folder, name=name)
    return store


def merge(*words: str | Path) -> str:
    said = call("merge", *words, "--name", "m", "--json")
    assert said.code == 0, said.err
    digest: str = said.json["digest"]
    return digest


def rebuild(*words: str | Path) -> Said:
    return call("rebuild", *words, "--json")


@pytest.mark.parametrize("method", methods())
def test_every_method_gives_the_same_content_again(two: Store, method: str) -> None:
    names = ("a", "b")[: methods()[method].max_inputs or 2]
    digest = merge(*names, "--method", method, "--workers", "2")
    before = state(two)
    said = rebuild("m", "--workers", "1", "--memory", "1kB")
    assert said.code == 0, said.err
    content = two.manifest(digest).content
    assert said.json == {
        "name": "m",
        "same": True,
        "content": content,
        "rebuilt": content,
        "engine": f"adapterhub {version('adapterhub')}, torch {version('torch')}, cpu",
    }
    assert state(two) == before


@pytest.mark.parametrize("rank", ["auto", "full", "3", "energy=0.8"])
def test_whatever_the_rank_and_the_dtype(two: Store, rank: str) -> None:
    digest = merge("a", "b", "--method", "ties", "--rank", rank, "--dtype", "float16")
    assert rebuild("m").json["rebuilt"] == two.manifest(digest).content


def test_a_recipe_of_steps_is_followed_again(two: Store, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(STEPS)
    digest = merge(tmp_path / "r.yaml", "--workers", "1")
    (tmp_path / "r.yaml").unlink()
    said = rebuild(f"@{digest[7:]}", "--workers", "3")
    assert (said.code, said.json["same"]) == (0, True)


@pytest.mark.usefixtures("two")
def test_parents_are_taken_by_their_content_whatever_they_are_called_now() -> None:
    merge("a", "b")
    for words in (["tag", "a", "renamed"], ["rm", "a", "--yes"], ["tag", "b", "a"]):
        assert call(*words).code == 0
    assert rebuild("m").json["same"]


@pytest.mark.usefixtures("two")
def test_without_a_parent_it_says_which_and_where_to_look() -> None:
    merge("a", "b")
    gone = json.loads(call("show", "b", "--json").out)["digest"]
    assert call("rm", "b", "--yes").code == 0
    assert call("gc", "--grace", "0s", "--yes").code == 0
    said = rebuild("m")
    assert said.code == 4
    assert gone[7:19] in said.error["what"]
    assert said.error["hint"] == "adapterhub lineage m"


@pytest.mark.usefixtures("two")
def test_what_was_not_merged_has_no_recipe() -> None:
    said = rebuild("a")
    assert said.code == 1
    assert "a has no recipe" in said.error["what"]
    assert rebuild("nobody").code == 4


def told(store: Store, recipe: dict[str, Any], engine: dict[str, str]) -> None:
    """Merges a and b into m, and then attests that another recipe or engine gave it."""
    merge("a", "b")
    digest = store.resolve("m").digest
    (known,) = [a for a in store.attestations(digest) if a.type == "provenance"]
    body = {**known.body, "recipe": {**known.body["recipe"], **recipe}, "engine": engine}
    store.attest(digest, "provenance", body)


def test_another_engine_is_named_where_the_tensors_differ(two: Store) -> None:
    told(two, {"weights": [0.5, 0.6]}, {"adapterhub": "0.0.1", "torch": "1.0", "device": "cuda"})
    said = rebuild("m")
    assert (said.code, said.json["same"]) == (1, False)
    assert said.json["rebuilt"] != said.json["content"]
    assert said.json["engine"] == "adapterhub 0.0.1, torch 1.0, cuda"
    assert "it was made by adapterhub 0.0.1, torch 1.0, cuda; here is" in said.err
    assert call("rebuild", "m", "-q").out.strip() == said.json["rebuilt"]


def test_another_engine_is_no_matter_where_the_tensors_are_the_same(two: Store) -> None:
    told(two, {}, {"adapterhub": "0.0.1"})
    said = rebuild("m")
    assert (said.code, said.json["engine"]) == (0, "adapterhub 0.0.1, torch ?, cpu")
    assert "warning" not in said.err


def test_a_recipe_of_a_version_that_knows_more_is_refused_in_words(two: Store) -> None:
    told(two, {"method": "of_the_future"}, {})
    said = rebuild("m")
    assert said.code == 1
    assert "of_the_future" in said.error["why"]
