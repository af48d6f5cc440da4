"""A merged adapter as a PEFT folder. The scale is in the factors, so alpha equals the rank everywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from adapterhub.errors import FormatError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TORCH_NAMES, encode_header
from adapterhub.fsio import disk_errors
from adapterhub.lora.adapter import Adapter
from adapterhub.lora.rows import blocks
from adapterhub.manifest import BaseClaim
from adapterhub.merge.spool import Spool
from adapterhub.merge.stages import Stage
from adapterhub.merge.whole import WholeTensor, whole_tensors, written_as

_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PREFIX = "base_model.model."


def parents_dtype(adapters: Sequence[Adapter]) -> str:
    """The dtype the parents share, whole weights and all; float32 where it differs or can't be written (float8, float64)."""
    found = {adapter.facts.dtype for adapter in adapters}
    found |= {TORCH_NAMES[info.dtype] for one in adapters for info in whole_tensors(one).values()}
    dtype = found.pop() if len(found) == 1 else "float32"
    return dtype if dtype in _TORCH_DTYPES else "float32"


def write_folder(
    folder: Path,
    spool: Spool,
    ranks: Mapping[str, int],
    whole: Mapping[str, WholeTensor],
    stage: Stage,
    parents: Sequence[Adapter],
    base: BaseClaim,
    dtype: str,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors into the existing `folder`, module by module.

    FormatError where a value doesn't fit into `dtype`.
    """
    embedding = {
        name for parent in parents for name, module in parent.modules.items() if module.embedding
    }
    size = torch.finfo(_TORCH_DTYPES[dtype]).bits // 8
    rows: list[tuple[str, tuple[int, ...]]] = []
    for name, rank in sorted(ranks.items()):
        out, width = stage.shapes[name]
        for role, shape in zip(
            _roles(name in embedding), ((rank, width), (out, rank)), strict=True
        ):
            rows.append((f"{_PREFIX}{name}.{role}", shape))
    for name, tensor in sorted(whole.items()):
        rows.append((f"{_PREFIX}{written_as(name, ranks)}", tensor.shape))
    header = [(key, _SAFETENSORS_DTYPES[dtype], s, size * math.prod(s)) for key, s in rows]
    with disk_errors(folder):
        (folder / CONFIG_NAME).write_text(
            json.dumps(_config(ranks, whole, parents, base), indent=2) + "\n"
        )
        with (folder / WEIGHTS_NAME).open("xb") as file:
            file.write(encode_header(header, {"format": "pt"}))
            for name, rank in sorted(ranks.items()):
                b, a = spool.get(name, rank)
                if dtype == "float16":
                    b, a = _evened(b, a)
                    _require_normal(b, a, name)
                for factor in (a, b):
                    _write(file, factor, dtype, name)
            for name, tensor in sorted(whole.items()):
                for values in _whole_values(tensor, stage):
                    _write(file, values, dtype, name)


def _roles(embedding: bool) -> tuple[str, str]:
    """The names of A and B."""
    if embedding:
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A.weight", "lora_B.weight"


def _whole_values(tensor: WholeTensor, stage: Stage) -> Iterator[torch.Tensor]:
    for _, tile in blocks(tensor.values(stage)):
        yield tile


def _write(file: IO[bytes], values: torch.Tensor, dtype: str, name: str) -> None:
    rounded = values.to(_TORCH_DTYPES[dtype])
    extremes = torch.stack(torch.aminmax(values)).to(
        rounded.dtype
    )  # the only ones that can overflow first
    if not torch.isfinite(extremes).all():
        raise FormatError(
            f"The merged {name} doesn't fit into {dtype}.",
            why=f"Its largest value is {float(values.abs().max()):.3g}.",
            hint="Choose a wider one: --dtype float32",
        )
    file.write(rounded.contiguous().cpu().flatten().view(torch.uint8).numpy().data)


def _require_normal(b: torch.Tensor, a: torch.Tensor, name: str) -> None:
    """FormatError where even the strongest direction is below float16's normal range, and so loses its digits."""
    weakest = min(float(b[:, 0].abs().max()), float(a[0].abs().max()))
    if 0 < weakest < torch.finfo(torch.float16).tiny:
        raise FormatError(
            f"The merged {name} doesn't fit into float16.",
            why=f"Its strongest direction has factors of {weakest:.2g}, where float16 has few digits left.",
            hint="Choose a wider one: --dtype bfloat16",
        )


def _evened(b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moves powers of two between the factors of each direction, so that neither falls below float16's normal range."""
    high_b = b.abs().amax(dim=0)  # (R,)
    high_a = a.abs().amax(dim=1)  # (R,)
    used = (high_b > 0) & (high_a > 0)
    ratio = torch.where(used, high_a, 1.0) / torch.where(used, high_b, 1.0)
    shift = (ratio.log2() / 2).round()
    return torch.ldexp(b, shift), torch.ldexp(a, -shift[:, None])


def _config(
    ranks: Mapping[str, int],
    whole: Mapping[str, WholeTensor],
    parents: Sequence[Adapter],
    base: BaseClaim,
) -> dict[str, Any]:
    # The largest is what a server makes room for; the pattern names what is smaller.
    rank = max(ranks.values())
    other = _patterns(ranks, rank)
    tasks = {parent.facts.document.get("task_type") for parent in parents}
    saved = {name for parent in parents for name in parent.facts.config.modules_to_save}
    kept = [name for name in sorted(saved | _tied(parents)) if _saves(name, whole, ranks)]
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
        "bias": _bias(kept, whole, ranks),
        "lora_dropout": 0.0,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": kept or None,
    }


def _patterns(ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """The modules whose rank isn't the common one, by full name, longer names first.

    A key also means every module whose name ends with it behind a dot, and the first that fits counts: so modules of
    the common rank that a key would take in are named, too.
    """
    other = {module for module, rank in ranks.items() if rank != common}
    for module in ranks:
        rest = module
        while "." in rest:
            rest = rest.partition(".")[2]
            if rest in other:
                other.add(module)
                break
    return {module: ranks[module] for module in sorted(other, key=lambda m: (-m.count("."), m))}


def _belongs(tensor: str, saved: str) -> bool:
    """Whether a whole tensor is of the module that `modules_to_save` calls `saved`."""
    return f".{saved}." in f".{tensor}"


def _tied(parents: Sequence[Adapter]) -> set[str]:
    """The modules whose whole weights PEFT saved for the sake of a tie, without naming them in `modules_to_save`."""
    return {
        name.removesuffix(".weight")
        for parent in parents
        if parent.facts.document.get("ensure_weight_tying")
        for name in whole_tensors(parent)
        if name.endswith(".weight")
    }


def _saves(saved: str, whole: Iterable[str], ranks: Mapping[str, int]) -> bool:
    """Whether `modules_to_save` should name `saved`. PEFT can't have that for a module that has a low-rank pair too:
    its whole weight is then loaded into the base's own layer."""
    mine = [name for name in whole if _belongs(name, saved)]
    return bool(mine) and not any(name.rpartition(".")[0] in ranks for name in mine)


def _bias(saved: Sequence[str], whole: Iterable[str], ranks: Mapping[str, int]) -> str:
    """PEFT's word for the biases there are."""
    owners = {
        name.removesuffix(".bias")
        for name in whole
        if name.endswith(".bias") and not any(_belongs(name, one) for one in saved)
    }
    if not owners:
        return "none"
    return "lora_only" if owners <= ranks.keys() else "all"


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
