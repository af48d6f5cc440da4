"""A PEFT folder judged: modules and scales, everything else kept and named, one content whatever the key dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.errors import FormatError, UnsupportedError
from adapterhub.formats.peft import AdapterFacts, read_facts, require_plain, scan_values
from adapterhub.formats.safetensors import TensorFile
from tests.support.adapters import EMBEDDING, QV, AdapterMaker

Q = "model.layers.0.self_attn.q_proj"


def judge(folder: Path) -> tuple[AdapterFacts, str, list[str]]:
    with TensorFile(folder / "adapter_model.safetensors") as weights:
        facts = read_facts(folder / "adapter_config.json", weights)
        content, notes = scan_values(facts, weights)
    return facts, content, [*facts.notes, *notes]


def rewritten(folder: Path, change: Any, **config: Any) -> Path:
    """Another folder beside `folder`, its tensors replaced by what `change` makes of them."""
    target = folder.with_name(f"{folder.name}-changed-{len(list(folder.parent.iterdir()))}")
    target.mkdir()
    document = json.loads((folder / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**document, **config}))
    save_file(
        change(load_file(folder / "adapter_model.safetensors")),
        target / "adapter_model.safetensors",
    )
    return target


def renamed(before: str, after: str) -> Any:
    return lambda tensors: {name.replace(before, after): tensor for name, tensor in tensors.items()}


def added(**tensors: torch.Tensor) -> Any:
    return lambda old: {
        **old,
        **{name.replace("__", "."): tensor for name, tensor in tensors.items()},
    }


def test_modules_ranks_and_scales_come_from_config_and_tensors_together(
    make_adapter: AdapterMaker,
) -> None:
    facts, _, notes = judge(
        make_adapter(rank=4, alpha=8, rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 3})
    )
    assert facts.kind == "lora"
    assert {name.rpartition(".")[2]: (m.rank, m.scaling) for name, m in facts.modules.items()} == {
        "q_proj": (4, 2.0),
        "v_proj": (2, 1.5),
    }
    assert facts.modules[Q].in_features == 64
    assert facts.modules[Q].out_features == 64
    assert facts.standard_names
    assert (facts.dtype, notes, facts.beyond_lora()) == ("float32", [], [])
    lora = facts.lora()
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.targets, lora.modules) == (4, 8, ["q_proj", "v_proj"], 4)
    assert lora.parameters == facts.parameters == sum(m.parameters for m in facts.modules.values())


DIALECTS = {
    "named adapter": renamed(".weight", ".default.weight"),
    "torch.compile": renamed("base_model.", "_orig_mod.base_model."),
    "compiled inside": renamed("model.layers", "_orig_mod.model.layers"),
    "FSDP": renamed("self_attn", "_fsdp_wrapped_module.self_attn"),
    "activation checkpointing": renamed("self_attn", "_checkpoint_wrapped_module.self_attn"),
    "DistributedDataParallel": renamed("base_model.", "module.base_model."),
    "no prefix": renamed("base_model.model.", ""),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_has_the_same_modules_and_content(
    dialect: str, make_adapter: AdapterMaker
) -> None:
    plain = make_adapter()
    facts, content, _ = judge(plain)
    other, same_content, _ = judge(rewritten(plain, DIALECTS[dialect]))
    assert other.modules.keys() == facts.modules.keys()
    assert same_content == content
    assert not other.standard_names


def test_the_content_is_that_of_values_names_and_dtype(make_adapter: AdapterMaker) -> None:
    plain = make_adapter()
    contents = [
        judge(rewritten(plain, change))[1]
        for change in (
            lambda tensors: tensors,
            lambda tensors: {
                name: tensor + (tensor == tensor.max()) * 1e-7 for name, tensor in tensors.items()
            },
            lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()},
            renamed("layers.0", "layers.2"),
        )
    ]
    assert contents[0] == judge(plain)[1]
    assert len(set(contents)) == 4


def test_a_config_is_no_part_of_the_content(make_adapter: AdapterMaker) -> None:
    plain = make_adapter()
    assert (
        judge(
            rewritten(plain, lambda tensors: tensors, lora_alpha=99, base_model_name_or_path=None)
        )[1]
        == judge(plain)[1]
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_dtype_is_named(dtype: str, make_adapter: AdapterMaker) -> None:
    assert judge(make_adapter(dtype=dtype))[0].dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "float8_e4m3fn"), (torch.float8_e5m2, "float8_e5m2")]
)
def test_float8_is_read(dtype: torch.dtype, name: str, make_adapter: AdapterMaker) -> None:
    folder = rewritten(
        make_adapter(), lambda tensors: {key: value.to(dtype) for key, value in tensors.items()}
    )
    assert judge(folder)[0].dtype == name


def test_dtypes_that_differ_are_mixed(make_adapter: AdapterMaker) -> None:
    folder = rewritten(
        make_adapter(), lambda t: {k: v.bfloat16() if "lora_A" in k else v for k, v in t.items()}
    )
    assert judge(folder)[0].dtype == "mixed"


def test_an_embedding_is_transposed_and_conv1d_too(make_adapter: AdapterMaker) -> None:
    embedding = judge(make_adapter("e", modules=EMBEDDING))[0].modules["model.embed_tokens"]
    assert (embedding.embedding, embedding.transposed) == (True, True)
    conv1d = judge(make_adapter("c", fan_in_fan_out=True))[0].modules[Q]
    assert (conv1d.embedding, conv1d.transposed) == (False, True)


KEPT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a saved head": (
        added(base_model__model__score__weight=torch.ones(2, 64)),
        {"modules_to_save": ["score"]},
        "whole trained weights (modules_to_save): score.weight",
    ),
    "a saved head that modules_to_save doesn't name": (
        added(base_model__model__score__weight=torch.ones(2, 64)),
        {},
        "whole trained weights (modules_to_save): score.weight",
    ),
    "the bias of a saved head": (
        added(base_model__model__score__bias=torch.ones(2)),
        {"modules_to_save": ["score"]},
        "whole trained weights (modules_to_save): score.bias",
    ),
    "biases": (
        added(base_model__model__model__layers__0__self_attn__q_proj__bias=torch.ones(64)),
        {"bias": "all"},
        f"trained biases: {Q}.bias",
    ),
    "magnitudes of DoRA": (
        added(
            base_model__model__model__layers__0__self_attn__q_proj__lora_magnitude_vector=torch.ones(
                64
            )
        ),
        {"use_dora": True},
        "DoRA",
    ),
    "magnitudes without use_dora": (
        added(
            base_model__model__model__layers__0__self_attn__q_proj__lora_magnitude_vector=torch.ones(
                64
            )
        ),
        {},
        "magnitude",
    ),
    "a bias of lora_B": (
        added(base_model__model__model__layers__0__self_attn__q_proj__lora_B__bias=torch.ones(64)),
        {"lora_bias": True},
        "lora_bias",
    ),
    "a convolution": (
        added(
            base_model__model__conv__lora_A__weight=torch.ones(4, 3, 3, 3),
            base_model__model__conv__lora_B__weight=torch.ones(8, 4, 1, 1),
        ),
        {},
        "no low-rank pair: conv.lora_A.weight, conv.lora_B.weight",
    ),
    "factors of three dimensions (enable_lora)": (
        added(
            base_model__model__h__lora_A__weight=torch.ones(16, 1024),
            base_model__model__h__lora_B__weight=torch.ones(2048, 8, 1),
        ),
        {"enable_lora": [True, False, True]},
        "enable_lora",
    ),
    "PiSSA": (lambda tensors: tensors, {"init_lora_weights": "pissa"}, "pissa"),
    "a tensor nobody knows": (
        added(base_model__model__router__gate=torch.ones(3)),
        {},
        "router.gate",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_more_than_lora_is_kept_named_and_refused_by_name(
    case: str, make_adapter: AdapterMaker
) -> None:
    change, config, words = KEPT[case]
    facts, _, _ = judge(rewritten(make_adapter(), change, **config))
    assert words in "; ".join(facts.beyond_lora())
    with pytest.raises(UnsupportedError) as caught:
        require_plain(facts, "tone", "merged")
    assert "tone can't be merged" in caught.value.what
    assert words in caught.value.why
    assert "adapterhub show tone" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("LOHA", "hada_w1_a"),
        ("LOKR", "lokr_w1"),
        ("IA3", "ia3_l"),
        ("OFT", "oft_R.weight"),
        ("VERA", "vera_lambda_b"),
        ("ADALORA", "lora_E"),
        ("FUTURE_KIND", "whatever"),
    ],
)
def test_other_kinds_are_kept_and_refused_by_their_name(
    kind: str, tensor: str, make_adapter: AdapterMaker
) -> None:
    folder = rewritten(
        make_adapter(),
        lambda _: {f"base_model.model.{Q}.{tensor}": torch.ones(2, 2)},
        peft_type=kind,
    )
    facts, _, _ = judge(folder)
    assert facts.kind == kind.lower()
    assert facts.modules == {}
    with pytest.raises(UnsupportedError, match=kind):
        require_plain(facts, "tone", "merged")


def test_prompt_tuning_has_no_modules_and_its_tensor_is_named(make_adapter: AdapterMaker) -> None:
    folder = rewritten(
        make_adapter(),
        lambda _: {"prompt_embeddings": torch.ones(8, 64)},
        peft_type="PROMPT_TUNING",
    )
    facts, _, _ = judge(folder)
    assert facts.lora() is None
    assert "prompt_embeddings" in "; ".join(facts.beyond_lora())


NOTES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "every B zero": (
        lambda t: {k: v * (0 if "lora_B" in k else 1) for k, v in t.items()},
        {},
        "every lora_B is zero",
    ),
    "some B zero": (
        lambda t: {k: v * (0 if "layers.0" in k and "lora_B" in k else 1) for k, v in t.items()},
        {},
        "lora_B is zero in 2 of 4 modules",
    ),
    "every A zero": (
        lambda t: {k: v * (0 if "lora_A" in k else 1) for k, v in t.items()},
        {},
        "changes nothing",
    ),
    "alpha 0": (lambda t: t, {"lora_alpha": 0}, "alpha is 0"),
    "a target without tensors": (
        lambda t: t,
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        "targets k_proj",
    ),
    "a path for a base": (
        lambda t: t,
        {"base_model_name_or_path": "/content/gemma"},
        "given as a path (/content/gemma)",
    ),
    "no base": (lambda t: t, {"base_model_name_or_path": None}, "doesn't say which base"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_a_person_should_know_is_said_out_loud(case: str, make_adapter: AdapterMaker) -> None:
    change, config, words = NOTES[case]
    assert words in "; ".join(judge(rewritten(make_adapter(), change, **config))[2])


def test_two_adapters_in_one_file_are_refused(make_adapter: AdapterMaker) -> None:
    folder = rewritten(
        make_adapter(),
        lambda t: {
            k.replace(".weight", f".{n}.weight"): v.clone() for k, v in t.items() for n in "ab"
        },
    )
    with pytest.raises(FormatError, match=r"Two tensors are both .*q_proj\.lora_A\.weight"):
        judge(folder)


@pytest.mark.parametrize("equal", [True, False])
def test_a_whole_weight_saved_under_two_names_is_one(
    equal: bool, make_adapter: AdapterMaker
) -> None:
    """As PEFT saves a head that `modules_to_save` names when the vocabulary has grown."""
    head = torch.randn(9, 64)
    extra = {"base_model.model.lm_head.weight": head}
    single = judge(make_adapter("one", modules_to_save=["lm_head"], extra=extra))
    extra["base_model.model.lm_head.modules_to_save.weight"] = head.clone() if equal else head + 1
    folder = make_adapter("two", modules_to_save=["lm_head"], extra=extra)
    if not equal:
        with pytest.raises(FormatError, match=r"Two tensors are both lm_head\.weight"):
            judge(folder)
        return
    facts, content, notes = judge(folder)
    assert facts.saved == single[0].saved == ("lm_head.weight",)
    assert content == single[1], "the same adapter"
    assert "it holds lm_head.weight twice, with equal values" in notes


def test_plain_lora_passes(make_adapter: AdapterMaker) -> None:
    require_plain(judge(make_adapter(modules=QV))[0], "tone", "merged")
