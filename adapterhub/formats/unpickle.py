"""Reads one torch pickle and writes its tensors as safetensors: a program of its own, started by `convert` and ended by it.

Only `torch.load(weights_only=True)` looks at the pickle: it makes tensors and plain containers and calls nothing else.
Should that ever be fooled, this process has little to give: it can open no file or socket any more, and its memory, its
output and its processor time are bounded by what a file of that size can need.
Usage: python -m adapterhub.formats.unpickle PICKLE OUTPUT MEMORY SECONDS; one JSON object on stdout says what came of it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from adapterhub.formats.safetensors import encode_header

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALLOCATION = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)
_FOREIGN = re.compile(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|call of ([\w.]+)")


class _Refused(Exception):  # noqa: N818 - it never leaves this file
    """`kind` is "unsafe", "memory", "broken", "other" or "full"; `said` are words for the parent."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind
        self.said = said


def main(source: str, target: str, memory: int, seconds: int) -> dict[str, Any]:
    """Converts, and returns the rows [name, dtype, shape, sha256] of the tensors, or what was refused."""
    torch.set_num_threads(1)
    _load_lazy_modules()
    with Path(source).open("rb") as reader, Path(target).open("xb") as writer:
        _confine(memory, seconds)
        try:
            return {"tensors": _write(_tensors(_load(reader)), writer)}
        except _Refused as refused:
            return {"refused": refused.kind, "said": refused.said}


def _load_lazy_modules() -> None:
    """Both formats of torch are read once: what torch imports on the way can't be imported later."""
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"": torch.zeros(1)}, file, _use_new_zipfile_serialization=zipped)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)


def _confine(memory: int, seconds: int) -> None:
    """From here on this process opens nothing and takes at most `memory` more bytes, where the system knows such limits."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: memory,
        resource.RLIMIT_NPROC: 0,
    }
    with suppress(OSError):  # Linux
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * os.sysconf("SC_PAGE_SIZE") + memory
    limits[resource.RLIMIT_NOFILE] = 0
    for kind, limit in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))


def _load(reader: BinaryIO) -> Any:
    try:
        return torch.load(reader, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if foreign := _FOREIGN.search(text):
            name = next(group for group in foreign.groups() if group)
            raise _Refused("unsafe", f"it asks for {name}") from None
        raise _Refused("broken", _last_words(text)) from None
    except MemoryError:
        raise _Refused("memory", "") from None
    except Exception as error:  # noqa: BLE001 - whatever torch says about a strange file, it is one
        if _ALLOCATION.search(str(error)):
            raise _Refused("memory", "") from None
        raise _Refused("broken", _last_words(str(error)) or type(error).__name__) from None


def _last_words(text: str) -> str:
    """What torch says about the file itself, without its advice."""
    said = text.partition("WeightsUnpickler error:")[2] or text
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def _tensors(loaded: Any) -> dict[str, torch.Tensor]:
    """The tensors by name; anything else in the file is refused by name, never dropped."""
    if not isinstance(loaded, dict):
        raise _Refused("other", f"it holds a {type(loaded).__name__}, not a table of tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _Refused(
                "other", f"{str(name)[:80]!r} is a {type(value).__name__}, not a named tensor"
            )
        if value.layout != torch.strided or value.device.type != "cpu":
            raise _Refused("other", f"{name[:80]!r} is a {value.layout} tensor on {value.device}")
        if value.dtype not in _DTYPES:
            raise _Refused("other", f"{name[:80]!r} has the dtype {value.dtype}")
    # Wide values first, as safetensors itself writes them, so that every tensor is aligned.
    return dict(sorted(loaded.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _write(tensors: dict[str, torch.Tensor], writer: BinaryIO) -> list[list[Any]]:
    """Each tensor is written by itself, so shared storages and odd strides end here."""
    rows = [
        (name, _DTYPES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in tensors.items()
    ]
    written: list[list[Any]] = []
    try:
        writer.write(encode_header(rows, {"format": "pt"}))
        for (name, dtype, shape, _), tensor in zip(rows, tensors.values(), strict=True):
            plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
            data = plain.flatten().view(torch.uint8).numpy().data
            writer.write(data)
            written.append([name, dtype, list(shape), hashlib.sha256(data).hexdigest()])
        writer.flush()
    except (MemoryError, RuntimeError):
        raise _Refused("memory", "") from None
    except OSError as error:
        kind = "memory" if error.errno == errno.EFBIG else "full"
        raise _Refused(kind, str(error)) from None
    return written


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
