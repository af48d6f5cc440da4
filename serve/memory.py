"""How much memory there is for vLLM: the accelerator's, asked of its driver, and the host's. No library is loaded for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.free_memory import free_on_host

_MIB = 2**20
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits")  # fmt: skip
_SECONDS = 10.0


@dataclass(frozen=True)
class Memory:
    """Bytes for the model's weights, the slots and the KV cache, and bytes of the host.

    `device` is what to call the place of the first; on a CPU both are one. None: it can't be told.
    """

    device: str
    total: int | None
    free: int | None
    host_free: int | None
    gpu: bool


def find_memory(*, cpu: bool) -> Memory:
    """What is free now: of the first GPU that CUDA_VISIBLE_DEVICES leaves visible, or for a vLLM on the CPU of the host."""
    host = free_on_host()
    if cpu:
        return Memory("host", None, host, host, gpu=False)
    rows = read_gpus(_ask_driver())
    seen = visible(rows, os.environ)
    if seen is None:
        return Memory("GPU", None, None, host, gpu=True)
    return Memory(f"GPU {seen.index}, {seen.name}", seen.total, seen.free, host, gpu=True)


@dataclass(frozen=True)
class Gpu:
    """One row of what the driver says; sizes in bytes."""

    index: str
    uuid: str
    name: str
    total: int
    free: int


def read_gpus(text: str) -> list[Gpu]:
    """The rows of `nvidia-smi --query-gpu=index,uuid,name,memory.total,memory.free`; what can't be read is left out."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 5 and fields[3].isdigit() and fields[4].isdigit():
            index, uuid, name, total, free = fields
            found.append(Gpu(index, uuid, name, int(total) * _MIB, int(free) * _MIB))
    return found


def visible(gpus: list[Gpu], environment: Mapping[str, str]) -> Gpu | None:
    """The first of `gpus` that CUDA makes visible. CUDA may number different cards in another order than the driver."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus[0] if gpus else None
    first = chosen.split(",")[0].strip()
    return next(
        (
            gpu
            for gpu in gpus
            if first and (gpu.index == first or gpu.uuid.lower().startswith(first.lower()))
        ),
        None,
    )


def _ask_driver() -> str:
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
