"""Bases of which only the headers are there: enough for everything that is computed before vLLM starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel
from adapterhub.formats.safetensors import TensorInfo
from tests.support.adapters import linears

LLAMA_8B: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Llama-3.1-8B."""
_BYTES = {"BF16": 2, "F32": 4}


def headers(
    config: Mapping[str, Any] = LLAMA_8B, *, dtype: str = "BF16", **changed: Any
) -> BaseModel:
    """A Llama of this configuration, with every tensor it has and none of its values."""
    config = {**config, **changed}
    hidden, inner, words = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (words, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (words, hidden)
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (hidden,)
        for name, shape in linears(hidden, key_value, inner).items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    path = Path("/nowhere/model.safetensors")
    tensors = {
        name: TensorInfo(name, dtype, shape, 0, math.prod(shape) * _BYTES[dtype], path)
        for name, shape in shapes.items()
    }
    return BaseModel(path.parent, "org/base", None, config, tensors)
