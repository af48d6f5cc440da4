"""The trained view is the weights of a model loaded in 4 bits, to the bit; the original view is the stored ones."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from adapterhub.base import read_base
from adapterhub.errors import IncompatibleError, UnsupportedError, UsageError
from adapterhub.export.quantize.fourbit import BLOCK, FourBit
from adapterhub.export.views import BaseView, Chosen, choose_view, opened_view
from adapterhub.lora.rows import whole
from tests.support.adapters import TORCH_DTYPES, llama_modules
from tests.support.attached import load, tensors
from tests.support.dense import read_deltas
from tests.support.fourbit import DEMO_BASE, by_hand, load_in_4bit, packed_weights

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

CPU = torch.device("cpu")
NF4 = FourBit("nf4", double=True, dtype="bfloat16")
QLORA: dict[str, Any] = {
    "event": "trained",
    "base": {"quantization": {"type": "nf4", "bits": 4, "double_quantization": True}},
    "hardware": {"device": {"dtype": "bfloat16"}},
}
"""What the trainer attests, as far as it is read here."""


def seen(base: Path, how: FourBit | None) -> AbstractContextManager[BaseView]:
    return opened_view(Chosen(how), read_base(base), CPU)


def check_equal_to_loaded(base: Path, how: FourBit) -> None:
    """Every tensor of the view against the same one of the model that transformers loads in 4 bits."""
    import bitsandbytes.functional as bnb

    model = load_in_4bit(base, how)
    packed, plain = packed_weights(model), dict(model.named_parameters())
    names = read_base(base).tensors
    quantised = {name: next(n for n in names if name.endswith(n)) for name in packed}
    with seen(base, how) as view:
        for name, stored in quantised.items():
            data, state = packed[name]
            # Conv1D: transformers turns it before it quantises
            across = names[stored].shape != tuple(state.shape) or "c_" in name
            ours = whole(view.rows(stored, transposed=across)).to(TORCH_DTYPES[how.dtype])
            assert torch.equal(ours, by_hand(data, state)), name
            if state.shape[1] % BLOCK == 0:  # else bitsandbytes' own is wrong on some CPUs
                assert torch.equal(ours, bnb.dequantize_4bit(data, state)), name
            assert torch.equal(whole(view.rows(stored)), ours.T if across else ours), name
            assert view.changes(stored)
        for name in names.keys() - set(quantised.values()):
            loaded = next(value for key, value in plain.items() if key.endswith(name))
            assert torch.equal(whole(view.rows(name)).reshape(loaded.shape), loaded.float()), name


@pytest.mark.parametrize(
    ("stored", "loaded", "kind", "double"),
    [
        ("bfloat16", "bfloat16", "nf4", True),
        ("bfloat16", "float32", "nf4", False),
        ("float32", "bfloat16", "nf4", True),
        ("float16", "float16", "fp4", True),
        ("float32", "float32", "fp4", False),
    ],
)
def test_the_trained_view_is_the_model_loaded_in_4_bits(
    tiny: ModelMaker, stored: str, loaded: str, kind: Any, double: bool
) -> None:
    check_equal_to_loaded(tiny.llama(dtype=stored, tied=double), FourBit(kind, double, loaded))


def test_conv1d_is_quantised_across_and_seen_as_it_is_stored(tiny: ModelMaker) -> None:
    check_equal_to_loaded(tiny.gpt2(), FourBit("nf4", double=True, dtype="float32"))


@pytest.mark.slow
def test_a_real_base_seen_in_4_bits_is_the_loaded_one() -> None:
    if not DEMO_BASE.is_dir():
        pytest.skip("the demo's base isn't here: make demo")
    check_equal_to_loaded(DEMO_BASE, NF4)


def test_any_rows_are_those_of_the_whole(tiny: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows of 96 values: every second one begins within a block. And scales from several stretches.
    monkeypatch.setattr("adapterhub.export.views.STRETCH", 10 * BLOCK)
    name = "model.layers.0.mlp.down_proj.weight"
    with seen(tiny.llama(dtype="bfloat16"), NF4) as view:
        rows = view.rows(name)
        dense = whole(rows)
        for first, last in [(0, 1), (1, 2), (3, 10), (63, 64), (0, 64)]:
            part = torch.empty(last - first, rows.shape[1])
            rows.fill(first, last, part)
            assert torch.equal(part, dense[first:last]), (first, last)


def test_a_base_in_4_bits_already_is_refused(tiny: ModelMaker, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny.llama(), base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="is quantised"), seen(base, NF4):
        pass


def test_in_the_trained_view_every_linear_is_the_dequantised_one_plus_its_delta(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(dtype="bfloat16")
    folder = make_adapter(modules=llama_modules("q_proj", "down_proj"), scale=0.1)
    adapter = exporter.add(folder, provenance=QLORA)
    done = exporter([adapter], base, base_view="trained", verify="sized")
    evaluated = {
        name: by_hand(data, state)
        for name, (data, state) in packed_weights(load_in_4bit(base, NF4)).items()
    }
    after, before, deltas = tensors(done.folder), tensors(base), read_deltas(folder)
    for name, weight in after.items():
        start = evaluated.get(name, before[name])
        delta = deltas.get(name.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(weight, start), name
            continue
        exact = start.double() + torch.from_numpy(delta)
        assert float((weight.double() - exact).abs().max()) <= 2**-8 * float(exact.abs().max())
    assert (done.view.quantised, done.verified["weights"]["tensors"]) == (NF4, 4)
    assert "skipped" not in done.verified["logits"], "PEFT was compared on the same weights"
    record = json.loads((done.folder / "adapterhub.json").read_text())["base_view"]
    assert (record["view"], record["quantization"]["type"]) == ("trained", "nf4")


def test_the_trained_view_is_nearer_to_the_model_that_was_trained(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(dtype="bfloat16")
    folder = make_adapter(modules=llama_modules())
    adapter = exporter.add(folder, provenance=QLORA)
    deltas = read_deltas(folder)
    packed = packed_weights(load_in_4bit(base, NF4))
    wanted = {
        name: by_hand(data, state).double() + torch.from_numpy(deltas[name[: -len(".weight")]])
        for name, (data, state) in packed.items()
    }

    def error(view: str) -> float:
        found = tensors(exporter([adapter], base, base_view=view).folder)
        squares = (float((found[n].double() - w).square().sum()) for n, w in wanted.items())
        return math.sqrt(sum(squares))

    assert error("trained") < error("original") / 30


def test_dora_takes_its_norms_from_the_weights_it_was_trained_on(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Any
) -> None:
    base = tiny.llama(inner=128)
    adapter = make_peft_adapter(base, r=4, targets=("q_proj",), strength=0.2, use_dora=True)
    how = FourBit("nf4", double=True, dtype="float32")
    out = exporter([exporter.add(adapter)], base, base_view="nf4").folder
    from peft import PeftModel

    model = load(base)
    with torch.no_grad():
        for name, (data, state) in packed_weights(load_in_4bit(base, how)).items():
            model.get_parameter(name).copy_(by_hand(data, state))
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    ours = tensors(out)
    for name, weight in merged.state_dict().items():
        assert float((ours[name] - weight).norm() / weight.norm()) <= 1e-6, name


def test_the_default_is_the_original_view_and_says_what_else_there_is(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = read_base(tiny.llama())
    plain = exporter.add(make_adapter("plain"))
    trained = exporter.add(make_adapter("trained", seed=1), provenance=QLORA)
    store = exporter.store

    default = choose_view(store, [trained], base, None)
    assert (default.quantised, default.trained) == (None, NF4)
    assert "--base-view trained" in str(default.remark)
    assert default.record()["trained_on"]["dtype"] == "bfloat16"
    assert choose_view(store, [trained], base, "original").remark is None
    assert choose_view(store, [plain], base, None).remark is None
    assert choose_view(store, [trained], base, "trained").quantised == NF4
    known = choose_view(store, [plain], base, "fp4-single").quantised
    assert known == FourBit("fp4", double=False, dtype="float32")


def test_a_view_that_isnt_known_is_refused(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = read_base(tiny.llama())
    plain = exporter.add(make_adapter("plain"))
    trained = exporter.add(make_adapter("trained", seed=1), provenance=QLORA)
    with pytest.raises(IncompatibleError, match="isn't known") as unknown:
        choose_view(exporter.store, [plain], base, "trained")
    assert "--base-view nf4" in str(unknown.value.hint)
    with pytest.raises(IncompatibleError, match="different forms"):
        choose_view(exporter.store, [plain, trained], base, "trained")
    with pytest.raises(UsageError, match="no view"):
        choose_view(exporter.store, [plain], base, "int3")
