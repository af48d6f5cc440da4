"""A merged adapter as a PEFT folder. The scale is in the factors, so alpha equals the rank everywhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adapterhub.errors import FormatError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import encode_header
from adapterhub.fsio import disk_errors
from adapterhub.lora.adapter import Adapter
from adapterhub.manifest import BaseClaim
from adapterhub.merge.engine import MergedAdapter

_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parents_dtype(adapters: Sequence[Adapter]) -> str:
    """The dtype the parents share, float32 where they differ or can't be written (float8, float64)."""
    found = {adapter.facts.dtype for adapter in adapters}
    dtype = found.pop() if len(found) == 1 else "float32"
    return dtype if dtype in _TORCH_DTYPES else "float32"


def write_folder(
    folder: Path, merged: MergedAdapter, parents: Sequence[Adapter], base: BaseClaim, dtype: str
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into the existing `folder`."""
    embedding = {
        name for parent in parents for name, module in parent.modules.items() if module.embedding
    }
    tensors: dict[str, torch.Tensor] = {}
    for name, (b, a) in sorted(merged.factors.items()):
        roles = (
            ("lora_embedding_A", "lora_embedding_B")
            if name in embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        if dtype == "float16":
            b, a = _evened(b, a)
        for role, factor in zip(roles, (a, b), strict=True):
            tensors[f"base_model.model.{name}.{role}"] = _rounded(factor, dtype, name)
    rows = [
        (name, _SAFETENSORS_DTYPES[dtype], tuple(tensor.shape), tensor.nbytes)
        for name, tensor in tensors.items()
    ]
    with disk_errors(folder):
        (folder / CONFIG_NAME).write_text(
            json.dumps(_config(merged, parents, base), indent=2, sort_keys=True) + "\n"
        )
        with (folder / WEIGHTS_NAME).open("xb") as file:
            file.write(encode_header(rows, {"format": "pt"}))
            for tensor in tensors.values():
                file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _rounded(factor: torch.Tensor, dtype: str, module: str) -> torch.Tensor:
    rounded = factor.to(_TORCH_DTYPES[dtype])
    if not torch.isfinite(rounded).all():
        raise FormatError(
            f"The merged {module} doesn't fit into {dtype}.",
            why=f"Its largest value is {float(factor.abs().max()):.3g}.",
            hint="Choose a wider one: --dtype float32",
        )
    return rounded


def _evened(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves powers of two between the factors of each direction, so that neither falls below float16's normal range."""
    high_b = b.abs().amax(dim=0)  # (R,)
    high_a = a.abs().amax(dim=1)  # (R,)
    used = (high_b > 0) & (high_a > 0)
    ratio = torch.where(used, high_a, 1.0) / torch.where(used, high_b, 1.0)
    shift = (ratio.log2() / 2).round()
    return torch.ldexp(b, shift), torch.ldexp(a, -shift[:, None])


def _config(merged: MergedAdapter, parents: Sequence[Adapter], base: BaseClaim) -> dict[str, Any]:
    ranks = {report.module: report.rank for report in merged.modules}
    # Ties go to the larger rank, so that the file doesn't depend on the order of the modules.
    rank = max(Counter(ranks.values()).items(), key=lambda item: (item[1], item[0]))[0]
    other = {module: found for module, found in sorted(ranks.items()) if found != rank}
    tasks = {parent.facts.document.get("task_type") for parent in parents}
    return {
        "peft_type": "LORA",
        "task_type": tasks.pop() if len(tasks) == 1 else None,
        "base_model_name_or_path": base.repo,
        "revision": base.revision,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": _targets(ranks, parents),
        "fan_in_fan_out": any(parent.facts.config.fan_in_fan_out for parent in parents),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _targets(ranks: Mapping[str, int], parents: Sequence[Adapter]) -> list[str]:
    """Short names where they mean exactly these modules; full names where they would take in others too."""
    suffixes = {name.rpartition(".")[2] for name in ranks}
    short_enough = all(
        set(parent.modules) == set(ranks)
        and set(parent.facts.config.target_modules) == suffixes
        and not parent.facts.document.get("layers_to_transform")
        and not parent.facts.document.get("exclude_modules")
        for parent in parents
    )
    return sorted(suffixes) if short_enough else sorted(ranks)
