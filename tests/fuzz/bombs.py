"""Small files, and files of zeros, that announce more than any machine has; each read in a process of its own.

    python -m tests.fuzz.bombs NAME FOLDER

prints "taken" or "refused", and by how many bytes the process has grown at most.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from adapterhub.base import read_base
from adapterhub.errors import AdapterHubError
from adapterhub.formats.peft_config import read_config
from adapterhub.formats.safetensors import MAX_HEADER_BYTES, TensorFile
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import Readers

MEMORY = 512 * 2**20
"""More than any reader may take. Python holds a JSON document of 16 MiB, the largest that is read, in up to 400 MiB."""


def _zeros(path: Path, size: int = 4 * 2**30, begin: bytes = b"") -> Path:
    """A file that is this long and takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)
    return path


def _base(folder: Path, name: str) -> object:
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    return read_base(_zeros(folder / name).parent)


def _tensor(shape: list[int], dtype: str = "F32") -> bytes:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def _patterns(*patterns: str) -> bytes:
    table = dict.fromkeys(patterns, 2)
    return json.dumps({"peft_type": "LORA", "rank_pattern": table, "alpha_pattern": table}).encode()


FILES: Mapping[str, Callable[[Path], object]] = {
    "config of zeros": lambda folder: read_config(_zeros(folder / "config.json")),
    "base of zeros": lambda folder: _base(folder, "config.json"),
    "index of zeros": lambda folder: _base(folder, "model.safetensors.index.json"),
    "longest header, of zeros": lambda folder: TensorFile(
        _zeros(folder / "x.safetensors", begin=MAX_HEADER_BYTES.to_bytes(8, "little"))
    ),
}
BYTES: Mapping[str, tuple[str, bytes]] = {
    "largest manifest": ("manifest", b'{"a": [' + b"[]," * (5 * 2**20) + b"[]]}"),
    "2^80 values": ("safetensors", _tensor([2**40, 2**40])),
    "2^64 values": ("safetensors", _tensor([2**32, 2**32], "U8")),
    "header of 2^63 bytes": ("safetensors", (2**63).to_bytes(8, "little") + b"{}"),
    "repeats of repeats": ("config", _patterns("((x{1000}){1000}){1000}")),
    "a repeat of ten digits": ("config", _patterns("x{2147483647}")),
    "a repeat from one to many": ("config", _patterns("(x|y){1,1999999999}")),
    "a thousand patterns": ("config", _patterns(*(f"({n}|" + "a?" * 2000 + ")" for n in range(1000)))),
    "all characters": ("config", _patterns("(?i:[\0-\U0010ffff])" * 200)),
    "much to go back on": ("config", _patterns("(a|.|[^x])*" * 50 + "y", "(.*)*" * 100 + "y")),
    "deep groups": ("config", _patterns("(" * 2000 + ")" * 2000)),
}  # fmt: skip
"""Which of the readers reads it, and what."""
BOMBS = (*FILES, *BYTES)


def main(name: str, folder: Path) -> tuple[str, int]:
    """What became of it, and what it cost."""
    targets = Readers(folder).targets()
    for target in targets:
        targets[target].read(SEEDS[target][0])  # from here on every library is loaded
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = (
        used + 4 * MEMORY
    )  # a reader may take a MemoryError for an answer, so that alone would show nothing
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = "taken"
    try:
        if name in FILES:
            FILES[name](folder / "bomb")
        else:
            target, data = BYTES[name]
            targets[target].read(data)
    except AdapterHubError:
        outcome = "refused"
    return outcome, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


if __name__ == "__main__":
    sys.stdout.write("{} {}\n".format(*main(sys.argv[1], Path(sys.argv[2]))))
