"""Rows that ask for the base get nothing from an adapter, in the kernels vLLM runs where it has no Triton.

In a batch, rows of the base carry the adapter index -1. Triton's kernels skip them. The PyTorch ones (`torch_ops`, used
on CPUs) index the stacked weights with it, which is the *last* slot: with every slot taken, an adapter answers for the
base (vllm-project/vllm #48421, #49656). Whether a vLLM does so is found by trying it, whatever its version says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SOUND = ("punica_gpu", "punica_xpu")
"""Modules of the wrappers whose kernels aren't PyTorch's; Triton's skip -1."""
_MARK = "_adapterhub_keeps_base_rows_apart"


@dataclass(frozen=True)
class Protection:
    """What was found: the operations in which base rows change, and whether the mask is in place."""

    exposed: tuple[str, ...]
    installed: bool


_found: Protection | None = None


def protect() -> Protection:
    """Puts the mask in place where this vLLM needs it. The second call in a process does nothing.

    Raises:
        Exception: whatever vLLM's own modules raise where they are no longer as they were.
    """
    global _found
    if _found is None:
        from vllm.platforms import current_platform

        try:
            wrapper = current_platform.get_punica_wrapper()
        except NotImplementedError:  # no LoRA on this platform
            wrapper = ""
        if not wrapper or any(module in wrapper for module in _SOUND):
            _found = Protection((), installed=False)
        elif not exposed():
            _found = Protection((), installed=masked())
        else:
            install()
            _found = Protection(exposed(), installed=True)
    return _found


def exposed() -> tuple[str, ...]:
    """The LoRA operations of this vLLM's PyTorch wrapper in which a row of the base doesn't stay as it was.

    Two rows, one of the base and one of the only adapter, through what the layers call: prefill and decode, linear layers,
    embeddings and logits.

    Raises:
        RuntimeError: an adapter's own row came out wrong, so nothing can be told.
    """
    import torch
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    found = []
    for prefill in (True, False):
        wrapper = PunicaWrapperCPU(2, 2, device="cpu")
        mapping: Any = SimpleNamespace(
            index_mapping=(0, 1), prompt_mapping=(0, 1), is_prefill=prefill, type=None
        )
        wrapper.update_metadata(mapping, [1], 2, 4)  # adapter 1 in the only slot
        for name, run in _operations(wrapper).items():
            y = torch.zeros(2, 4)
            run(y)
            if not bool((y[1] == 3).all()):
                raise RuntimeError(f"an adapter's row in {name} came out as {y[1].tolist()}, not 3")
            if bool(y[0].any()):
                found.append(f"{name} ({'prefill' if prefill else 'decode'})")
    return tuple(found)


def _operations(wrapper: Any) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What adds an adapter of rank 1 to y (2, 4), in place: 3 to every value."""
    import torch

    x, a, b = torch.ones(2, 3), torch.ones(1, 1, 1, 3), torch.ones(1, 1, 4, 1)
    return {
        "linear layers": lambda y: wrapper.add_lora_linear(y, x, (a,), (b,), 1.0, (4,)),
        "embeddings": lambda y: wrapper.add_lora_embedding(y, 3 * x[:, :1], b),
        "logits": lambda y: wrapper.add_lora_logits(y, x, a, b, 1.0),
    }


def masked() -> bool:
    """Whether the mask is in place in this process."""
    from vllm.lora.ops.torch_ops import lora_ops

    return hasattr(lora_ops.bgmv_shrink, _MARK)


def install() -> None:
    """Replaces the three row-wise kernels wherever vLLM has them by name. The segmented ones (`sgmv_*`) call these."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if masked():
        return
    kernels = {
        "bgmv_shrink": masked_shrink(lora_ops.bgmv_shrink),
        "bgmv_expand": masked_expand(lora_ops.bgmv_expand),
        "bgmv_expand_slice": masked_expand_slice(lora_ops.bgmv_expand_slice),
    }
    for name, kernel in kernels.items():
        setattr(kernel, _MARK, True)
        for module in (lora_ops, torch_ops, punica_cpu):
            setattr(module, name, kernel)


