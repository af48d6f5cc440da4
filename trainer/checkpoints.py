"""Checkpoints to go on from: the trained tensors, the optimizer, the schedule and the random states, sealed when complete.

transformers writes the optimizer, the schedule and the random states; the tensors are written here as they are in memory,
so that every kind of adapter goes on exactly where it was (AdaLoRA prunes what it *saves*, PiSSA converts it). A
checkpoint counts only once its seal is on disk, after everything in it was flushed: a run killed while it saves goes on from
the one before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapterhub.errors import FormatError
from adapterhub.fsio import flush, flush_names, write_file
from adapterhub.store.blobs import hash_file
from adapterhub.words import natural

TRAINABLE = "trainable.safetensors"
_SEAL = "complete.json"
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""AdaLoRA's running estimates of what each singular value is worth, by parameter name."""


def save_trainable(model: Any, folder: Path, *, write: bool = True) -> None:
    """Writes every trained tensor of `model` (and what AdaLoRA's allocator has learned) to `folder`.

    Where the model is cut over several processes, all of them must call it, and one of them `write`.
    """
    from safetensors.torch import save_file

    tensors = whole_tensors(model)
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    allocator = _allocator(model)
    pattern = None
    if allocator is not None:
        for kind in _IMPORTANCE:
            for name, value in getattr(allocator, kind).items():
                tensors[f"{kind}/{name}"] = value.detach().contiguous().cpu().clone()
        pattern = model.base_model.peft_config[model.active_adapter].rank_pattern
    save_file(tensors, folder / TRAINABLE, {"rank_pattern": json.dumps(pattern)})


def load_trainable(model: Any, folder: Path) -> None:
    """The reverse; FormatError where the tensors aren't those of `model`."""
    import torch
    from safetensors import safe_open

    trained, allocator = _trained(model), _allocator(model)
    with safe_open(folder / TRAINABLE, framework="pt") as file:
        names = set(file.keys())
        own = {name for name in names if name.partition("/")[0] not in _IMPORTANCE}
        if own != set(trained):
            odd = min(own ^ set(trained))
            raise FormatError(f"The checkpoint {folder.name} is of another model ({odd}).")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(_as_held(file.get_tensor(name), parameter))
        if allocator is not None:
            for kind in _IMPORTANCE:
                getattr(allocator, kind).update(
                    (name.partition("/")[2], file.get_tensor(name))
                    for name in names
                    if name.startswith(kind + "/")
                )
            pattern = json.loads((file.metadata() or {}).get("rank_pattern", "null"))
            model.base_model.peft_config[model.active_adapter].rank_pattern = pattern


def whole_tensors(model: Any) -> dict[str, Any]:
    """A copy of every trained tensor on the CPU, put together where the processes hold parts; all of them must call it."""
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p)
        .detach()
        .contiguous()
        .cpu()
        .clone()
        for name, p in _trained(model).items()
    }


def _as_held(tensor: Any, parameter: Any) -> Any:
    """`tensor`, of which every process has the whole, cut as `parameter` is."""
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements)


def seal(folder: Path, step: int) -> None:
    """Marks `folder` complete, once everything in it is on disk."""
    for path in folder.iterdir():
        flush(path)
    flush_names(folder, folder.parent)
    digests = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    write_file(folder / _SEAL, json.dumps({"step": step, "files": digests}).encode(), folder)


def newest(scratch: Path) -> tuple[Path, int] | None:
    """The newest complete checkpoint below `scratch` and its step."""
    for folder in sorted(scratch.glob("checkpoint-*"), key=lambda p: natural(p.name), reverse=True):
        try:
            told = json.loads((folder / _SEAL).read_bytes())
            whole = all(hash_file(folder / n) == digest for n, digest in told["files"].items())
        except (OSError, ValueError, KeyError):
            continue
        if whole:
            return folder, int(told["step"])
    return None


def _trained(model: Any) -> dict[str, Any]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _allocator(model: Any) -> Any:
    return getattr(model.base_model, "rankallocator", None)
