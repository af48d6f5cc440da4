"""Models in 4 bits as transformers loads them, and their weights by hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.support.adapters import TORCH_DTYPES

if TYPE_CHECKING:
    from adapterhub.export.quantize.fourbit import FourBit

DEMO_BASE = Path(__file__).parents[2] / "demo-work" / "inputs" / "base"
"""SmolLM2-135M-Instruct, where `make demo` has run."""


def load_in_4bit(base: Path, how: FourBit) -> Any:
    """The model in `base`, quantised while transformers loads it. Not yet run: that repacks it on some CPUs."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from adapterhub.evaluate.models import hush_optional_kernels

    hush_optional_kernels()
    dtype = TORCH_DTYPES[how.dtype]
    return AutoModelForCausalLM.from_pretrained(
        base,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=how.kind,
            bnb_4bit_use_double_quant=how.double,
            bnb_4bit_compute_dtype=dtype,
        ),
        device_map={"": "cpu"},
    )


def packed_weights(model: Any) -> dict[str, tuple[torch.Tensor, Any]]:
    """(packed values, QuantState) of every quantised weight, by the name of its tensor."""
    return {
        f"{name}.weight": (module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }


def by_hand(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """code · scale, for values in order, each block of 64 with the next scale, whatever the width of a row."""
    scales = state.absmax
    if state.nested:
        inner = state.state2
        scales = inner.code[scales.int()] * inner.absmax.repeat_interleave(256)[: scales.numel()]
        scales = scales + state.offset
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten().int()
    values = state.code[codes] * scales.repeat_interleave(64)[: codes.numel()]
    found: torch.Tensor = values.reshape(state.shape).to(state.dtype)
    return found
