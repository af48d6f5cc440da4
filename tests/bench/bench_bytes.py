"""How fast bytes go into a store and are checked there: `make bench-store`. No test: nothing here passes or fails.

An adapter of 100 MB is added, beside what cp, sync and sha256sum need for the same file; added again; and the whole
store is read again by fsck, beside sha256sum on the same blobs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.timing import Timed, compare, medians, process
from tests.support.adapters import AdapterMaker

PROGRAM = Path(sys.executable).with_name("adapterhub")
MODULES = {f"model.layers.{layer}.self_attn.q_proj": (4096, 4096) for layer in range(190)}
"""With rank 32 in bfloat16: 100 MB."""


class Bench:
    """Everything lies in one folder, on the file system that is measured."""

    def __init__(self, folder: Path) -> None:
        self.home, self.copies = folder / "home", folder / "copies"
        os.environ["ADAPTERHUB_HOME"] = str(self.home)
        os.environ["ADAPTERHUB_CACHE"] = str(folder / "cache")
        self.adapter = AdapterMaker(folder)("adapter", modules=MODULES, rank=32, dtype="bfloat16")
        self.weights = self.adapter / "adapter_model.safetensors"

    def copy(self) -> Timed:
        """What anybody would have to do by hand."""
        shutil.rmtree(self.copies, ignore_errors=True)
        self.copies.mkdir()
        target = self.copies / "copy"
        script = 'cp "$1" "$2" && sync "$2" && sha256sum "$2"'
        return process("cp + sync + sha256sum", ["sh", "-c", script, "sh", self.weights, target])

    def add(self) -> Timed:
        """Into an empty store."""
        shutil.rmtree(self.home, ignore_errors=True)
        return process("adapterhub add", [PROGRAM, "add", self.adapter, "-q"])

    def again(self) -> Timed:
        """Under another name: the same files."""
        name = f"again-{time.monotonic_ns()}"
        return process("the same files again", [PROGRAM, "add", self.adapter, "--name", name, "-q"])

    def start(self) -> Timed:
        """What every command needs to begin."""
        return process("adapterhub ls -q", [PROGRAM, "ls", "-q"])

    def sums(self) -> Timed:
        """The bytes of all blobs, hashed."""
        blobs = [path for path in (self.home / "store" / "blobs").rglob("*") if path.is_file()]
        return process("sha256sum of all blobs", ["sha256sum", *blobs])

    def check(self) -> Timed:
        """The same, and everything that leads to them."""
        return process("adapterhub fsck --read-data", [PROGRAM, "fsck", "--read-data", "-q"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--adapters", type=int, default=10, help="of 100 MB, for fsck")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder:
        bench = Bench(Path(folder))
        size = bench.weights.stat().st_size
        print(f"an adapter of {size / 1e6:.1f} MB\n")
        time.sleep(2.5)  # a file that changed a moment ago is read again
        compare(medians(chosen.runs, bench.copy, bench.add, bench.again, bench.start))
        make = AdapterMaker(Path(folder) / "more")
        for seed in range(1, chosen.adapters):
            more = make(f"a{seed}", modules=MODULES, rank=32, dtype="bfloat16", seed=seed)
            process("", [PROGRAM, "add", more, "-q"])
            shutil.rmtree(more)
        compare(medians(chosen.runs, bench.sums, bench.check))


if __name__ == "__main__":
    main()
