"""What a base model is: the fingerprint follows the weights and nothing else, and `fits` knows what belongs together."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base import BaseModel, claims_differ, fits, read_base
from adapterhub.errors import FormatError, IncompatibleError, NotFoundError
from adapterhub.manifest import BaseClaim
from tests.support.adapters import EMBEDDING, HEAD, QV, llama_modules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adapterhub.base import Verdict
    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

Change = "Callable[[dict[str, torch.Tensor]], None]"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., BaseModel]:
    """A copy of a single-file model with its tensors changed by a function."""
    count = iter(range(100))

    def change(source: Path, function: Any = lambda _: None, **config: Any) -> BaseModel:
        folder = tmp_path / f"changed{next(count)}"
        shutil.copytree(source, folder)
        tensors = load_file(folder / "model.safetensors")
        function(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        document = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(document))
        return read_base(folder)

    return change


def names(base: BaseModel) -> set[str]:
    return set(base.tensors)


# The fingerprint


@pytest.mark.parametrize("tied", [False, True])
def test_the_fingerprint_does_not_depend_on_sharding(tiny: ModelMaker, tied: bool) -> None:
    single, sharded = read_base(tiny.llama(tied=tied)), read_base(tiny.llama(tied=tied, sharded=True))
    assert len(single.shards) == 1
    assert len(sharded.shards) > 1
    assert single.fingerprint == sharded.fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_fingerprint_survives_an_exact_upcast(
    tiny: ModelMaker, changed: Callable[..., BaseModel], dtype: str
) -> None:
    narrow = tiny.llama(dtype=dtype)

    def upcast(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items()})

    assert changed(narrow, upcast).fingerprint == read_base(narrow).fingerprint
    # The other way weights are rounded: that is another model.
    assert read_base(narrow).fingerprint != read_base(tiny.llama()).fingerprint


def test_a_stored_copy_of_the_tied_head_changes_nothing(tiny: ModelMaker, changed: Callable[..., BaseModel]) -> None:
    source = tiny.llama(tied=True)

    def store_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    twin = changed(source, store_head)
    assert "lm_head.weight" in names(twin) - names(read_base(source))
    assert twin.fingerprint == read_base(source).fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_or_metadata_of_the_file(
    tiny_llama: Path, changed: Callable[..., BaseModel]
) -> None:
    def reverse(tensors: dict[str, torch.Tensor]) -> None:
        for name in sorted(tensors, reverse=True):
            tensors[name] = tensors.pop(name)

    assert changed(tiny_llama, reverse).fingerprint == read_base(tiny_llama).fingerprint


def test_the_fingerprint_sees_a_change_of_any_one_tensor(tiny_llama: Path, changed: Callable[..., BaseModel]) -> None:
    found = {read_base(tiny_llama).fingerprint}
    tensors = sorted(names(read_base(tiny_llama)))
    for name in tensors:

        def nudge(weights: dict[str, torch.Tensor], name: str = name) -> None:
            weights[name] = weights[name] * 1.001

        found.add(changed(tiny_llama, nudge).fingerprint)
    assert len(found) == len(tensors) + 1


def test_the_fingerprint_sees_names_shapes_and_missing_tensors(
    tiny_llama: Path, changed: Callable[..., BaseModel]
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.final.weight"] = tensors.pop("model.norm.weight")

    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].reshape(64, 160)

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    found = {changed(tiny_llama, change).fingerprint for change in (rename, reshape, drop)}
    assert len(found | {read_base(tiny_llama).fingerprint}) == 4


def test_negative_zero_is_zero(tiny_llama: Path, changed: Callable[..., BaseModel]) -> None:
    def zeros(sign: float) -> Any:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors["model.norm.weight"] = torch.zeros(64) * sign

        return change

    assert changed(tiny_llama, zeros(1)).fingerprint == changed(tiny_llama, zeros(-1)).fingerprint


# Fitting


def verdict(store: Store, folder: Path, base: BaseModel, name: str = "x") -> Verdict:
    store.add_folder(folder, name=name)
    resolved = store.resolve(name)
    return fits(store.facts(resolved), base, claim=resolved.manifest.base, known_fingerprint=store.known_fingerprint(resolved.digest))


def test_an_adapter_of_this_architecture_fits(store: Store, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    found = verdict(store, make_adapter(modules={**llama_modules(), **EMBEDDING, **HEAD}), read_base(tiny_llama))
    assert found.ok
    assert (found.modules_found, found.modules_total, found.fingerprint) == (16, 16, "unknown")
    assert found.placement["model.layers.1.mlp.up_proj"] == "model.layers.1.mlp.up_proj.weight"


def test_the_head_of_a_tied_model_is_its_embedding(store: Store, tiny: ModelMaker, make_adapter: AdapterMaker) -> None:
    found = verdict(store, make_adapter(modules=HEAD), read_base(tiny.llama(tied=True)))
    assert found.ok
    assert found.placement == {"lm_head": "model.embed_tokens.weight"}


def test_modules_the_base_lacks_are_counted_and_named(store: Store, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    found = verdict(store, make_adapter(modules=llama_modules("q_proj", layers=range(5))), read_base(tiny_llama))
    assert not found.ok
    assert (found.modules_found, found.modules_total) == (2, 5)
    assert "3 of 5 modules" in found.reasons[0]
    assert "model.layers.2.self_attn.q_proj" in found.reasons[0]


def test_other_shapes_are_named_with_both_sides(store: Store, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    modules = {"model.layers.0.self_attn.q_proj": (128, 64)}
    found = verdict(store, make_adapter(modules=modules), read_base(tiny_llama))
    assert not found.ok
    assert "[128, 64]" in found.reasons[0]
    assert "[64, 64]" in found.reasons[0]


def test_equal_shapes_and_other_weights_are_different_once_attested(
    store: Store, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    mine, other = tiny.llama(), tiny.llama(seed=1)
    store.add_folder(make_adapter(), name="x", base=str(mine))
    resolved = store.resolve("x")
    assert store.fit(resolved, read_base(mine)).fingerprint == "equal"
    assert store.fit(resolved, read_base(tiny.llama(sharded=True))).fingerprint == "equal"
    found = store.fit(resolved, read_base(other))
    assert (found.ok, found.fingerprint) == (False, "different")
    assert "fingerprint" in found.reasons[0]
    with pytest.raises(IncompatibleError, match="fingerprint") as caught:
        store.require_fit(resolved, read_base(other))
    assert caught.value.exit_code == 5
    assert not store.require_fit(resolved, read_base(other), allow_mismatch=True).ok


def test_adding_it_again_for_other_weights_is_refused(store: Store, tiny: ModelMaker, make_adapter: AdapterMaker) -> None:
    folder = make_adapter()
    store.add_folder(folder, name="x", base=str(tiny.llama()))
    with pytest.raises(IncompatibleError, match="fingerprint"):
        store.add_folder(folder, name="x", base=str(tiny.llama(seed=1)))
    assert store.known_fingerprint(store.resolve("x").digest) == read_base(tiny.llama()).fingerprint


def test_a_mismatch_allowed_at_the_door_is_attested(store: Store, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    folder = make_adapter(modules={"model.layers.7.self_attn.q_proj": (64, 64), **QV})
    with pytest.raises(IncompatibleError, match=r"1 of 5 modules") as caught:
        store.add_folder(folder, name="x", base=str(tiny_llama))
    assert caught.value.exit_code == 5
    assert store.entries() == []
    added = store.add_folder(folder, name="x", base=str(tiny_llama), allow_mismatch=True)
    (body,) = [a.body for a in store.attestations(added.digest) if a.type == "base"]
    assert "layers.7" in body["allowed_mismatch"][0]


def test_equal_weights_fit_whatever_the_labels_say(store: Store, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    base = read_base(tiny_llama, repo="org/renamed")
    store.add_folder(make_adapter(base="org/tiny"), name="x", base=str(tiny_llama))
    assert store.fit(store.resolve("x"), base).ok


COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("claim", "repo", "revision", "words"),
    [
        ({"base": "org/one"}, "org/two", None, "repository"),
        ({"base": "org/one", "revision": COMMIT}, "org/one", OTHER, "revision"),
        ({"base": "gpt2"}, "distilgpt2", None, "repository"),
    ],
)
def test_known_different_labels_do_not_fit_where_nothing_better_is_known(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker, claim: Any, repo: str, revision: str | None, words: str
) -> None:
    found = verdict(store, make_adapter(**claim), read_base(tiny_llama, repo=repo, revision=revision))
    assert not found.ok
    assert words in found.reasons[0]
    assert found.modules_found == found.modules_total


@pytest.mark.parametrize(
    ("claim", "repo", "revision"),
    [
        ({"base": "org/one"}, "ORG/One", None),
        ({"base": "org/one", "revision": COMMIT}, "org/one", COMMIT),
        ({"base": "org/one", "revision": "main"}, "org/one", COMMIT),  # a branch can move: unknown
        ({"base": "org/one"}, "org/one", COMMIT),
        ({"base": "gpt2"}, "openai-community/gpt2", None),
        ({"base": "/home/me/llama"}, "org/one", None),
        ({"base": "./llama"}, "org/one", None),
        ({"base": "C:\\models\\llama"}, "org/one", None),
        ({"base": ""}, "org/one", None),
        ({"base": None}, "org/one", None),
        ({"base": "org/one"}, None, None),
    ],
)
def test_labels_not_known_to_differ_fit(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker, claim: Any, repo: str | None, revision: str | None
) -> None:
    assert verdict(store, make_adapter(**claim), read_base(tiny_llama, repo=repo, revision=revision)).ok


def test_unknown_never_disagrees() -> None:
    known, unknown = BaseClaim("org/one", COMMIT), BaseClaim(None, None)
    assert claims_differ(known, unknown) == claims_differ(unknown, known) == claims_differ(unknown, unknown) == []
    assert claims_differ(known, known) == []


def test_the_hub_cache_names_repository_and_revision(tiny_llama: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name--with--dashes" / "snapshots" / COMMIT
    shutil.copytree(tiny_llama, snapshot)
    base = read_base(snapshot)
    assert (base.repo, base.revision) == ("org/name--with--dashes", COMMIT)


# PEFT's own adapters


def test_peft_adapters_on_a_mixed_conv1d_model_fit(
    store: Store, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> None:
    # PEFT decides fan_in_fan_out layer by layer and saves what the last layer needed, so the file's flag is right for
    # some modules only: c_attn is a Conv1D, lm_head a Linear.
    base = tiny.gpt2()
    with pytest.warns(UserWarning):
        folder = make_peft_adapter(base, "mixed", targets=("c_attn", "lm_head"), r=4)
    strip_saved(folder)
    found = verdict(store, folder, read_base(base))
    assert found.ok, found.reasons


def strip_saved(folder: Path) -> None:
    """Removes the whole weights PEFT saves beside a LoRA on the head."""
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" in name}, path)


# Broken folders


def test_no_model_folder(tmp_path: Path, tiny_llama: Path, tiny: ModelMaker) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json"):
        read_base(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(tiny_llama / "config.json", empty)
    with pytest.raises(NotFoundError, match="safetensors"):
        read_base(empty)
    half = tmp_path / "half"
    shutil.copytree(tiny.llama(sharded=True), half)
    shard = sorted(half.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(NotFoundError, match=shard.name):
        read_base(half)


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, tiny: ModelMaker) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(tiny.llama(sharded=True), folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="outside"):
        read_base(folder)


def test_the_single_file_counts_where_both_are_there_as_transformers_has_it(tmp_path: Path, tiny: ModelMaker) -> None:
    folder = tmp_path / "both"
    shutil.copytree(tiny.llama(seed=1, sharded=True), folder)
    shutil.copy(tiny.llama() / "model.safetensors", folder)
    assert read_base(folder).fingerprint == read_base(tiny.llama()).fingerprint
