"""What a merge can't honour it refuses by name, and the store is then as it was. Nothing is dropped silently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from adapterhub.errors import (
    AdapterHubError,
    FormatError,
    IncompatibleError,
    StoreDamagedError,
    UnsupportedError,
    UsageError,
)
from adapterhub.merge.recipe import make_recipe
from tests.merge.conftest import state
from tests.support.adapters import QV

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
MORE_THAN_LORA: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": (
        {"use_dora": True, "extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}},
        "DoRA",
    ),
    "DoRA whose flag was lost": (
        {"extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}},
        "q_proj.lora_magnitude_vector",
    ),
    "DoRA of another PEFT": (
        {"use_dora": True, "extra": {f"{PREFIX}.lora_magnitude_vector.weight": torch.ones(64)}},
        "DoRA",
    ),
    "lora_bias": (
        {"lora_bias": True, "extra": {f"{PREFIX}.lora_B.bias": torch.ones(64)}},
        "lora_bias",
    ),
    "AdaLoRA": (
        {"peft_type": "ADALORA", "extra": {f"{PREFIX}.lora_E": torch.ones(4, 1)}},
        "ADALORA",
    ),
    "IA3": (
        {"peft_type": "IA3", "extra": {f"{PREFIX}.ia3_l": torch.ones(64, 1)}},
        "IA3",
    ),
    "a convolution": (
        {
            "extra": {
                "base_model.model.conv.lora_A.weight": torch.ones(4, 3, 3, 3),
                "base_model.model.conv.lora_B.weight": torch.ones(8, 4, 1, 1),
            }
        },
        "conv.lora_A",
    ),
    "trainable tokens": (
        {"trainable_token_indices": [1, 2], "extra": {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 64)}},
        "trainable",
    ),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    "layer replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layer replication"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, "aLoRA"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE_THAN_LORA)
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_more_than_a_plain_lora_is_kept_but_not_merged(
    merger: Merger, kind: str, method: str
) -> None:
    settings, named = MORE_THAN_LORA[kind]
    odd = merger.add(merger.adapter(**settings))
    plain = merger.add(merger.adapter(seed=1))
    before = state(merger.store)
    with pytest.raises(UnsupportedError) as caught:
        merger.of([plain, odd], method)
    assert named.lower() in str(caught.value).lower()
    assert odd.label in caught.value.what
    assert state(merger.store) == before


WHOLE: dict[str, tuple[dict[str, Any], str]] = {
    "modules_to_save": (
        {"modules_to_save": ["lm_head"], "extra": {"base_model.model.lm_head.weight": torch.ones(160, 64)}},
        "lm_head.weight",
    ),
    "modules_to_save that the configuration doesn't name": (
        {"extra": {"base_model.model.score.modules_to_save.default.weight": torch.ones(2, 64)}},
        "score.weight",
    ),
    "bias": (
        {"bias": "lora_only", "extra": {f"{PREFIX}.bias": torch.ones(64)}},
        "q_proj.bias",
    ),
    "bias in PEFT's base_layer": (
        {"bias": "all", "extra": {f"{PREFIX}.base_layer.bias": torch.ones(64)}},
        "q_proj.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_whole_weights_are_not_merged_where_the_base_they_need_is_not_here(
    merger: Merger, kind: str, method: str
) -> None:
    settings, named = WHOLE[kind]
    parents = [merger.add(merger.adapter(seed=1)), merger.add(merger.adapter(**settings))]
    before = state(merger.store)
    with pytest.raises(UsageError) as caught:
        merger.of(parents, method)
    assert named in caught.value.what
    assert "org/tiny" in caught.value.why
    assert all(flag in caught.value.hint for flag in ("--base", "--saved-from"))
    assert state(merger.store) == before


def test_modules_of_one_name_and_other_shapes_are_refused(merger: Merger) -> None:
    other = {module: (out + 8, width) for module, (out, width) in QV.items()}
    with pytest.raises(IncompatibleError, match=r"q_proj.*\[64, 64\].*\[72, 64\]") as caught:
        merger([merger.adapter(), merger.adapter(modules=other)])
    assert caught.value.exit_code == 5


def test_a_result_that_overflows_its_dtype_is_refused_in_words_about_the_merge(
    merger: Merger,
) -> None:
    parents = [
        merger.add(merger.adapter(dtype="float16", seed=seed, scale=1.0)) for seed in range(2)
    ]
    before = state(merger.store)
    with pytest.raises(FormatError) as caught:
        merger.of(parents, weights=[1e12, 1e12], dtype=None)
    text = str(caught.value)
    assert "checkpoint of that training" not in text, (
        "the parents are sound: the weights are too large"
    )
    assert "float16" in text
    assert state(merger.store) == before


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_parent_that_changed_in_the_store_is_not_merged(merger: Merger, file: str) -> None:
    parent = merger.add(merger.adapter())
    entry = parent.manifest.file(file)
    assert entry is not None
    path = merger.store.blobs.path(entry.digest)
    data = path.read_bytes()
    path.chmod(0o644)
    # Sound, of the same length, and another adapter: alpha 8 becomes 9, or one weight changes its sign.
    changed = (
        data.replace(b'"lora_alpha": 8', b'"lora_alpha": 9')
        if file.endswith("json")
        else data[:-1] + bytes([data[-1] ^ 0x80])
    )
    assert changed != data
    assert len(changed) == len(data)
    path.write_bytes(changed)
    with pytest.raises(StoreDamagedError) as caught:
        merger.of([parent])
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": [1.0]},
        {"weights": [1.0, 1.0, 1.0]},
        {"weights": [1.0, float("nan")]},
        {"rank": 0},
        {"rank": "all"},
        {"rank": -3},
        {"rank": 2.5},
        {"dtype": "int8"},
        {"density": 0.5},
    ],
)
def test_a_recipe_that_makes_no_sense_is_a_usage_error(
    merger: Merger, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        merger([merger.adapter(), merger.adapter(seed=1)], "linear", **wrong)
    assert caught.value.exit_code == 2


def test_an_unknown_method_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="linear"):
        make_recipe("linaer", ["sha256:" + "0" * 64])


def test_two_spellings_of_one_module_are_not_merged_as_two(merger: Merger) -> None:
    # Trained on LlamaModel, a module is layers.0...; on LlamaForCausalLM it is model.layers.0...  A file with both names
    # loads without a word in PEFT, which then leaves one of them out.
    one = merger.adapter(modules={"model.layers.0.self_attn.q_proj": (64, 64)})
    two = merger.adapter(modules={"layers.0.self_attn.q_proj": (64, 64)}, seed=1)
    with pytest.raises(AdapterHubError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        merger([one, two])
