"""DoRA adapters that PEFT made, and what they add to their base by PEFT's own merge, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.attached import attach, load
from tests.support.dense import Deltas


def dora_adapter(
    make: Callable[..., Path], base: Path, name: str, *, seed: int, **settings: Any
) -> Path:
    """Made by `make_peft_adapter`; its magnitudes are then moved by a tenth at random, as if they had been trained."""
    folder = make(base, name, use_dora=True, seed=seed, strength=0.2, **settings)
    path = folder / "adapter_model.safetensors"
    random = torch.Generator().manual_seed(seed)
    stored = load_file(path)
    for key, tensor in stored.items():
        if "magnitude" in key:
            stored[key] = tensor * (1 + 0.1 * torch.randn(tensor.shape, generator=random))
    save_file(stored, path, metadata={"format": "pt"})
    return folder


def deltas_by_peft(base: Path, adapter: Path) -> Deltas:
    """Module -> (out, in): PEFT's merge_and_unload in float64, less the base."""
    plain: Any = load(base).double()
    merged: Any = attach(load(base), adapter).double().merge_and_unload()
    found = {}
    for name, weight in plain.named_parameters():
        delta = (merged.get_parameter(name) - weight).detach()
        if bool(delta.any()):
            module = name.removesuffix(".weight")
            conv1d = type(plain.get_submodule(module)).__name__ == "Conv1D"
            found[module] = (delta.T if conv1d else delta).contiguous().numpy()
    return found
