"""Module names in words."""

from __future__ import annotations

import pytest

from adapterhub.compare.places import columns_of, in_words, place_of, stack_names
from tests.support.adapters import llama_modules

LLAMA = [place_of(module) for module in llama_modules(layers=range(32))]


@pytest.mark.parametrize(
    ("module", "stack", "layer", "column", "part"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers", 3, "q_proj", "attention"),
        ("model.layers.3.mlp.experts.7.up_proj", "model.layers", 3, "up_proj", "MLP"),
        ("transformer.h.0.attn.c_proj", "transformer.h", 0, "c_proj", "attention"),
        ("transformer.h.0.mlp.c_proj", "transformer.h", 0, "c_proj", "MLP"),
        ("bert.encoder.layer.2.intermediate.dense", "bert.encoder.layer", 2, "dense", "MLP"),
        ("blocks.1.w2", "blocks", 1, "w2", "MLP"),
        ("blocks.1.wq", "blocks", 1, "wq", "attention"),
        ("lm_head", "", None, "lm_head", "other"),
        ("model.embed_tokens", "", None, "embed_tokens", "other"),
        ("0.q_proj", "", None, "q_proj", "attention"),
        ("model.layers.3", "", None, "3", "other"),
        ("a." + "9" * 4000 + ".q_proj", "", None, "q_proj", "attention"),
        ("a.²." + "q_proj", "", None, "q_proj", "attention"),
    ],
)
def test_a_module_is_found_in_its_layer(
    module: str, stack: str, layer: int | None, column: str, part: str
) -> None:
    place = place_of(module)
    assert (place.stack, place.layer, place.column, place.part) == (stack, layer, column, part)


def _in(modules: dict[str, tuple[int, int]]) -> str:
    return in_words([place_of(module) for module in modules], LLAMA)


def test_many_modules_are_said_in_few_words() -> None:
    mlp, attention = ("gate_proj", "up_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "o_proj")
    assert _in(llama_modules(*mlp, layers=range(20, 29))) == "the MLPs of layers 20-28"
    assert _in(llama_modules(*attention, layers=range(32))) == "attention of all layers"
    assert _in(llama_modules(layers=[4])) == "attention and the MLPs of layer 4"
    assert _in(llama_modules("down_proj", layers=[1, 2, 9])) == "down_proj of layers 1-2 and 9"
    assert _in(llama_modules("q_proj", "k_proj", layers=[7])) == "attention of layer 7"
    assert _in(llama_modules("q_proj", layers=range(0, 32, 2))) == "q_proj of 16 of the layers 0-30"
    mixed = llama_modules(*mlp, layers=[5]) | llama_modules("v_proj", layers=[6])
    assert _in(mixed) == "the MLPs of layer 5 and v_proj of layer 6"


def test_modules_outside_of_layers_and_several_stacks_are_named() -> None:
    names = [
        "lm_head",
        *(f"model.{s}.layers.{n}.fc1" for s in ("encoder", "decoder") for n in (0, 1)),
    ]
    places = [place_of(name) for name in names]
    assert in_words(places[:2], places) == "fc1 of layer 0 of encoder and lm_head"
    assert stack_names({"model.encoder.layers", "model.decoder.layers"}) == {
        "model.decoder.layers": "decoder",
        "model.encoder.layers": "encoder",
    }


def test_columns_come_in_the_order_of_a_forward_pass_with_names_of_their_own() -> None:
    assert list(columns_of(LLAMA).values()) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    gpt2 = [f"h.0.{inner}" for inner in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert list(columns_of(map(place_of, gpt2)).values()) == [
        "c_attn", "attn.c_proj", "c_fc", "mlp.c_proj",
    ]  # fmt: skip
