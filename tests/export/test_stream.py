"""Blocks of rows: the same bits for any threads and any budget, PEFT's bits, and memory that no tensor decides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from adapterhub.merge.run import Resources
from tests.export.test_bake import check_changed
from tests.support.adapters import EMBEDDING, VOCABULARY, llama_modules
from tests.support.attached import attach, load, tensors
from tests.support.dense import read_deltas, ties

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

RESOURCES = [Resources(1, 1), Resources(1, 30_000), Resources(3, 200_000), Resources(4, 2**28)]
"""From one tile in one thread to everything at once."""
WTE = {"transformer.wte": (64, VOCABULARY)}
CONV1D = {
    f"transformer.h.{layer}.{module}": shape
    for layer in range(2)
    for module, shape in {"attn.c_attn": (192, 64), "mlp.c_proj": (64, 256)}.items()
}


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles in a tensor, many tasks in a shard."""
    monkeypatch.setattr("adapterhub.lora.rows.TILE_VALUES", 300)
    monkeypatch.setattr("adapterhub.export.stream._STEP", 5_000)
    monkeypatch.setattr("adapterhub.export.stream._BLOCK", 2_000)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_neither_threads_nor_memory_change_a_bit(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, method: str, kind: str
) -> None:
    if kind == "llama":
        base = tiny.llama(dtype="bfloat16", sharded=True)
        modules = {**llama_modules(), **EMBEDDING}
    else:
        base, modules = tiny.gpt2(dtype="bfloat16"), {**CONV1D, **WTE}
    parents = [
        exporter.add(make_adapter(str(seed), modules=modules, rank=5, seed=seed, scale=0.2))
        for seed in range(2)
    ]
    found = [
        shards(exporter(parents, base, method, resources=resources).folder)
        for resources in RESOURCES
    ]
    assert all(one == found[0] for one in found)
    assert found[0].keys() == shards(base).keys()
    assert found[0] != shards(base)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dense_deltas_of_transposed_weights_go_in_across_strips(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, dtype: str
) -> None:
    base = tiny.gpt2(dtype=dtype)
    adapters = [
        make_adapter(str(seed), modules=CONV1D, seed=seed, scale=0.2, fan_in_fan_out=True)
        for seed in range(2)
    ]
    deltas = ties([read_deltas(a) for a in adapters], [1, 1], density=0.4, tolerance=1e-6)
    assert deltas.count == 0, "choose other seeds: an element lies at a threshold"
    done = exporter(adapters, base, "ties", density=0.4, resources=Resources(2, 40_000))
    check_changed(done.folder, base, deltas.merged, conv1d=True)


@pytest.mark.parametrize("settings", [{"lora_alpha": 16}, {"use_rslora": True, "lora_alpha": 8}])
def test_a_float32_adapter_on_a_bf16_base_gives_pefts_bits(
    exporter: Exporter,
    tiny: ModelMaker,
    make_peft_adapter: Callable[..., Path],
    settings: dict[str, Any],
) -> None:
    base = tiny.llama(dtype="bfloat16")
    # A scale that is a power of two: PEFT multiplies B·A by it, we multiply B.
    adapter = make_peft_adapter(base, r=16, targets="all-linear", strength=0.2, **settings)
    ours = tensors(exporter([adapter], base).folder)
    merged = attach(load(base, torch.bfloat16), adapter).merge_and_unload().state_dict()
    assert merged.keys() == ours.keys()
    wrong = {name: int((ours[name] != weight).sum()) for name, weight in merged.items()}
    assert set(wrong.values()) == {0}, wrong


def test_where_peft_rounds_twice_ours_is_nearer_to_the_exact_sum(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> None:
    base = tiny.llama(dtype="bfloat16")
    adapter = make_peft_adapter(base, r=8, targets="all-linear", strength=0.2, dtype="bfloat16")
    ours, before = tensors(exporter([adapter], base).folder), tensors(base)
    # Attached in bf16, its deltas are rounded to bf16 before they are added.
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        load(base, torch.bfloat16), adapter, autocast_adapter_dtype=False
    )
    peft = model.merge_and_unload().state_dict()

    def error(found: Mapping[str, torch.Tensor]) -> float:
        return sum(
            float(
                (found[f"{m}.weight"].double() - before[f"{m}.weight"].double() - torch.from_numpy(d))
                .square()
                .sum()
            )
            for m, d in read_deltas(adapter).items()
        )  # fmt: skip

    assert error(ours) < error(peft)


WEIGHING = """
import json, os, sys, torch
from pathlib import Path
from adapterhub.export.layout import Summed, Tensor, lay_out
from adapterhub.export.stream import Budget, write_shards
from adapterhub.formats.safetensors import TensorFile
from adapterhub.lora.rows import Factored
from tests.bench.memory import weighed_inside

class Dense:  # any delta that isn't in factors
    def __init__(self, inner): self.inner, self.shape, self.device = inner, inner.shape, inner.device
    def fill(self, first, last, out): self.inner.fill(first, last, out)

def write(file, out, kind, budget):
    with TensorFile(file) as like:
        info = like.infos["w"]
        part = Summed(info, "w", transposed=kind == "across")
        shard = lay_out("s", [Tensor("w", "BF16", info.shape, (part,))], like)
    size = info.shape[0]
    inner = Factored(torch.ones(size, 4), torch.ones(4, size))
    delta = inner if kind == "rows" else Dense(inner)
    out.mkdir()
    write_shards([shard], out, lambda _: delta, budget=budget, finished=lambda *_: None, advance=lambda _: None)

folder, budget = Path(sys.argv[1]), Budget(int(sys.argv[2]), 2)
found = {}
for kind in ("rows", "dense", "across"):
    write(folder / "small", folder / f"small-{kind}", kind, budget)  # what torch needs once
    taken = weighed_inside("", lambda: write(folder / "large", folder / f"large-{kind}", kind, budget))
    found[kind] = taken.peak
    (folder / f"large-{kind}" / "s").unlink()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_memory_is_the_budget_and_not_the_tensor(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, size in (("small", 256), ("large", 12_000)):
        save_file({"w": torch.zeros(size, size, dtype=torch.bfloat16)}, tmp_path / name)
    budget = 48 * 2**20
    assert (tmp_path / "large").stat().st_size > 5 * budget
    done = subprocess.run(
        [sys.executable, "-c", WEIGHING, str(tmp_path), str(budget)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(0 < peak < budget for peak in found.values()), found
