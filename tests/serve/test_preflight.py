"""What vLLM would refuse half a minute later, or serve wrongly and say nothing, is refused by name before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.errors import IncompatibleError, UnsupportedError
from adapterhub.serve.plan import make_plan
from adapterhub.store import Store
from tests.support.adapters import QV, random_factors

Add = Callable[..., str]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True, "extra": {f"{Q}.lora_magnitude_vector": torch.ones(64)}}, "DoRA"),
        ({"extra": {f"{Q}.lora_magnitude_vector": torch.ones(64)}}, "magnitudes"),
        ({"bias": "lora_only", "extra": {f"{Q}.bias": torch.ones(64)}}, "trained biases"),
        ({"bias": "all"}, 'bias: "all"'),
        ({"bias": None}, "bias: null"),
        (
            {
                "modules_to_save": ["lm_head"],
                "extra": {"base_model.model.lm_head.weight": torch.ones(160, 64)},
            },
            "whole trained modules (lm_head)",
        ),
        ({"modules_to_save": ["embed_tokens"]}, "whole trained modules (embed_tokens)"),
        ({"init_lora_weights": "pissa"}, "pissa initialisation"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank": 513}, "rank 513; vLLM serves 512 at most"),
        ({"lora_alpha": None}, "leaves out lora_alpha"),
        ({"target_modules": None}, "leaves out target_modules"),
    ],
)
def test_what_vllm_cannot_honour_is_refused_by_name(
    store: Store, add: Add, fields: dict[str, Any], said: str
) -> None:
    add("tone", **fields)
    with pytest.raises(UnsupportedError, match="tone can't be served") as caught:
        make_plan(store, ["tone"])
    assert said in caught.value.why
    assert caught.value.exit_code == 1


def test_another_kind_of_adapter_is_refused_by_its_kind(
    store: Store, base: Path, make_adapter: Callable[..., Path]
) -> None:
    folder = make_adapter(
        "ia3", peft_type="IA3", factors={}, extra={f"{Q}.ia3_l": torch.ones(64, 1)}
    )
    store.add_folder(folder, name="scaled")
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["scaled"])
    assert "Its kind is IA3" in caught.value.why


def test_a_trained_classification_head_is_no_problem(store: Store, add: Add) -> None:
    head = {"base_model.model.score.weight": torch.ones(3, 64)}
    add("sentiment", modules_to_save=["score"], extra=head)
    assert make_plan(store, ["sentiment"]).adapters[0].label == "sentiment"
    add("unnamed", extra=head, seed=1)  # vLLM takes the head only where modules_to_save names it
    with pytest.raises(UnsupportedError):
        make_plan(store, ["unnamed"])


def test_all_problems_of_all_adapters_come_at_once_and_a_wrong_base_decides_the_exit_code(
    store: Store, add: Add
) -> None:
    add("fine")
    add("both", use_dora=True, bias="all", seed=1)
    add("deep", factors=random_factors({"model.layers.9.self_attn.q_proj": (64, 64)}))
    with pytest.raises(IncompatibleError, match="2 of 3 adapters can't be served") as caught:
        make_plan(store, ["fine", "both", "deep"])
    both, deep = caught.value.why.split("\n")
    assert both.startswith("both:")
    assert "DoRA" in both
    assert 'bias: "all"' in both
    assert deep.strip().startswith("deep: it doesn't fit the base org/tiny: 1 of 1 modules")
    assert caught.value.exit_code == 5


def test_the_hint_serves_what_can_be_served(store: Store, add: Add) -> None:
    add("fine")
    add("dora", use_dora=True, seed=1)
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["fine", "dora"])
    assert caught.value.hint.endswith("adapterhub serve fine")


def test_allow_mismatch_does_not_allow_what_vllm_cannot_honour(store: Store, add: Add) -> None:
    add("dora", use_dora=True)
    with pytest.raises(UnsupportedError):
        make_plan(store, ["dora"], allow_mismatch=True)


@pytest.mark.parametrize("fields", [{"factors": None}, {"alpha": 0}])
def test_an_adapter_that_changes_nothing_is_served_with_a_remark(
    store: Store, add: Add, fields: dict[str, Any]
) -> None:
    if "factors" in fields:
        silent = {name: (np.zeros_like(b), a) for name, (b, a) in random_factors(QV).items()}
        fields = {"factors": silent}
    add("noop", **fields)
    (adapter,) = make_plan(store, ["noop"]).adapters
    assert any("changes nothing" in remark for remark in adapter.remarks)


def test_an_adapter_with_an_effect_and_a_known_base_needs_no_remark(
    store: Store, base: Path, make_adapter: Callable[..., Path]
) -> None:
    store.add_folder(make_adapter("tone"), name="tone", base=str(base))
    assert make_plan(store, ["tone"]).adapters[0].remarks == ()
