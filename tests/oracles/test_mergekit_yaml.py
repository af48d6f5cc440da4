"""What `mergekit-yaml` writes is the base plus our deltas: files in, files out, float32 throughout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.oracles import ORACLES, resolved, undecided
from tests.support.adapters import AdapterMaker, llama_modules
from tests.support.attached import tensors
from tests.support.dense import distance, read_deltas
from tests.support.models import ModelMaker

COMMAND = Path(sys.executable).with_name("mergekit-yaml")
WEIGHTS = [0.7, 1.6]

WEIGHTED: list[dict[str, Any]] = [{"weight": weight} for weight in WEIGHTS]
# method -> (parameters of the whole merge, of each model, ours)
RUNS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "linear": ({}, WEIGHTED, {}),
    "task_arithmetic": ({"lambda": 0.8}, WEIGHTED, {"lambda": 0.8}),
    "ties": ({"density": 0.3, "lambda": 1.2}, WEIGHTED, {"density": 0.3, "lambda": 1.2}),
    "sce": ({"select_topk": 0.4}, [{}, {}], {"select_topk": 0.4}),
    "nuslerp": ({}, WEIGHTED, {}),
    "slerp": ({"t": 0.3}, [{}, {}], {"t": 0.3}),
}  # fmt: skip


@pytest.fixture
def base(tiny: ModelMaker, tmp_path: Path) -> Path:
    """A tiny Llama whose q_proj are zeros: there, the models that slerp turns between are the deltas alone."""
    folder = tmp_path / "base"
    shutil.copytree(tiny.llama(), folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "q_proj" in name:
            weights[name] = torch.zeros_like(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_mergekit_writes_the_base_plus_our_deltas(
    method: str, base: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    # slerp turns whole weights, so it has deltas on zeros alone; the others also where one adapter has no module.
    shared = llama_modules("q_proj")
    one, two = (shared, shared) if method == "slerp" else (
        llama_modules("q_proj", "v_proj"),
        llama_modules("q_proj", "v_proj", "up_proj"),
    )  # fmt: skip
    if method == "nuslerp":
        two = one  # a parent without the module makes a right angle there: test_mergekit.py
    folders = [
        make_adapter("one", base=str(base), modules=one, rank=4, alpha=6, scale=0.3),
        make_adapter("two", base=str(base), modules=two, rank=9, alpha=12, scale=0.25, seed=1),
    ]
    merged = run(method, base, folders, tmp_path)
    weights = tensors(base)
    parents, parameters = (
        [read_deltas(folder) for folder in folders],
        resolved(method, "mergekit", **RUNS[method][2]),
    )
    expected = ORACLES[method](parents, WEIGHTS, parameters)
    changed = {f"{module}.weight": module for module in expected}
    assert merged.keys() == weights.keys()
    found = {}
    for name, tensor in merged.items():
        assert tensor.dtype == torch.float32
        difference = (tensor.double() - weights[name].double()).numpy()
        if name in changed:
            found[changed[name]] = difference
        else:
            assert np.abs(difference).max() <= 1e-6 * weights[name].abs().max(), name
    apart = undecided(method, parents, WEIGHTS, parameters)
    assert sum(mask.sum() for mask in apart.values()) < 1e-3 * sum(m.size for m in apart.values())
    assert distance(found, expected, apart=apart) < 1e-5


def run(method: str, base: Path, adapters: list[Path], tmp_path: Path) -> dict[str, torch.Tensor]:
    """The tensors of `mergekit-yaml`'s output, with each adapter as base+lora."""
    whole, each, _ = RUNS[method]
    models = [
        {"model": f"{base}+{adapter}", "parameters": parameters}
        for adapter, parameters in zip(adapters, each, strict=True)
    ]
    config: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "models": models,
        "parameters": whole,
    }
    if method == "slerp":
        config["base_model"] = models[0]["model"]
    elif method != "linear":
        config["base_model"] = str(base)
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            COMMAND, tmp_path / "merge.yaml", tmp_path / "merged", "--quiet",
            "--lora-merge-dtype", "float32", "--lora-merge-cache", tmp_path / "cache",
        ],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(tensors(tmp_path / "merged"))
