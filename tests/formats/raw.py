"""safetensors files written byte by byte, so that they can be wrong in any way one likes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

Tensors = Mapping[str, tuple[str, list[int], bytes]]
"""Name -> dtype, shape, bytes."""


def file_of(
    header: Mapping[str, Any] | bytes, data: bytes = b"", *, length: int | None = None
) -> bytes:
    """A file with this header (JSON or raw bytes) and data; `length` is announced in place of the header's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def table_of(tensors: Tensors) -> dict[str, Any]:
    """The header of a sound file that holds `tensors` one after another."""
    table: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    return table


def sound_file(tensors: Tensors, *, padding: int = 0) -> bytes:
    """A correct file; `padding` blanks are put behind the header's JSON, as writers do to align the data."""
    text = json.dumps(table_of(tensors)).encode() + b" " * padding
    return file_of(text, b"".join(data for _, _, data in tensors.values()))


def pair(
    module: str,
    *,
    rank: int = 4,
    width: int = 64,
    out: int = 64,
    dtype: str = "F32",
    fill: bytes = b"\0\0\0\0",
) -> dict[str, tuple[str, list[int], bytes]]:
    """lora_A and lora_B of one module, every value the bytes `fill`."""
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": (dtype, [rank, width], fill * (rank * width)),
        f"{name}.lora_B.weight": (dtype, [out, rank], fill * (out * rank)),
    }
