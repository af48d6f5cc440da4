"""The fingerprint follows the weights and nothing else; a folder that is no sound model says why."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base import BaseModel, read_base
from adapterhub.errors import FormatError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.models import ModelMaker


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., BaseModel]:
    """A copy of a single-file model with its tensors changed by a function."""
    count = iter(range(100))

    def change(source: Path, function: Any = lambda _: None, **config: Any) -> BaseModel:
        folder = tmp_path / f"changed{next(count)}"
        shutil.copytree(source, folder)
        tensors = load_file(folder / "model.safetensors")
        function(tensors)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            folder / "model.safetensors",
        )
        document = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(document))
        return read_base(folder)

    return change


def names(base: BaseModel) -> set[str]:
    return set(base.tensors)


@pytest.mark.parametrize("tied", [False, True])
def test_the_fingerprint_does_not_depend_on_sharding(tiny: ModelMaker, tied: bool) -> None:
    single, sharded = (
        read_base(tiny.llama(tied=tied)),
        read_base(tiny.llama(tied=tied, sharded=True)),
    )
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


def test_a_stored_copy_of_the_tied_head_changes_nothing(
    tiny: ModelMaker, changed: Callable[..., BaseModel]
) -> None:
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


def test_the_fingerprint_sees_a_change_of_any_one_tensor(
    tiny_llama: Path, changed: Callable[..., BaseModel]
) -> None:
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
    shard = min(half.glob("*.safetensors"))
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


def test_the_single_file_counts_where_both_are_there_as_transformers_has_it(
    tmp_path: Path, tiny: ModelMaker
) -> None:
    folder = tmp_path / "both"
    shutil.copytree(tiny.llama(seed=1, sharded=True), folder)
    shutil.copy(tiny.llama() / "model.safetensors", folder)
    assert read_base(folder).fingerprint == read_base(tiny.llama()).fingerprint
