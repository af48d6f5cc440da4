"""Who was made from whom, what depends on a base, and which adapters are the same twice or nearly."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapterhub.base import read_base
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue.belonging import wanted_base
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.indexing import silently
from adapterhub.store.catalogue.kinship import affected_by, lineage
from adapterhub.store.catalogue.shapes import fill_shapes
from adapterhub.store.catalogue.twins import fill_prints, near_twins, same_content
from tests.store.catalogued import merged
from tests.support.adapters import AdapterMaker, llama_modules
from tests.support.models import ModelMaker

# Kinship


def test_lineage_knows_ancestors_descendants_and_what_is_missing(
    store: Store, make_adapter: AdapterMaker
) -> None:
    gone = "sha256:" + "0" * 64
    digests: dict[str, str] = {}

    def made(name: str, *parents: str) -> str:
        folder = make_adapter(name, seed=len(digests))
        digests[name] = store.add_folder(folder, name=name, provenance=merged(*parents)).digest
        return digests[name]

    one, two = made("one"), made("two", gone)
    both = made("both", one, two)
    last = made("last", both, one)
    made("stranger")
    found = Catalogue(store.layout).ask(lambda db: lineage(db, both))
    assert set(found.relatives) == {one, two, both, last, gone}
    assert found.parents(both) == [one, two]
    assert found.parents(two) == [gone]
    assert found.children(both) == [last]
    missing = found.relatives[gone]
    assert (missing.here, missing.names, missing.called) == (False, (), "was-0")
    assert found.relatives[both].made == "merged (ties)"
    assert found.relatives[one].label == "one"
    assert {(edge.child, edge.parent) for edge in found.edges} == {
        (both, one), (both, two), (two, gone), (last, both), (last, one),
    }  # fmt: skip


def test_a_circle_in_other_peoples_provenance_ends(
    store: Store, make_adapter: AdapterMaker
) -> None:
    one = store.add_folder(make_adapter("one"), name="one").digest
    two = store.add_folder(make_adapter("two", seed=1), name="two", provenance=merged(one)).digest
    store.attest(one, "provenance", merged(two, one))
    found = Catalogue(store.layout).ask(lambda db: lineage(db, one))
    assert set(found.relatives) == {one, two}


def test_a_base_affects_those_made_for_it_and_all_their_descendants(
    store: Store, gemma: Path, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = read_base(gemma, repo="google/gemma-3-270m-it")
    store.bases.remember(base)
    other = tiny.llama(seed=1)
    checked = store.add_folder(
        make_adapter("a", base="./x"), name="checked", base=str(gemma)
    ).digest
    store.attest(checked, "base", {"fingerprint": read_base(other).fingerprint, "how": "checked"})
    claims = make_adapter("b", seed=1, base="google/gemma-3-270m-it")
    claimed = store.add_folder(claims, name="claims").digest
    bare = store.add_folder(make_adapter("c", seed=2, base="gemma-3-270m"), name="bare").digest
    store.add_folder(make_adapter("d", seed=3, base="org/other"), name="stranger")
    elsewhere = make_adapter("e", seed=4, base="google/gemma-3-270m-it")
    store.add_folder(elsewhere, name="elsewhere", base=str(other), allow_mismatch=True)
    child = store.add_folder(
        make_adapter("f", seed=5, base=None), name="child", provenance=merged(bare, claimed)
    ).digest
    grandchild = store.add_folder(
        make_adapter("g", seed=6, base=None), name="grandchild", provenance=merged(child)
    ).digest

    def question(db: sqlite3.Connection) -> dict[str, tuple[str, str | None]]:
        fill_shapes(db, store.layout, silently)
        found = affected_by(db, wanted_base(db, store.bases, "google/gemma-3-270m-it"))
        return {one.digest: (one.how, one.parent) for one in found}

    found = Catalogue(store.layout).ask(question)
    assert found.pop(child) in [("descendant", claimed), ("descendant", bare)]
    assert found == {
        checked: ("equal", None),
        claimed: ("claimed", None),
        bare: ("candidate", None),
        grandchild: ("descendant", child),
    }


# Twins


def prints(store: Store, least: float = 0.5) -> dict[str, tuple[str, float, float]]:
    def question(db: sqlite3.Connection) -> dict[str, tuple[str, float, float]]:
        assert fill_prints(db, store.layout, silently) == []
        return {
            twin.names[0]: (twin.other_names[0], twin.tensors, twin.bytes)
            for twin in near_twins(db, least)
        }

    return Catalogue(store.layout).ask(question)


def aged(store: Store, *labels: str) -> None:
    """Makes these names as old as they come first."""
    for place, label in enumerate(labels):
        os.utime(store.layout.ref(parse_name(label)), (1e9 + place, 1e9 + place))


def test_the_same_tensors_under_other_keys_and_another_readme_are_the_same_content(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter("one")
    store.add_folder(folder, name="one")
    shutil.copytree(folder, tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("the same")
    store.add_folder(tmp_path / "two", name="two")
    shutil.copytree(folder, tmp_path / "three")
    weights = tmp_path / "three" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({f"base_model.model._orig_mod.{k[17:]}": v for k, v in tensors.items()}, weights)
    store.add_folder(tmp_path / "three", name="three")
    store.add_folder(make_adapter("other", seed=1), name="other")
    store.tag(store.resolve("other"), parse_name("again"))
    aged(store, "two", "one", "three")
    (group,) = Catalogue(store.layout).ask(same_content)
    assert [labels for _, labels in group.adapters] == [("two",), ("one",), ("three",)]
    assert prints(store) == {}


def test_near_twins_share_tensors_bit_by_bit_and_the_share_is_of_the_larger(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    """Against counting by hand, with few, many and no tensors in common."""
    original = make_adapter("original", modules=llama_modules(), rank=4)
    tensors = load_file(original / "adapter_model.safetensors")
    order = sorted(tensors)
    shares = {"most": 26, "half": 14, "few": 3, "none": 0}
    store.add_folder(original, name="original")
    expected = {}
    for number, (name, count) in enumerate(shares.items(), 1):
        folder = tmp_path / name
        shutil.copytree(original, folder)
        changed = {
            key: value if place < count else value + np.float32(number * 100 + place)
            for place, (key, value) in enumerate((key, tensors[key]) for key in order)
        }
        save_file(changed, folder / "adapter_model.safetensors")
        store.add_folder(folder, name=name)
        size = sum(tensors[key].nbytes for key in order[:count]) / sum(
            t.nbytes for t in tensors.values()
        )
        expected[name] = ("original", count / len(order), size)
    aged(store, "original", *shares)
    found = prints(store, 0.1)
    assert found["most"] == pytest.approx(expected["most"])
    # What changed differs from one to the other, so the original, the oldest, is what each is nearest to.
    assert found["half"] == pytest.approx(expected["half"])
    assert found["few"] == pytest.approx(expected["few"])
    assert "none" not in found
    assert set(prints(store, 0.4)) == {"most", "half"}


def test_tensors_of_zeros_make_no_twins(store: Store, make_adapter: AdapterMaker) -> None:
    """Every untrained adapter has the same B."""
    zero = {
        module: (np.zeros((out, 4), np.float32), np.random.default_rng(n).normal(size=(4, into)))
        for n, (module, (out, into)) in enumerate(llama_modules().items())
    }
    for name, factor in (("one", 1.0), ("two", 2.0)):
        factors = {module: (b, (a * factor).astype(np.float32)) for module, (b, a) in zero.items()}
        store.add_folder(make_adapter(name, factors=factors), name=name)
    assert prints(store, 0.01) == {}


def test_a_tensor_that_very_many_share_pairs_each_with_an_older_one(
    store: Store, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen A in a whole family of adapters: no quadratic pairs, and yet nobody is left out."""
    from adapterhub.store.catalogue import twins

    monkeypatch.setattr(twins, "MOST_PARTNERS", 2)
    frozen = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    labels = [f"a{n}" for n in range(8)]
    for n, label in enumerate(labels):
        b = np.random.default_rng(n + 1).normal(size=(64, 4)).astype(np.float32)
        factors = {"model.layers.0.self_attn.q_proj": (b, frozen)}
        store.add_folder(make_adapter(label, factors=factors), name=label)
    aged(store, *labels)
    found = prints(store)
    assert {name: twin[0] for name, twin in found.items()} == dict.fromkeys(labels[1:], "a0")
    assert {twin[1:] for twin in found.values()} == {(0.5, 0.5)}
