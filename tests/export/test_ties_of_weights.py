"""A tied model whose head or embedding is adapted must be untied: each side gets its own matrix, and the config says so."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.adapters import EMBEDDING, HEAD, QV, VOCABULARY
from tests.support.attached import apart, attach, load, logits, logits_of_dense, tensors
from tests.support.dense import read_deltas

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

TOUCHING: dict[str, dict[str, Any]] = {
    "head": {"modules": {**HEAD, **QV}},
    "embedding": {"modules": {**EMBEDDING, **QV}},
    "both": {"modules": {**EMBEDDING, **HEAD}},
}
E_NAME, H_NAME = "model.embed_tokens.weight", "lm_head.weight"


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("touching", TOUCHING)
def test_a_tied_model_is_untied_where_one_side_changes(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, touching: str, sharded: bool
) -> None:
    base = tiny.llama(tied=True, sharded=sharded)
    adapter = make_adapter(scale=0.2, **TOUCHING[touching])
    done = exporter([adapter], base)
    before, after, deltas = tensors(base), tensors(done.folder), read_deltas(adapter)

    assert done.untied
    assert config(done.folder) == {**config(base), "tie_word_embeddings": False}
    assert after.keys() == before.keys() | {H_NAME}
    shared = before[E_NAME].double()
    for name, module, delta in (
        (H_NAME, "lm_head", deltas.get("lm_head")),
        (E_NAME, "", deltas.get("model.embed_tokens")),
    ):
        change = torch.zeros(VOCABULARY, 64, dtype=torch.float64)
        if delta is not None:
            change = torch.from_numpy(delta if module else delta.T.copy())
        assert float((after[name].double() - shared - change).norm() / shared.norm()) <= 5e-7, name
    if sharded:
        index = json.loads((done.folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(after)
        assert index["metadata"]["total_size"] == sum(
            t.numel() * t.element_size() for t in after.values()
        )
    model = load(done.folder)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert apart(logits(model), logits(attach(load(base), adapter))) <= 1e-5
    assert apart(logits(model), logits_of_dense(base, deltas)) <= 1e-5
    assert apart(logits(model), logits(load(base))) > 1e-2


def test_a_tied_model_stays_tied_where_neither_side_changes(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(tied=True)
    done = exporter([make_adapter()], base)
    assert not done.untied
    assert config(done.folder) == config(base)
    assert tensors(done.folder).keys() == tensors(base).keys()
    model = load(done.folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("touching", TOUCHING)
def test_an_untied_model_needs_no_untying(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, touching: str
) -> None:
    base = tiny.llama()
    adapter = make_adapter(scale=0.2, **TOUCHING[touching])
    done = exporter([adapter], base)
    assert not done.untied
    assert tensors(done.folder).keys() == tensors(base).keys()
    assert apart(logits(load(done.folder)), logits(attach(load(base), adapter))) <= 1e-5


@pytest.mark.parametrize("touching", TOUCHING)
def test_a_tied_model_that_stores_its_head_too(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path, touching: str
) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "stores-both"
    shutil.copytree(tiny.llama(tied=True), base)
    stored = load_file(base / "model.safetensors")
    stored[H_NAME] = stored[E_NAME].clone()
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(scale=0.2, **TOUCHING[touching])
    done = exporter([adapter], base)
    assert config(done.folder)["tie_word_embeddings"] is False
    found = logits(load(done.folder))
    assert apart(found, logits_of_dense(tiny.llama(tied=True), read_deltas(adapter))) <= 1e-5


def test_a_tied_gpt2(exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker) -> None:
    base = tiny.gpt2()
    adapter = make_adapter(modules={"transformer.wte": (64, VOCABULARY)}, scale=0.2)
    done = exporter([adapter], base)
    assert done.untied
    assert apart(logits(load(done.folder)), logits(attach(load(base), adapter))) <= 1e-5


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # the base's whole embedding
def test_an_adapter_that_peft_kept_tied(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> None:
    from safetensors.torch import load_file, save_file

    base = tiny.llama(tied=True)
    adapter = make_peft_adapter(
        base, r=4, targets=("embed_tokens", "q_proj"), ensure_weight_tying=True, strength=0.2
    )
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" in name}, path)
    attached = logits(attach(load(base), adapter))
    done = exporter([adapter], base)
    assert apart(logits(load(done.folder)), attached) <= 1e-5
