"""Every kind of adapter trains, is stored as what it is, and loads in PEFT as what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapterhub.base import BaseModel, read_base
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.evaluate.models import load_tokenizer
from adapterhub.evaluate.scoring import score
from adapterhub.store import Store
from adapterhub.trainer.data import load_corpus, tokenize
from adapterhub.trainer.methods import resolve_targets
from adapterhub.trainer.model import (
    choose_device,
    count_parameters,
    load_for_training,
    meta_model,
    scoring_mode,
)
from adapterhub.trainer.recipe import load_recipe
from tests.support.chat import chat_base

if TYPE_CHECKING:
    from tests.trainer.conftest import Training

Write = Callable[..., Path]
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "rslora": ({"use_rslora": True}, "lora"),
    "dora": ({"kind": "dora"}, "dora"),
    "qdora": ({"kind": "dora", "method": "qlora"}, "dora"),
    "loraplus": ({"loraplus_ratio": 4, "learning_rate": 2e-3}, "lora"),
    "pissa": ({"init": "pissa", "learning_rate": 2e-3}, "lora"),
    "olora": ({"init": "olora", "use_rslora": True, "learning_rate": 2e-3}, "lora"),
    "adalora": ({"kind": "adalora", "learning_rate": 2e-2}, "adalora"),
    "ia3": ({"kind": "ia3", "learning_rate": 5e-2}, "ia3"),
    "neftune": ({"neftune_alpha": 5}, "lora"),
    "8bit": ({"optimizer": "adamw_8bit"}, "lora"),
}


# PEFT 0.21 warns of every rank_pattern that AdaLoRA itself writes, and loads it all the same
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_learns_and_peft_loads_what_was_scored(
    name: str, train_tiny: Training, write_recipe: Write, store: Store, base: Path
) -> None:
    changes, kind = KINDS[name]
    trained = train_tiny(**changes)
    manifest = store.resolve("paint").manifest
    assert manifest.kind == kind
    held_out = trained.metrics["held_out"]
    assert held_out["loss_after"] < held_out["loss_before"] - 0.05

    recipe = load_recipe(write_recipe(**changes))
    rows = tokenize(recipe, load_corpus(recipe), load_tokenizer(base), base).held_out.rows
    view = store.view(trained.digest)
    config = json.loads((view / "adapter_config.json").read_text())
    assert config.get("init_lora_weights", True) is True
    if recipe.method == "lora":  # on the base as it is on disk, whatever the factors began as
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        loaded = PeftModel.from_pretrained(plain, str(view)).eval()
        assert score(loaded, rows).loss == pytest.approx(held_out["loss_after"], rel=2e-5)
    dtypes = {value.dtype for value in load_file(view / "adapter_model.safetensors").values()}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("changes", [{}, {"method": "qlora"}, {"kind": "dora"}, {"kind": "ia3"}, {"kind": "adalora"},
                                     {"init": "pissa"}, {"init": "olora"}], ids=str)  # fmt: skip
def test_before_the_first_step_the_model_is_the_base_and_only_the_adapter_learns(
    changes: dict[str, Any], write_recipe: Write, base: Path
) -> None:
    recipe = load_recipe(write_recipe(**changes))
    model = load_for_training(recipe, read_base(base), choose_device(), steps=10)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad(), scoring_mode(model):
        adapted = model(input_ids=ids).logits
        if recipe.method == "lora":
            plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
            expected = plain(input_ids=ids).logits
        else:
            with model.disable_adapter():
                expected = model(input_ids=ids).logits
    if recipe.init == "default":
        torch.testing.assert_close(adapted, expected, rtol=0, atol=2e-6)
    else:  # part of the base moved into the factors and back
        torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-4)
    assert all(
        any(word in name for word in ("lora_", "ia3_"))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )


def test_pissa_comes_back_as_twice_the_rank_on_the_unchanged_base(
    train_tiny: Training, store: Store
) -> None:
    train_tiny(init="pissa", learning_rate=2e-3)
    lora = store.resolve("paint").manifest.lora
    assert lora is not None
    assert (lora.rank, lora.alpha) == (16, 32)


def test_an_adapter_is_trained_on_from_where_it_was(train_tiny: Training, store: Store) -> None:
    first = train_tiny(name="first", use_rslora=True)
    second = train_tiny(name="second", start_from="first", rank=4, steps=6)
    assert second.metrics["held_out"]["loss_before"] == pytest.approx(
        first.metrics["held_out"]["loss_after"], rel=1e-5
    )
    lora = store.resolve("second").manifest.lora
    assert lora is not None
    assert (lora.rank, lora.use_rslora) == (8, True)  # the adapter's own shape, not the recipe's
    (body,) = [a.body for a in store.attestations(second.digest) if a.type == "provenance"]
    assert body["parents"] == [{"name": "first", "digest": first.digest}]
    assert body["recipe"]["rank"] == 8


def test_an_adapter_of_another_base_is_not_trained_on(
    train_tiny: Training, store: Store, tmp_path: Path
) -> None:
    train_tiny(name="first", steps=1)
    other = chat_base(tmp_path / "other", seed=1)
    with pytest.raises(IncompatibleError, match="doesn't fit"):
        train_tiny(start_from="first", base=str(other))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("all-linear", "all-linear"),
        ("qkvo", ["k_proj", "o_proj", "q_proj", "v_proj"]),
        ("qv", ["q_proj", "v_proj"]),
        (["q_proj", "down_proj"], ["q_proj", "down_proj"]),
    ],
)
def test_target_presets_find_their_layers(
    wanted: Any, found: Any, write_recipe: Write, base: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    assert resolve_targets(load_recipe(write_recipe(target_modules=wanted)), model) == found


def test_fused_attention_is_found_too(write_recipe: Write) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    assert resolve_targets(load_recipe(write_recipe(target_modules="qv")), model) == ["c_attn"]
    both = resolve_targets(load_recipe(write_recipe(target_modules="qkvo")), model)
    assert both == ["c_attn", "c_proj"]


def test_a_model_without_known_layers_says_so(write_recipe: Write) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(UsageError, match="no layers that are known as qv") as caught:
        resolve_targets(load_recipe(write_recipe(target_modules="qv")), model)
    assert "in_proj" in caught.value.hint


@pytest.mark.parametrize(
    ("targets", "trainable"), [("all-linear", 39_976_960), ("qkvo", 16_777_216)]
)
def test_parameters_of_llama_7b_are_the_known_ones(
    targets: str, trainable: int, write_recipe: Write, tmp_path: Path
) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path / "llama")  # fmt: skip
    base = BaseModel(tmp_path / "llama", "huggyllama/llama-7b", None, {}, {})
    recipe = load_recipe(write_recipe(rank=16, target_modules=targets))
    assert count_parameters(meta_model(recipe, base))[0] == trainable
