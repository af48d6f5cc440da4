"""An exported model is base + ΔW: added in float32, rounded once, everything else byte for byte the base."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from adapterhub.errors import IncompatibleError
from tests.support.adapters import TORCH_DTYPES, llama_modules
from tests.support.attached import apart, attach, load, logits, tensors
from tests.support.dense import Deltas, norm, read_deltas, ties, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

SAY = logging.getLogger(__name__)  # seen with --log-cli-level=INFO


def check_changed(out: Path, base: Path, deltas: Deltas, *, conv1d: bool = False) -> None:
    """Each changed weight within one rounding of base + ΔW (float64), the rest byte-equal, and nothing else there."""
    before, after = tensors(base), tensors(out)
    assert after.keys() == before.keys()
    for name, weight in before.items():
        delta = deltas.get(name.removesuffix(".weight"))
        assert after[name].dtype == weight.dtype
        if delta is None:
            assert torch.equal(after[name].view(torch.uint8), weight.view(torch.uint8)), name
            continue
        exact = weight.double() + torch.from_numpy(delta.T.copy() if conv1d else delta)
        if weight.dtype == torch.float32:
            assert float((after[name].double() - exact).norm() / exact.norm()) <= 5e-7
        else:
            # Round half to even of float32(base) + delta. Where the float64 sum lies within float32's own rounding of
            # the middle between two values either is right; those are counted.
            rounded = exact.float().to(weight.dtype)
            wrong = after[name] != rounded
            middle = (after[name].double() + rounded.double()) / 2
            terms = weight.double().abs() + (exact - weight.double()).abs()
            assert ((middle - exact)[wrong].abs() <= 1e-6 * terms[wrong]).all()
            SAY.info("%d of %d elements of %s lie on the middle", wrong.sum(), wrong.numel(), name)
            assert int(wrong.sum()) <= 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_weight_is_the_rounded_sum_and_the_rest_is_untouched(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, dtype: str, sharded: bool
) -> None:
    base = tiny.llama(dtype=dtype, sharded=sharded)
    adapter = make_adapter(modules=llama_modules(), rank=6, use_rslora=True, scale=0.1)
    done = exporter([adapter], base)
    check_changed(done.folder, base, read_deltas(adapter))
    assert (done.tensors_changed, done.untied) == (14, False)
    assert {path.name for path in done.folder.glob("*.safetensors*")} == {
        path.name for path in base.glob("*.safetensors*")
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_float32_sums_rounded_once_to_the_bit(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, dtype: str
) -> None:
    base = tiny.llama(dtype=dtype)
    # A rank of one with powers of two in A: B·A is exact in float32, so the sum has one right value.
    random = torch.Generator().manual_seed(0)
    factors = {
        module: (
            torch.randn(out, 1, generator=random).numpy(),
            (2.0 ** torch.randint(-6, 0, (1, width), generator=random)).numpy(),
        )
        for module, (out, width) in llama_modules().items()
    }
    adapter = make_adapter(factors=factors, rank=1, alpha=0.5)
    out = exporter([adapter], base).folder
    before, after, deltas = tensors(base), tensors(out), read_deltas(adapter)
    for module, delta in deltas.items():
        expected = (before[f"{module}.weight"].float() + torch.from_numpy(delta).float()).to(
            TORCH_DTYPES[dtype]
        )
        assert torch.equal(after[f"{module}.weight"], expected), module


@pytest.mark.parametrize("sharded", [False, True])
def test_export_equals_pefts_own_merge_and_the_attached_adapter(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Callable[..., Path], sharded: bool
) -> None:
    base = tiny.llama(sharded=sharded)
    adapter = make_peft_adapter(
        base,
        r=4,
        lora_alpha=16,
        targets="all-linear",
        rank_pattern={"up_proj": 9},
        strength=0.2,
        use_rslora=True,
    )
    out = exporter([adapter], base).folder
    by_peft = attach(load(base), adapter).merge_and_unload()
    ours = tensors(out)
    for name, weight in by_peft.state_dict().items():
        assert float((ours[name] - weight).norm() / weight.norm()) <= 1e-6, name
    assert apart(logits(load(out)), logits(attach(load(base), adapter))) <= 1e-5
    assert apart(logits(load(out)), logits(load(base))) > 1e-2


def test_a_bf16_export_speaks_as_the_attached_adapter_within_rounding(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> None:
    base = tiny.llama(dtype="bfloat16")
    adapter = make_peft_adapter(base, r=8, targets="all-linear", strength=0.1, dtype="bfloat16")
    out = exporter([adapter], base).folder
    exported, attached = logits(load(out)), logits(attach(load(base), adapter))
    assert apart(exported, attached) <= 0.03  # 2^-8 a weight, gathered over two layers
    assert apart(logits(load(base)), attached) > 10 * apart(exported, attached)


@pytest.mark.parametrize("scope", ["model", "module"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_adapters_with_ties_go_in_untruncated(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, scope: str, dtype: str
) -> None:
    base = tiny.llama(dtype=dtype)
    adapters = [
        make_adapter("a", modules=llama_modules("q_proj", "up_proj"), scale=0.2),
        make_adapter("b", modules=llama_modules("q_proj", "down_proj"), rank=9, seed=1, scale=0.2),
        make_adapter("c", modules=llama_modules("q_proj"), rank=2, seed=2, scale=0.2),
    ]
    parents = [read_deltas(adapter) for adapter in adapters]
    expected = ties(parents, [1, 1.5, -1], density=0.25, factor=0.8, scope=scope, tolerance=1e-6)
    assert expected.count == 0, "choose other seeds: an element lies at a threshold"
    parameters: dict[str, Any] = {"density": 0.25, "lambda": 0.8, "trim_scope": scope}
    done = exporter(adapters, base, "ties", weights=[1, 1.5, -1], **parameters)
    check_changed(done.folder, base, expected.merged)


def test_several_adapters_with_linear_are_the_weighted_sum(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    adapters = [make_adapter(f"a{seed}", seed=seed, rank=3 + seed) for seed in range(3)]
    done = exporter(adapters, tiny_llama, weights=[1, -0.5, 2])
    check_changed(
        done.folder, tiny_llama, weighted_sum([read_deltas(a) for a in adapters], [1, -0.5, 2])
    )


def test_conv1d_weights_take_the_transposed_delta(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> None:
    base = tiny.gpt2()
    adapter = make_peft_adapter(
        base, r=4, targets=("c_attn", "c_proj"), strength=0.2, fan_in_fan_out=True
    )
    out = exporter([adapter], base).folder
    check_changed(out, base, read_deltas(adapter), conv1d=True)
    assert apart(logits(load(out)), logits(attach(load(base), adapter))) <= 1e-5


# PEFT says what it saves beside the factors, what it makes of fan_in_fan_out, and that ties may be in the way.
@pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`",
    "ignore:fan_in_fan_out is set",
    "ignore:Model has `tie_word_embeddings",
)
@pytest.mark.parametrize("targets", [("c_proj", "lm_head"), ("c_attn", "lm_head")])
def test_conv1d_and_linear_in_one_adapter(
    exporter: Exporter,
    tiny: ModelMaker,
    make_peft_adapter: Callable[..., Path],
    targets: tuple[str, ...],
) -> None:
    # PEFT settles fan_in_fan_out layer by layer, and saves the value of whichever layer came last: here false, for lm_head.
    from safetensors.torch import load_file, save_file

    base = tiny.gpt2()
    adapter = make_peft_adapter(
        base, r=4, targets=targets, strength=0.2, exclude_modules=["mlp.c_proj"]
    )
    assert not json.loads((adapter / "adapter_config.json").read_text())["fan_in_fan_out"]
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" in name}, path)
    out = exporter([adapter], base).folder
    assert apart(logits(load(out)), logits(attach(load(base), adapter))) <= 1e-5


def test_two_spellings_of_one_module_are_refused(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    # Trained on LlamaModel, a module is layers.0...; trained on LlamaForCausalLM it is model.layers.0...
    long, short = "model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"
    one = make_adapter("one", modules={long: (64, 64)})
    two = make_adapter("two", modules={short: (64, 64)}, seed=1)
    with pytest.raises(IncompatibleError, match="name the same module differently"):
        exporter([one, two], tiny_llama, weights=[1, 1])


def test_a_weight_of_zero_gives_the_base(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    out = exporter([make_adapter()], tiny_llama, weights=[0]).folder
    before, after = tensors(tiny_llama), tensors(out)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_small_tiles_change_nothing(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter, base = make_adapter(modules=llama_modules()), tiny.llama(dtype="bfloat16")
    whole = tensors(exporter([adapter], base).folder)
    monkeypatch.setattr("adapterhub.lora.rows.TILE_VALUES", 200)
    tiled = tensors(exporter([adapter], base).folder)
    assert sum(int((whole[name] != tiled[name]).sum()) for name in whole) <= 2


def test_what_lies_beside_the_weights_comes_along(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny.llama(sharded=True), base)
    (base / "README.md").write_text("about")
    for stale in (
        "pytorch_model.bin",
        "model.gguf",
        "consolidated.pth",
        "pytorch_model.bin.index.json",
    ):
        (base / stale).write_bytes(b"unmerged")
    adapter = exporter.add(make_adapter())
    out = exporter([adapter], base).folder

    assert "about" not in (out / "README.md").read_text(), "the base's card is not the model's"
    same = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in same)
    index = "model.safetensors.index.json"
    assert json.loads((out / index).read_text()) == json.loads((base / index).read_text())
    weights = {path.name for path in base.glob("*.safetensors")}
    assert {path.name for path in out.iterdir()} == same | weights | {
        index,
        "adapterhub.json",
        "README.md",
    }
    record = json.loads((out / "adapterhub.json").read_text())
    (told,) = record["adapters"]
    assert (told["name"], told["digest"]) == (adapter.label, adapter.digest)
    assert [one["type"] for one in told["attestations"]] == ["provenance"]
    assert record["recipe"]["method"] == "linear"
    from transformers import AutoTokenizer

    assert (
        AutoTokenizer.from_pretrained(out)("ab").input_ids
        == AutoTokenizer.from_pretrained(base)("ab").input_ids
    )


def test_progress_ends_at_the_size_of_the_model(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    from contextlib import contextmanager

    from tests.export.conftest import Bar

    bars: list[tuple[float | None, Bar]] = []

    @contextmanager
    def watched(_: str, total: float | None) -> Any:
        bars.append((total, Bar(lambda _: None)))
        yield bars[-1][1]

    for method in ("linear", "ties"):
        bars.clear()
        done = exporter([make_adapter(method)], tiny_llama, method, progress=watched)
        known = [(bar.done, total) for total, bar in bars if total is not None]
        assert all(done == pytest.approx(total) for done, total in known), known
        assert all(bar.done > 0 for _, bar in bars)
        assert bars[-1][0] == pytest.approx(done.size)


def test_a_strong_delta_is_not_lost_in_the_sum(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    adapter = make_adapter(scale=3.0)
    base = tiny.llama(dtype="bfloat16")
    before, after = tensors(base), tensors(exporter([adapter], base).folder)
    deltas = read_deltas(adapter)
    moved = {
        m: (after[f"{m}.weight"].double() - before[f"{m}.weight"].double()).numpy() for m in deltas
    }
    assert norm({m: moved[m] - deltas[m] for m in deltas}) <= 2**-8 * norm(deltas)