def masked_shrink(kernel: Callable[..., None]) -> Callable[..., None]:
    """`output[:, :rank] = scaling * inputs @ A.T`, by row; 0 in rows of the base."""

    def bgmv_shrink(
        inputs: torch.Tensor,
        lora_b_weights: torch.Tensor,
        output_tensor: torch.Tensor,
        lora_indices_tensor: torch.Tensor,
        scaling: float = 1.0,
    ) -> None:
        if not _has_base_rows(lora_indices_tensor):
            kernel(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling)
            return
        columns = output_tensor[:, : lora_b_weights.shape[-2]]
        rest = (lora_b_weights, lora_indices_tensor, (scaling,))
        _run_on_adapters(kernel, inputs, columns, *rest, adds=False)

    return bgmv_shrink


def masked_expand(kernel: Callable[..., None]) -> Callable[..., None]:
    """`output += inputs @ B.T`, by row (`=` without `add_inputs`); nothing (or 0) in rows of the base."""

    def bgmv_expand(
        inputs: torch.Tensor,
        lora_b_weights: torch.Tensor,
        output_tensor: torch.Tensor,
        lora_indices_tensor: torch.Tensor,
        add_inputs: bool = True,
    ) -> None:
        if not _has_base_rows(lora_indices_tensor):
            kernel(inputs, lora_b_weights, output_tensor, lora_indices_tensor, add_inputs)
            return
        # all columns, where adapter and model pad the vocabulary differently: as many as both have
        columns = output_tensor[:, : lora_b_weights.shape[-2]]
        rest = (lora_b_weights, lora_indices_tensor, (add_inputs,))
        _run_on_adapters(kernel, inputs, columns, *rest, adds=add_inputs)

    return bgmv_expand


def masked_expand_slice(kernel: Callable[..., None]) -> Callable[..., None]:
    """As `masked_expand`, into `slice_size` columns from `slice_offset` on."""

    def bgmv_expand_slice(
        inputs: torch.Tensor,
        lora_b_weights: torch.Tensor,
        output_tensor: torch.Tensor,
        lora_indices_tensor: torch.Tensor,
        slice_offset: int,
        slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        if not _has_base_rows(lora_indices_tensor):
            where = (lora_indices_tensor, slice_offset, slice_size)
            kernel(inputs, lora_b_weights, output_tensor, *where, add_inputs)
            return
        columns = output_tensor[:, slice_offset : slice_offset + slice_size]
        rest = (lora_b_weights, lora_indices_tensor, (0, slice_size, add_inputs))
        _run_on_adapters(kernel, inputs, columns, *rest, adds=add_inputs)

    return bgmv_expand_slice


def _has_base_rows(indices: torch.Tensor) -> bool:
    return bool(indices.numel()) and indices.min().item() < 0


def _run_on_adapters(
    kernel: Callable[..., None],
    inputs: torch.Tensor,
    columns: torch.Tensor,
    weights: torch.Tensor,
    indices: torch.Tensor,
    settings: tuple[object, ...],
    *,
    adds: bool,
) -> None:
    """Runs a kernel on the adapters' rows alone, of a batch that has others.

    A base row isn't computed and then discarded: a NaN in some slot can't reach it, and its bits stay as they are
    (adding 0 would turn -0 into 0).

    Args:
        columns: those of the output that the kernel writes.
        settings: the kernel's arguments after the indices, as for an output of these columns alone.
        adds: whether it adds to what is there; else base rows become 0.
    """
    rows = (indices >= 0).nonzero().squeeze(1)
    if not len(rows):
        if not adds:
            columns.zero_()
        return
    if len(indices) != len(columns):
        raise ValueError(f"{len(indices)} adapter indices for {len(columns)} rows")
    part = columns.index_select(0, rows)
    chosen = (inputs.index_select(0, rows), weights, part, indices.index_select(0, rows))
    kernel(*chosen, *settings)
    if not adds:
        columns.zero_()
    columns.index_copy_(0, rows, part)
