"""How many bytes a token takes in vLLM's KV cache, told from the base's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.base import BaseModel

_OTHER_LAYERS = (
    "attn_type_list", "full_attn_idxs", "hybrid_override_pattern", "kv_lora_rank", "layers_block_type",
    "linear_num_key_heads", "mamba_d_state", "num_kv_shared_layers", "ssm_cfg", "state_size",
)  # fmt: skip
"""Keys of configurations whose layers don't each keep one key and one value a head."""
_WINDOWED = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class TokenCost:
    """`bytes` of one token in all layers; at most so many where `why` says something."""

    bytes: int
    why: str = ""


def token_cost(base: BaseModel, itemsize: int) -> TokenCost | None:
    """layers * 2 * KV heads * head size * `itemsize`; None for models whose cache is another.

    Layers with a window keep its tokens only, so a model with some takes less than is said here, by how much depends on
    how vLLM groups its layers.
    """
    config: dict[str, Any] = {**base.config, **base.text_config}
    if any(config.get(key) for key in _OTHER_LAYERS):
        return None
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    numbers: list[Any] = [
        config.get("num_hidden_layers"),
        heads,
        config.get("head_dim") or _head_size(config),
    ]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    kinds = config.get("layer_types")
    kinds = set(kinds) if isinstance(kinds, list) else set()
    if kinds - _WINDOWED:
        return None
    windowed = bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False
    cost = 2 * itemsize * math.prod(numbers)
    if kinds - {"full_attention"} or (not kinds and windowed):
        return TokenCost(cost, "some layers keep a window of tokens only")
    return TokenCost(cost)


def longest(base: BaseModel) -> int | None:
    """The most tokens of a prompt and its answer that the configuration speaks of."""
    found = {**base.config, **base.text_config}.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def _head_size(config: Mapping[str, Any]) -> int | None:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
        return hidden // heads
    return None
