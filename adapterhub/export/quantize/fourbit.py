"""bitsandbytes' 4-bit arithmetic on a stretch of a tensor at a time: the values that a model loaded in 4 bits computes with.

A tensor is one flat row of blocks of 64 values, each with the largest magnitude in it as its scale. In double quantisation
the scales less their mean are quantised too, to 8 bits in blocks of 256. So a stretch of whole blocks can be computed by
itself, once the scales of the whole tensor are known: a 64th of its values.

Dettmers et al. 2023, QLoRA, arXiv:2305.14314.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch

from adapterhub.errors import MissingDependencyError
from adapterhub.evaluate.models import hush_optional_kernels

BLOCK = 64
"""Values that share a scale. transformers has no setting for it."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own."""
STRETCH = 2**17
"""Values quantised at a time; whole blocks."""

Kind = Literal["nf4", "fp4"]
KINDS: dict[str, Kind] = {"nf4": "nf4", "fp4": "fp4"}
"""By what people and files call them."""


@dataclass(frozen=True)
class FourBit:
    """How a model is quantised as it is loaded.

    `dtype`, the torch name of a float type, is what the weights are cast to before, and what they are read back in.
    """

    kind: Kind
    double: bool
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True)
class Scales:
    """The scales of a whole tensor, as they are stored: float32, or in double quantisation 8 bits and what those need."""

    absmax: torch.Tensor
    nested: Any
    """bitsandbytes' QuantState of the scales; None in simple quantisation."""
    offset: torch.Tensor | None

    def read_back(self) -> torch.Tensor:
        """What the blocks are multiplied with: float32."""
        if self.offset is None:
            return self.absmax
        found: torch.Tensor = _functional().dequantize_blockwise(self.absmax, self.nested)
        return found + self.offset


def quantise(values: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales) of flat values, whole blocks up to the tensor's end: uint8 (n/2, 1), two to a byte; float32 (n/64,)."""
    packed, state = _functional().quantize_4bit(values, blocksize=BLOCK, quant_type=kind)
    return packed, state.absmax


def largest(values: torch.Tensor, kind: Kind) -> torch.Tensor:
    """The scales that `quantise` finds, in a thirtieth of its time. A largest magnitude is exact, however it is found."""
    if values.numel() % BLOCK:
        return quantise(values, kind)[1]
    return values.view(-1, BLOCK).abs().amax(1).float()


def settle(found: list[torch.Tensor], how: FourBit) -> Scales:
    """What is stored of a whole tensor's float32 scales, given in order."""
    absmax = torch.cat(found)
    if not how.double:
        return Scales(absmax, None, None)
    offset = absmax.mean()
    codes, nested = _functional().quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK)
    return Scales(codes, nested, offset)


def as_stored(scales: Scales, shape: tuple[int, ...], how: FourBit) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint has beside the codes of a weight, by what their names end in."""
    bnb = _functional()
    state = bnb.QuantState(
        absmax=scales.absmax,
        shape=shape,
        code=bnb.get_4bit_type(how.kind, device="cpu"),
        blocksize=BLOCK,
        quant_type=how.kind,
        dtype=how.torch_dtype,
        offset=scales.offset,
        state2=scales.nested,
    )
    found: dict[str, torch.Tensor] = state.as_dict(packed=True)
    return found


def dequantise(codes: torch.Tensor, scales: torch.Tensor, count: int, how: FourBit) -> torch.Tensor:
    """`count` flat values in `how.dtype` from the codes and float32 scales of whole blocks.

    The blocks are given to bitsandbytes as rows of their own. It knows a tensor's shape, and its kernel for CPUs with
    AVX-512 (0.50) takes wrong scales for rows that end within a block; on GPUs they are right, and so they are here.
    """
    blocks = scales.numel()
    whole = torch.nn.functional.pad(codes.flatten(), (0, blocks * BLOCK // 2 - codes.numel()))
    bnb = _functional()
    state = bnb.QuantState(
        absmax=scales,
        shape=torch.Size((blocks, BLOCK)),
        blocksize=BLOCK,
        quant_type=how.kind,
        dtype=how.torch_dtype,
        code=bnb.get_4bit_type(how.kind, device=codes.device),
    )
    values: torch.Tensor = bnb.dequantize_4bit(whole.reshape(-1, 1), state)
    return values.reshape(-1)[:count]


def blocks_of(count: int) -> int:
    """How many blocks hold so many values."""
    return math.ceil(count / BLOCK)


def require_bitsandbytes() -> None:
    """MissingDependencyError, with what to install, where it or transformers is missing."""
    for name in ("bitsandbytes", "transformers"):
        if find_spec(name) is None:
            raise MissingDependencyError(
                f"Weights in 4 bits need {name}, which is not installed.",
                hint="pip install 'adapterhub[train]'",
            )


def _functional() -> Any:
    hush_optional_kernels()
    import bitsandbytes.functional

    return bitsandbytes.functional
