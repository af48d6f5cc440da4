"""What a training holds in memory, byte by byte, told from a model without memory (`model.meta_model`).

Weights, adapters, gradients and optimizer states are counted tensor by tensor and exact. What autograd keeps of a layer is
counted from its linear layers by what their backward passes need in a Llama-like block: a frozen weight keeps no input, an
adapted one keeps it for A and the low-rank product for B, attention its queries, keys, values and result, and a gated MLP
four times its width. The tests hold it against the tensors that autograd really saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share a scale in NF4, and scales that share one of their own in double quantisation."""
_NF4_TABLES = 16 * 4 + 256 * 4 + 4
"""Of each quantised weight, float32: its 16 codes, the 256 codes of its scales, their mean."""
SMALL_STATE = 4096
"""bitsandbytes keeps the optimizer states of smaller tensors in float32."""
_STATE_BLOCK = 256
FLOAT = 4


def nf4_bytes(count: int, *, double: bool = True) -> int:
    """Bytes of a weight of `count` values in NF4, scales included: 4.127 bits a value, 4.5 without double quantisation."""
    packed, blocks = (count + 1) // 2, math.ceil(count / BLOCK)
    if not double:
        return packed + FLOAT * blocks + 16 * FLOAT
    return packed + blocks + FLOAT * math.ceil(blocks / NESTED_BLOCK) + _NF4_TABLES


def adamw_bytes(count: int, *, eight_bit: bool) -> int:
    """Bytes of AdamW's two states of a tensor of `count` values."""
    if not eight_bit or count < SMALL_STATE:
        return 2 * FLOAT * count
    return 2 * (count + FLOAT * math.ceil(count / _STATE_BLOCK))


