"""Writing the merged model: each shard has the layout of its base shard, each changed weight is rounded once.

Untouched tensors are copied as bytes. A changed one is read, widened to float32, its delta added, and rounded to the
base's dtype: one tensor in memory at a time. The folder appears under its final name whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from adapterhub.base import HEAD_NAME, INDEX_NAME, BaseModel
from adapterhub.errors import FormatError
from adapterhub.export.plan import ExportPlan, Target
from adapterhub.formats.safetensors import TensorFile, TensorInfo, encode_header
from adapterhub.fsio import CHUNK, disk_errors, new_folder
from adapterhub.lora.rows import Rows, blocks

_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Other serialisations of the weights would be the unmerged ones: never copied.
_FOREIGN_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack"}
)
RECORD_NAME = "adapterhub.json"


def bake(
    plan: ExportPlan,
    delta_of: Callable[[str], Rows],
    folder: Path,
    *,
    record: Mapping[str, Any],
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the model into `folder`.

    Args:
        delta_of: gives the delta of a module in the plan, as (out, in) rows.
        record: what was exported, written beside the model as adapterhub.json.
        advance: called with the bytes of every tensor written.
    """
    with new_folder(folder, overwrite=overwrite) as building, disk_errors(folder):
        for shard in plan.base.shards:
            with TensorFile(shard) as source:
                _write_shard(building / shard.name, source, plan, delta_of, advance)
        _copy_beside(plan, building)
        (building / RECORD_NAME).write_text(json.dumps(dict(record), indent=2, default=str) + "\n")


def _write_shard(
    path: Path,
    source: TensorFile,
    plan: ExportPlan,
    delta_of: Callable[[str], Rows],
    advance: Callable[[int], None],
) -> None:
    order = [
        (info.name, info) for info in sorted(source.infos.values(), key=lambda info: info.start)
    ]
    twin = source.infos.get(plan.base.embedding or "")
    if plan.untied and HEAD_NAME not in plan.base.tensors and twin is not None:
        order.append((HEAD_NAME, twin))
    with path.open("xb") as file:
        rows = [(name, info.dtype, info.shape, info.end - info.start) for name, info in order]
        file.write(encode_header(rows, source.metadata))
        for name, info in order:
            if (target := plan.targets.get(name)) is not None:
                _write_changed(file, source, info, target, delta_of(target.module))
            else:
                raw = source.raw(info.name)
                for first in range(0, len(raw), CHUNK):
                    file.write(raw[first : first + CHUNK])
            advance(info.end - info.start)


def _write_changed(
    file: IO[bytes], source: TensorFile, info: TensorInfo, target: Target, delta: Rows
) -> None:
    dtype = _TORCH[info.dtype]
    stored = torch.frombuffer(bytearray(source.raw(info.name)), dtype=dtype).reshape(info.shape)
    weight = stored.float()  # accumulate in float32 ...
    view = weight.T if target.transposed else weight  # (out, in)
    for first, block in blocks(delta):
        view[first : first + block.shape[0]] += block
    rounded = weight.to(dtype)  # ... and round once
    if not torch.isfinite(rounded).all():
        raise FormatError(
            f"The merged weight {info.name} doesn't fit into {info.dtype}.",
            why="It overflows, or the base itself holds NaN or infinity.",
            hint="Export into a float32 or bfloat16 copy of the base.",
        )
    file.write(rounded.contiguous().flatten().view(torch.uint8).numpy().data)


def _copy_beside(plan: ExportPlan, building: Path) -> None:
    """Configuration, tokenizer, template and whatever else lies beside the weights, and the index."""
    base: BaseModel = plan.base
    for path in sorted(base.path.iterdir()):
        if (
            path.is_file()
            and path.suffix not in _FOREIGN_WEIGHTS
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, building / path.name)
    if plan.untied:
        config = dict(base.config)
        config["tie_word_embeddings"] = False
        inner = config.get("text_config")
        if isinstance(inner, dict) and "tie_word_embeddings" in inner:
            config["text_config"] = {**inner, "tie_word_embeddings": False}
        (building / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if (base.path / INDEX_NAME).is_file():
        index = json.loads((base.path / INDEX_NAME).read_bytes())
        if plan.untied and HEAD_NAME not in base.tensors and base.embedding is not None:
            index["weight_map"][HEAD_NAME] = index["weight_map"][base.embedding]
            index.setdefault("metadata", {})["total_size"] = plan.size
        (building / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
