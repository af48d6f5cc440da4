"""The grammar of tensor names: every dialect of one tensor has one canonical spelling, and that one PEFT can read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.formats.keys import Key, parse_key

LAYER = "model.layers.0.self_attn.q_proj"
WEIGHTED = ("lora_A", "lora_B", "lora_magnitude_vector")
BARE = ("lora_embedding_A", "lora_embedding_B", "lora_E", "lora_ranknum", "ia3_l")
segments = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8).filter(
    lambda s: (
        s not in ("weight", "bias", "module", "modules_to_save", *WEIGHTED, *BARE) and s[0] != "_"
    )
)
modules = st.lists(segments, min_size=1, max_size=6).map(".".join)
wrappers = st.sampled_from(["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])


@given(modules, st.sampled_from(WEIGHTED))
def test_what_peft_writes_is_its_own_spelling(module: str, role: str) -> None:
    name = f"base_model.model.{module}.{role}.weight"
    key = parse_key(name)
    assert (key.module, key.role, key.leaf) == (module, role, "weight")
    assert key.peft == name


@given(modules, st.sampled_from(BARE))
def test_bare_parameters_have_no_leaf(module: str, role: str) -> None:
    assert (
        parse_key(f"base_model.model.{module}.{role}").peft == f"base_model.model.{module}.{role}"
    )


@given(
    modules,
    st.sampled_from(WEIGHTED + BARE),
    segments,
    st.booleans(),
    st.booleans(),
    st.lists(wrappers, max_size=2),
    st.data(),
)
def test_every_dialect_of_a_tensor_has_one_spelling(
    module: str,
    role: str,
    adapter: str,
    named: bool,
    prefixed: bool,
    around: list[str],
    data: st.DataObject,
) -> None:
    """The adapter's name, wrappers anywhere in the path, DistributedDataParallel's `module.`, the prefix left out."""
    parts = module.split(".")
    for wrapper in around:
        parts.insert(data.draw(st.integers(0, len(parts))), wrapper)
    leaf = ".weight" if role in WEIGHTED else ""
    name = ".".join(parts) + f".{role}" + (f".{adapter}" if named else "") + leaf
    if prefixed:
        name = "base_model.model." + name
        if data.draw(st.booleans()):
            name = "module." + name
    assert parse_key(name).peft == f"base_model.model.{module}.{role}{leaf}"


@given(modules, st.sampled_from(WEIGHTED + BARE))
def test_a_canonical_name_is_its_own_canonical_name(module: str, role: str) -> None:
    canonical = parse_key(
        f"base_model.model.{module}.{role}" + (".weight" if role in WEIGHTED else "")
    ).canonical
    assert parse_key(canonical).canonical == canonical
    assert parse_key("base_model.model." + canonical).canonical == canonical


@given(st.text(max_size=60) | st.text("a.lor_ABdefult", max_size=60))
def test_any_text_is_a_key_of_some_kind(name: str) -> None:
    key = parse_key(name)
    assert parse_key(key.peft).canonical == key.canonical


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (f"base_model.model.{LAYER}.lora_A.weight", Key(LAYER, "lora_A", "weight")),
        (f"base_model.model.{LAYER}.lora_A.default.weight", Key(LAYER, "lora_A", "weight")),
        (f"base_model.model.{LAYER}.lora_B.my_adapter.bias", Key(LAYER, "lora_B", "bias")),
        (f"{LAYER}.lora_B.weight", Key(LAYER, "lora_B", "weight")),
        (f"_orig_mod.base_model.model.{LAYER}.lora_B.weight", Key(LAYER, "lora_B", "weight")),
        (f"base_model.model._orig_mod.{LAYER}.lora_B.weight", Key(LAYER, "lora_B", "weight")),
        (f"module.base_model.model.{LAYER}.lora_B.weight", Key(LAYER, "lora_B", "weight")),
        (
            "down_blocks.0.attentions.0.to_k.lora_A.weight",
            Key("down_blocks.0.attentions.0.to_k", "lora_A", "weight"),
        ),
        ("base_model.model.embed.lora_embedding_A", Key("embed", "lora_embedding_A", "")),
        ("base_model.model.embed.lora_embedding_A.default", Key("embed", "lora_embedding_A", "")),
        (
            f"base_model.model.{LAYER}.lora_magnitude_vector",
            Key(LAYER, "lora_magnitude_vector", ""),
        ),
        (
            f"base_model.model.{LAYER}.lora_magnitude_vector.default.weight",
            Key(LAYER, "lora_magnitude_vector", "weight"),
        ),
        (f"base_model.model.{LAYER}.base_layer.bias", Key(f"{LAYER}.base_layer", "full", "bias")),
        ("base_model.model.score.weight", Key("score", "full", "weight")),
        ("base_model.model.score.modules_to_save.weight", Key("score", "full", "weight")),
        ("base_model.model.score.modules_to_save.default.weight", Key("score", "full", "weight")),
        ("base_model.model.score.modules_to_save.default.bias", Key("score", "full", "bias")),
        # A saved module of several layers (RoBERTa's classification head); PEFT itself writes classifier.dense.weight.
        ("base_model.model.classifier.dense.weight", Key("classifier.dense", "full", "weight")),
        (
            "base_model.model.classifier.modules_to_save.default.dense.weight",
            Key("classifier.dense", "full", "weight"),
        ),
    ],
)
def test_known_dialects(name: str, key: Key) -> None:
    assert parse_key(name) == key


def test_a_module_that_is_called_like_a_role_stays_a_module() -> None:
    assert parse_key("base_model.model.lora_A.q.lora_A.weight") == Key(
        "lora_A.q", "lora_A", "weight"
    )