@dataclass(frozen=True)
class Linear:
    """A linear layer: its sizes, the adapter's rank on it (0: none), whether its adapter has a magnitude (DoRA)."""

    name: str
    in_features: int
    out_features: int
    rank: int
    dora: bool

    @property
    def part(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def in_attention(self) -> bool:
        return any(word in self.name.lower() for word in ("attn", "attention"))


@dataclass(frozen=True)
class Layer:
    """The linear layers of one block of the decoder, and the width of what runs through it."""

    hidden: int
    heads: int
    linears: tuple[Linear, ...]
    gated: bool

    def kept(self, itemsize: int, *, mask: int, shared_inputs: bool, rows_apart: bool) -> int:
        """Bytes autograd keeps of one token.

        Args:
            itemsize: of the dtype that is computed in; the norms compute in float32 anyway.
            mask: bytes a value of dropout's masks on the adapters' inputs, each of which is then kept by itself; 0: no dropout.
            shared_inputs: whether adapters on the same input keep it once; casts to another dtype make copies.
            rows_apart: whether attention joins the pieces of packed rows, which copies its result.
        """
        own = mask > 0 or not shared_inputs
        kept: float = 2 * self.hidden * FLOAT + 2 * FLOAT + self.heads * FLOAT
        shared: set[tuple[str, int]] = set()
        for one in self.linears:
            source = "attention" if one.in_attention else "mlp"
            if one.in_attention and not self._leaves_attention(one):
                kept += one.out_features * itemsize  # a query, key or value
            elif one.in_attention:
                kept += one.in_features * itemsize  # the result of attention
            elif self._enters_mlp(one):
                # gate: its value and its activation, up: its value; without a gate: value and, adapted, activation
                kept += one.out_features * itemsize * (3 / 2 if self.gated else 1)
            if not one.rank:
                continue
            kept += one.rank * itemsize
            if one.dora:
                kept += 2 * one.out_features * itemsize
            if self._leaves_attention(one):
                again = rows_apart or own  # else it is the result itself
            elif one.in_attention or self._enters_mlp(one):
                again = own or (source, one.in_features) not in shared
                shared.add((source, one.in_features))
            else:
                again = True
            if again:
                kept += one.in_features * itemsize
            kept += mask * one.in_features
        return round(kept)

    def working(self, itemsize: int) -> int:
        """Bytes of one token that the backward pass of this layer holds besides: about three gradients of its widest part."""
        return (
            3
            * itemsize
            * max((max(one.in_features, one.out_features) for one in self.linears), default=0)
        )

    def _leaves_attention(self, one: Linear) -> bool:
        return one.in_attention and one.part in ("o_proj", "out_proj", "c_proj", "dense", "wo")

    def _enters_mlp(self, one: Linear) -> bool:
        return not one.in_attention and one.out_features > one.in_features


@dataclass(frozen=True)
class Footprint:
    """An adapted model without memory, measured. Sizes in bytes."""

    model: Any
    recipe: Recipe
    device: Device

    @property
    def itemsize(self) -> int:
        """Of a value of the dtype that the base computes in."""
        return {"float32": 4, "bfloat16": 2, "float16": 2}[self.device.dtype]

    @property
    def config(self) -> Any:
        """The language model's part of the configuration."""
        return self.model.get_base_model().config.get_text_config()

    @cached_property
    def trainable(self) -> list[int]:
        """The number of values of every trained tensor."""
        return [p.numel() for p in self.model.parameters() if p.requires_grad]

    @cached_property
    def weights(self) -> tuple[int, int]:
        """(bytes of quantised weights, bytes of the others) of the frozen base; a tied head counts once."""
        quantised = self.recipe.method == "qlora"
        linear = {id(module.weight) for module in self._quantised_modules()} if quantised else set()
        small = whole = 0
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                continue
            if id(parameter) in linear:
                small += nf4_bytes(parameter.numel())
            else:
                whole += parameter.numel() * self.itemsize
        return small, whole

    @cached_property
    def largest_quantised(self) -> int:
        """Values of the largest weight that is unpacked to be computed with; 0 where none is."""
        if self.recipe.method != "qlora":
            return 0
        return max((module.weight.numel() for module in self._quantised_modules()), default=0)

    @cached_property
    def layers(self) -> list[Layer]:
        """The blocks of the decoder."""
        decoder = self.model.get_base_model().get_decoder()
        blocks: Any = next(
            (
                getattr(decoder, name)
                for name in ("layers", "h", "blocks")
                if hasattr(decoder, name)
            ),
            [],
        )
        heads = int(getattr(self.config, "num_attention_heads", 0) or 0)
        return [self._layer(block, heads) for block in blocks]

    def _layer(self, block: Any, heads: int) -> Layer:
        linears = tuple(_linears(block))
        entering = [
            one for one in linears if not one.in_attention and one.out_features > one.in_features
        ]
        return Layer(int(self.config.hidden_size), heads, linears, len(entering) > 1)

    def _quantised_modules(self) -> Iterator[Any]:
        """What transformers gives to bitsandbytes: every linear layer but the output head."""
        from torch import nn

        head = self.model.get_output_embeddings()
        for name, module in self.model.named_modules():
            if "lora_" in name or module is head:
                continue
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                yield module


def _linears(block: Any) -> Iterator[Linear]:
    """The linear layers of a block, adapted ones with the rank of what was put on them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    for name, module in block.named_modules():
        if isinstance(module, BaseTunerLayer):
            inner: Any = module.get_base_layer()
            ranks: Any = getattr(module, "r", None) or {"default": 1}
            dora = any(getattr(module, "use_dora", {}).values())
            yield Linear(name, *_sizes(inner), max(map(int, ranks.values())), dora)
        elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            if not any(part in name for part in ("lora_", "base_layer")):
                yield Linear(name, *_sizes(module), 0, dora=False)


def _sizes(module: Any) -> tuple[int, int]:
    """(in, out): a linear layer's weight is (out, in), a Conv1D's (in, out)."""
    first, second = module.weight.shape
    return (first, second) if type(module).__name__ == "Conv1D" else (second, first)
