"""Bases of known sizes without a weight: their configuration is all there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel

LLAMA_7B: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip
LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_70B: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8,
}  # fmt: skip


def skeleton(folder: Path, shape: dict[str, Any]) -> BaseModel:
    """A Llama of this shape, of which only the configuration lies in `folder`."""
    from transformers import LlamaConfig

    LlamaConfig(
        **shape, tie_word_embeddings=False, architectures=["LlamaForCausalLM"]
    ).save_pretrained(folder)
    return BaseModel(folder, None, None, {}, {})
