"""What doesn't fit or can't be added to is refused by name, allowed mismatches are recorded."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base import read_base
from adapterhub.errors import (
    FormatError,
    IncompatibleError,
    NotFoundError,
    UnsupportedError,
)
from tests.support.adapters import EMBEDDING, QV
from tests.support.attached import tensors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


# What doesn't fit


@pytest.mark.parametrize("allow", [False, True])
def test_modules_the_base_lacks_are_named_allowed_or_not(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, allow: bool
) -> None:
    adapter = make_adapter(modules={**QV, "model.layers.9.self_attn.q_proj": (64, 64)})
    into = tmp_path / "out" / "model"
    with pytest.raises(IncompatibleError, match=r"model\.layers\.9\.self_attn\.q_proj") as caught:
        exporter([adapter], tiny_llama, into=into, allow_mismatch=allow)
    assert caught.value.exit_code == 5
    assert not into.exists()
    if allow:
        assert "--allow-mismatch" not in caught.value.hint, "it was said already, and doesn't help"


@pytest.mark.parametrize("allow", [False, True])
def test_other_shapes_are_named_allowed_or_not(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, allow: bool
) -> None:
    adapter = make_adapter(modules={"model.layers.0.mlp.up_proj": (128, 64)})
    with pytest.raises(IncompatibleError, match=r"up_proj.*\[128, 64\].*\[96, 64\]"):
        exporter([adapter], tiny_llama, allow_mismatch=allow)


def test_other_weights_are_refused_and_allowing_them_is_recorded(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    adapter = exporter.add(make_adapter(), base=str(tiny.llama()))
    with pytest.raises(IncompatibleError, match="fingerprint") as caught:
        exporter([adapter], tiny.llama(seed=1))
    assert caught.value.exit_code == 5
    done = exporter([adapter], tiny.llama(seed=1), allow_mismatch=True)
    record = json.loads((done.folder / "adapterhub.json").read_text())
    assert "fingerprint" in " ".join(record["allowed_mismatch"])


def test_any_of_several_adapters_may_be_the_one_that_does_not_fit(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    good = exporter.add(make_adapter("a"), base=str(tiny.llama()))
    bad = exporter.add(make_adapter("b", seed=1), base=str(tiny.llama(seed=1)))
    with pytest.raises(IncompatibleError, match="fingerprint"):
        exporter([good, bad], tiny.llama())


def test_the_base_is_found_by_any_parent_that_knows_it(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    exporter.store.bases.remember(read_base(tiny_llama, repo="org/tiny"))
    assert exporter([make_adapter("a", base="org/tiny")], None).base.path == tiny_llama.resolve()
    both = [make_adapter("b", base=None), make_adapter("c", base="org/tiny", seed=1)]
    assert exporter(both, None).base.path == tiny_llama.resolve()


def test_a_base_that_nobody_names_is_asked_for(
    exporter: Exporter, make_adapter: AdapterMaker
) -> None:
    with pytest.raises(NotFoundError, match="--base") as caught:
        exporter([make_adapter(base=None)], None)
    assert caught.value.exit_code == 4


# What can't be added to


def quantised(
    source: Path, folder: Path, *, packed: bool, dtype: torch.dtype = torch.uint8
) -> Path:
    """A copy of a model whose linear weights are packed (as bitsandbytes does) or stored in an 8-bit type."""
    shutil.copytree(source, folder)
    stored = load_file(folder / "model.safetensors")
    for name, tensor in list(stored.items()):
        if name.endswith("proj.weight"):
            stored[name] = (
                torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8)
                if packed
                else tensor.to(dtype)
            )
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("kind", ["packed", "float8", "int8"])
def test_a_quantised_base_is_refused_as_quantised(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, kind: str
) -> None:
    dtypes = {"packed": torch.uint8, "float8": torch.float8_e4m3fn, "int8": torch.int8}
    base = quantised(
        tiny_llama, tmp_path / "quantised", packed=kind == "packed", dtype=dtypes[kind]
    )
    into = tmp_path / "out" / "model"
    with pytest.raises(UnsupportedError, match="quantised") as caught:
        exporter([make_adapter()], base, into=into)
    assert "quantised" in caught.value.what
    assert not into.exists()


def test_float8_weights_without_a_word_in_the_configuration_are_refused_by_dtype(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    base = quantised(tiny_llama, tmp_path / "float8", packed=False, dtype=torch.float8_e4m3fn)
    document = json.loads((base / "config.json").read_text())
    del document["quantization_config"]
    (base / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match="F8_E4M3"):
        exporter([make_adapter()], base)


def test_a_sum_that_overflows_its_dtype_is_refused_naming_the_weight(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    into = tmp_path / "out" / "model"
    with pytest.raises(FormatError, match=r"[qv]_proj.*F16"):
        exporter([make_adapter(scale=1.0)], tiny.llama(dtype="float16"), weights=[1e6], into=into)
    assert list(into.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True, "modules": EMBEDDING}, "DoRA on an embedding"),
        ({"extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}}, "lora_magnitude_vector"),
        ({"bias": "lora_only", "extra": {f"{PREFIX}.bias": torch.ones(64)}}, "bias"),
        ({"peft_type": "ADALORA", "extra": {f"{PREFIX}.lora_E": torch.ones(4, 1)}}, "ADALORA"),
    ],
)
def test_more_than_a_plain_lora_is_not_exported(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    settings: dict[str, Any],
    named: str,
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        exporter([make_adapter(**settings)], tiny_llama)


def test_exporting_an_export_works(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    first = exporter([make_adapter("a")], tiny_llama).folder
    second = exporter([make_adapter("b", seed=1)], first).folder
    assert tensors(second).keys() == tensors(tiny_llama).keys()
    assert json.loads((second / "adapterhub.json").read_text())["adapters"][0]["name"] != "a"
