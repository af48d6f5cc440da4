"""Adapters whose whole tensors were trained, too: PEFT's own folders, with those tensors moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def trained(folder: Path, seed: int, *, but: Sequence[str] = ()) -> Path:
    """What PEFT saved, with every whole tensor moved a little at random, those whose name has one of `but` aside."""
    path = folder / "adapter_model.safetensors"
    random = torch.Generator().manual_seed(seed)
    stored = load_file(path)
    for name, tensor in stored.items():
        if "lora_" not in name and not any(part in name for part in but):
            stored[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=random)
    save_file(stored, path, metadata={"format": "pt"})
    return folder
