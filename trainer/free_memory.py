"""How much memory a training may take on this machine: on a GPU what is free there, else what Linux and its cgroup leave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.free_memory import free_on_host

if TYPE_CHECKING:
    from adapterhub.trainer.model import Device


def available_memory(device: Device) -> int | None:
    """Bytes that are free on `device`; None where that can't be told."""
    if device.kind == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info(device.index)[0]
        return free
    return free_on_host()
