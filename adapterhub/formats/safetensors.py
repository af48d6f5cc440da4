"""Reading safetensors files that strangers made, without torch.

The header is checked completely before anything is mapped, because everything after it trusts the offsets: lengths,
dtypes, shapes against byte counts, overlaps, holes, duplicate names. Values come out as numpy arrays over the mapped
file; bfloat16 and float8, which numpy lacks, are widened to float32 exactly.
Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from adapterhub.errors import FormatError

if TYPE_CHECKING:  # reading a header needs no numpy, so it is loaded with the first value
    import numpy as np
    import numpy.typing as npt

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's own limit
MAX_NAME = 4096
"""Characters of a tensor's name. Real ones have at most a few hundred; taking a very long one apart takes long."""
BLOCK_BYTES = 2**20
"""Bytes looked at a time where a whole tensor isn't needed: they fit into the processor's cache."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_NUMPY: dict[str, str] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "F8_E5M2": "u1", "F8_E4M3": "u1", "I16": "<i2", "U16": "<u2", "F16": "<f2",
    "BF16": "<u2", "I32": "<i4", "U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8", "F8_E8M0": "u1",
}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3"})
# For every dtype that can say NaN or infinity: its bits as unsigned integers, those without the sign, and the first
# pattern of those that is no finite number. Finite numbers order as their bits do.
_FINITE_BELOW = {
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "C64": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F8_E5M2": ("u1", 0x7F, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
    "F8_E8M0": ("u1", 0xFF, 0xFF),
}
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
               "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn"}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: byte range `[start, end)` in `path`, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    path: Path

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class TensorFile:
    """A checked safetensors file, mapped read-only. Use as a context manager, or let it be collected."""

    def __init__(self, path: Path, *, label: str | None = None) -> None:
        """Raises FormatError when the file is not a sound safetensors file, OSError when it can't be read.

        `label` is what errors call the file, where its own name says nothing to a person.
        """
        self.path = path
        self.label = label or path.name
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.infos, self.metadata = read_header(path, self.label, file.read(8), file, size)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmaps the file, unless an array still looks into it."""
        try:
            self._map.close()
        except BufferError:
            pass

    def raw(self, name: str) -> memoryview:
        """The tensor's bytes, not copied."""
        info = self.infos[name]
        return memoryview(self._map)[info.start : info.end]

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor in its own shape and dtype; bfloat16 and float8 as float32. FormatError for other dtypes."""
        info = self.infos[name]
        return _widen(self._stored(info, 0, info.count), info).reshape(info.shape)

    def floats(self, name: str, first: int, count: int) -> npt.NDArray[np.float32]:
        """`count` values from flat index `first` on, widened to float32; only their pages are touched."""
        import numpy as np

        info = self.infos[name]
        values: npt.NDArray[np.float32] = _widen(self._stored(info, first, count), info).astype(
            np.float32, copy=False
        )
        return values

    def columns(self, name: str, first: int, last: int) -> npt.NDArray[np.float32]:
        """Columns [first, last) of a matrix, widened to float32; the others are neither copied nor widened."""
        import numpy as np

        info = self.infos[name]
        stored = self._stored(info, 0, info.count).reshape(info.shape)[:, first:last]
        values: npt.NDArray[np.float32] = _widen(stored, info).astype(np.float32, copy=False)
        return values

    def scan(self, name: str) -> tuple[bool, bool]:
        """Whether all values of the tensor are finite, and whether any is other than zero. One pass over its bits."""
        import numpy as np

        info = self.infos[name]
        if info.dtype not in _FINITE_BELOW:
            return True, True
        words, without_sign, limit = _FINITE_BELOW[info.dtype]
        dtype = np.dtype(words)
        mask, largest = dtype.type(without_sign), 0
        for start in range(info.start, info.end, BLOCK_BYTES):
            count = (min(info.end, start + BLOCK_BYTES) - start) // dtype.itemsize
            block = np.frombuffer(self._map, dtype, count, start)
            largest = max(largest, int((block & mask).max()))
        return largest < limit, largest > 0

    def take(self, name: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The values at flat `indices`, touching only the pages they lie on."""
        info = self.infos[name]
        return _widen(self._stored(info, 0, info.count)[indices], info)

    def _stored(self, info: TensorInfo, first: int, count: int) -> npt.NDArray[Any]:
        if info.dtype not in _NUMPY:
            raise FormatError(
                f"{self.label}: tensor {info.name!r} has dtype {info.dtype}, which can't be read here."
            )
        import numpy as np

        dtype = np.dtype(_NUMPY[info.dtype])
        return np.frombuffer(self._map, dtype, count, info.start + first * dtype.itemsize)


def read_header(
    path: Path, label: str, head: bytes, file: Any, size: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensor table and metadata of a safetensors file of `size` bytes whose first 8 are `head`; `file` stands behind them."""

    def bad(why: str) -> FormatError:
        return FormatError(
            f"{label} is not a sound safetensors file.",
            why=why[0].upper() + why[1:],
            hint="Fetch or save the file again; nothing was loaded from it.",
        )

    if len(head) < 8:
        raise bad(f"it has only {size} bytes.")
    length = int.from_bytes(head, "little")
    impossible = length > MAX_HEADER_BYTES or 8 + length > size
    # Only then: a sound file's header may well have a length whose first byte looks like a pickle's.
    if impossible and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80"):
        raise bad(
            "it is a pickle (torch.save) under another name; pickles can run code and are never loaded."
        )
    if impossible:
        raise bad(
            f"it announces a header of {length} bytes, but the file has {size} bytes (or it is no safetensors file)."
        )
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise bad(f"its header is not JSON: {error}.") from error
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise bad("its __metadata__ is not a table of strings.")
    infos = {}
    for name, entry in header.items():
        infos[name] = _tensor(path, name, entry, 8 + length, size, bad)
    _check_cover(infos, 8 + length, size, bad)
    return infos, metadata


def encode_header(
    tensors: Sequence[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]
) -> bytes:
    """The bytes before the data: length and header for (name, dtype, shape, size in bytes) in the order of the data."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, size in tensors:
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for aligned data
    return len(text).to_bytes(8, "little") + text


def _tensor(path: Path, name: str, entry: Any, origin: int, size: int, bad: Any) -> TensorInfo:
    if len(name) > MAX_NAME:
        raise bad(f"a tensor's name has {len(name)} characters: {name[:80]!r}...")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise bad(f"tensor {name!r} lacks dtype, shape or data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise bad(f"tensor {name!r} has the unknown dtype {dtype!r}.")
    if not _counts(shape) or len(shape) > 16:
        raise bad(f"tensor {name!r} has no valid shape.")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad(f"tensor {name!r} has no valid data_offsets.")
    start, end = origin + offsets[0], origin + offsets[1]
    if end > size:
        raise bad(
            f"tensor {name!r} ends at byte {end}, but the file has {size} bytes (truncated?)."
        )
    bits = math.prod(shape) * _BITS[dtype]
    if bits != (end - start) * 8:
        raise bad(
            f"tensor {name!r} of shape {shape} and dtype {dtype} needs {bits // 8} bytes, its offsets give {end - start}."
        )
    return TensorInfo(name, dtype, tuple(shape), start, end, path)


def _check_cover(infos: dict[str, TensorInfo], origin: int, size: int, bad: Any) -> None:
    """Every byte behind the header belongs to exactly one tensor, as the format demands."""
    expected, previous = origin, ""
    for info in sorted(infos.values(), key=lambda info: (info.start, info.end)):
        if info.start < expected:
            raise bad(f"tensors {previous!r} and {info.name!r} overlap.")
        if info.start > expected:
            raise bad(
                f"there are {info.start - expected} bytes before tensor {info.name!r} that belong to no tensor."
            )
        expected, previous = info.end, info.name
    if expected != size:
        raise bad(f"{size - expected} bytes at the end belong to no tensor.")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**48 for item in value
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _widen(stored: npt.NDArray[Any], info: TensorInfo) -> npt.NDArray[Any]:
    import numpy as np

    if info.dtype == "BF16":
        widened: npt.NDArray[np.uint32] = np.left_shift(stored, 16, dtype=np.uint32)
        return widened.view(np.float32)
    if info.dtype == "F8_E8M0":
        powers = np.exp2(np.where(stored == 255, 0.0, stored.astype(np.float64) - 127))
        return np.where(stored == 255, np.float32(np.nan), powers.astype(np.float32))
    if info.dtype in ("F8_E5M2", "F8_E4M3"):
        table: npt.NDArray[Any] = _float8_table(info.dtype)[stored]
        return table
    return stored


@lru_cache(maxsize=2)
def _float8_table(dtype: str) -> npt.NDArray[np.float32]:
    """All 256 values of a float8 (OCP FP8 specification: E5M2 like IEEE, E4M3 without infinities)."""
    import numpy as np

    exponent_bits, mantissa_bits, bias = (5, 2, 15) if dtype == "F8_E5M2" else (4, 3, 7)
    table = np.empty(256, np.float32)
    for code in range(256):
        sign = -1.0 if code & 0x80 else 1.0
        exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
        fraction = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
        value = (
            math.ldexp(1 + fraction, exponent - bias)
            if exponent
            else math.ldexp(fraction, 1 - bias)
        )
        if dtype == "F8_E5M2" and exponent == 31:
            value = math.inf if fraction == 0 else math.nan
        elif dtype == "F8_E4M3" and code & 0x7F == 0x7F:
            value = math.nan
        table[code] = sign * value
    return table
