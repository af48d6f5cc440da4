"""What an export costs beside `cp -r` of the base and beside PEFT: `make bench-export`. No test: nothing here passes or fails.

The base has the layer shapes of Llama-3.1-8B, random bfloat16 weights and several shards; its vocabulary is cut so that
every size has the same share of layers. Adapters are of rank 16. Before every run the base is read once and everything
is flushed. Ours is the whole process, which flushes what it wrote; what `python -c "import torch"` needs in the same run
is told beside it. What `--verify` adds, which is the default, has a line of its own. PEFT's is `merge_and_unload` and `save_pretrained` alone, in a process that has the model in memory.
`--growth` tells instead how it grows with the size of the base.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from adapterhub.formats.safetensors import encode_header
from tests.bench import shapes
from tests.bench.memory import Weighed, weighed_inside, weighed_process
from tests.bench.timing import medians, process

PROGRAM = Path(sys.executable).with_name("adapterhub")
RANK = 16
SHARD = 10**9
ADAPTERS: dict[str, Sequence[str]] = {"all 7 linears": (), "q and v": ("q_proj", "v_proj")}
GROWTH = (1, 2, 4, 8)
_BARE = "--no-verify"


def write_base(folder: Path, gigabytes: int) -> int:
    """A base with one layer a gigabyte, in shards of about one; returns its bytes."""
    layers = gigabytes
    linears = {f"{name}.weight": shape for name, shape in shapes.modules(layers).items()}
    hidden = shapes.HIDDEN
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            linears[f"model.layers.{layer}.{norm}.weight"] = (hidden, 0)
    used = sum(2 * a * max(1, b) for a, b in linears.values())
    vocabulary = (gigabytes * 10**9 - used) // (4 * hidden)
    tensors = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        **linears,
        "model.norm.weight": (hidden, 0),
        "lm_head.weight": (vocabulary, hidden),
    }
    folder.mkdir(parents=True)
    groups: list[dict[str, tuple[int, int]]] = [{}]
    for name, shape in tensors.items():
        if groups[-1] and _size(groups[-1]) + _size({name: shape}) > SHARD:
            groups.append({})
        groups[-1][name] = shape
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        weight_map |= dict.fromkeys(group, file)
        _write_shard(folder / file, group)
    total = sum(map(_size, groups))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": shapes.INNER, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": vocabulary, "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return total


def _size(group: dict[str, tuple[int, int]]) -> int:
    return sum(2 * a * max(1, b) for a, b in group.values())


def _write_shard(path: Path, group: dict[str, tuple[int, int]]) -> None:
    """Normal values; the same 16 million again and again, which nothing here minds."""
    random = torch.Generator().manual_seed(0)
    values = (torch.randn(2**24, generator=random) * 0.02).bfloat16().view(torch.uint8).numpy()
    rows = [
        (name, "BF16", [a, b] if b else [a], 2 * a * max(1, b)) for name, (a, b) in group.items()
    ]
    with path.open("wb") as file:
        file.write(encode_header(rows, {"format": "pt"}))
        for *_, size in rows:
            for first in range(0, size, len(values)):
                file.write(values[: size - first].data)


class Bench:
    """A store with adapters and a base, in a folder that goes when the benchmark ends."""

    def __init__(self, folder: Path, gigabytes: int) -> None:
        self.folder, self.base, self.out = folder, folder / "base", folder / "out"
        self.env = {
            "ADAPTERHUB_HOME": str(folder / "home"),
            "ADAPTERHUB_CACHE": str(folder / "cache"),
        }
        self.size = write_base(self.base, gigabytes)
        self.adapters: dict[str, Path] = {}
        for number, (what, targets) in enumerate(ADAPTERS.items()):
            made = shapes.write(
                folder / "made", str(number), gigabytes, RANK, "float32", number, *targets
            )
            name = f"bench/n{number}"
            weighed_process("add", [PROGRAM, "add", made, "--name", name], env=self.env)
            self.adapters[what] = made

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The base in memory, nothing waiting for the disk, nothing in the way."""
        try:
            process("", ["sh", "-c", 'cat "$1"/* && sync', "sh", self.base])
            yield
        finally:
            shutil.rmtree(self.out, ignore_errors=True)

    def copy(self) -> Weighed:
        """What is compared with."""
        script = 'cp -r --reflink=never "$1" "$2" && sync'
        with self._ready():
            took = process("cp -r and sync", ["sh", "-c", script, "sh", self.base, self.out])
        return Weighed(took.what, took.wall, took.cpu, 0)

    def export(self, what: str, *flags: str) -> Weighed:
        """Our command, the whole process."""
        name = f"bench/n{list(ADAPTERS).index(what)}"
        words: list[str | Path] = [PROGRAM, "export", name, "--base", self.base, "-o", self.out]
        verified = "" if _BARE in flags else ", verified"
        with self._ready():
            return weighed_process(
                f"export, {what}{verified}", [*words, "-q", *flags], env=self.env
            )

    def peft(self, what: str) -> Weighed:
        """PEFT's, in a process of its own."""
        worker = [sys.executable, "-m", "tests.bench.bench_export", "--peft"]
        with self._ready():
            ran = subprocess.run(
                [*worker, self.base, self.adapters[what], self.out],
                capture_output=True,
                text=True,
                check=False,
            )
        if ran.returncode:
            raise RuntimeError(f"PEFT ended with {ran.returncode}:\n{ran.stderr}")
        return Weighed(**json.loads(ran.stdout.splitlines()[-1]))


def merge_by_peft(base: Path, adapter: Path, out: Path) -> None:
    """Prints what merging and saving took; the peak is with the model, which PEFT holds, less torch."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tests.bench.memory import anonymous

    start = anonymous()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    wrapped = PeftModel.from_pretrained(model, str(adapter))
    loaded = anonymous() - start
    took = weighed_inside("PEFT", lambda: wrapped.merge_and_unload().save_pretrained(out))
    print(json.dumps({**asdict(took), "peak": loaded + took.peak}))


def imported() -> Weighed:
    """What a Python with torch needs to begin."""
    return weighed_process("import torch", [sys.executable, "-c", "import torch"])


def show(rows: Sequence[tuple[Weighed, int]], floor: Weighed, first: Weighed, size: int) -> None:
    """A line for each (what, bytes): seconds a GB, and its ratio to `first`, also less the floor for ours."""
    print(
        f"{'':26}{'wall':>9}{'x cp':>7}{'less torch':>12}{'cpu':>9}{'cpu/GB':>9}{'memory':>10}{'less torch':>12}"
    )
    for row, written in rows:
        ours = row.what.startswith("export")
        ratio = row.wall / written * size / first.wall
        text = f"{row.what:26}{row.wall:>7.2f} s{ratio:>7.2f}"
        net = (row.wall - floor.wall) / first.wall
        text += f"{net:>12.2f}" if ours else f"{'':12}"
        text += f"{row.cpu:>7.2f} s{row.cpu / written * 1e9:>7.2f} s"
        text += f"{row.peak / 1e6:>7.0f} MB" if row.peak else ""
        text += f"{(row.peak - floor.peak) / 1e6:>9.0f} MB" if ours else ""
        print(text)
    print(flush=True)


def bench(folder: Path, gigabytes: int, sample: int, runs: int, flags: Sequence[str]) -> None:
    """One size, beside cp; PEFT on a sample."""
    this = Bench(folder / "main", gigabytes)
    exports = [partial(this.export, what, _BARE, *flags) for what in ADAPTERS]
    exports.append(partial(this.export, next(iter(ADAPTERS)), *flags))
    floor, copied, *ours = medians(runs, imported, this.copy, *exports)
    rows = [(one, this.size) for one in (floor, copied, *ours)]
    shutil.rmtree(folder / "main")
    if sample:
        other = Bench(folder / "sample", sample)
        what = next(iter(ADAPTERS))
        small, theirs = medians(
            runs, partial(other.export, what, _BARE, *flags), partial(other.peft, what)
        )
        rows += [(small, other.size), (theirs, other.size)]
        shutil.rmtree(folder / "sample")
    print(f"{this.size / 1e9:.2f} GB, rank {RANK}; the last two of {sample} GB; medians of {runs}")
    show(rows, floor, copied, this.size)


def bench_growth(folder: Path, runs: int, flags: Sequence[str]) -> None:
    """Time a GB and memory, by size."""
    for gigabytes in GROWTH:
        this = Bench(folder / str(gigabytes), gigabytes)
        export = partial(this.export, next(iter(ADAPTERS)), _BARE, *flags)
        floor, copied, ours = medians(runs, imported, this.copy, export)
        shutil.rmtree(folder / str(gigabytes))
        each = this.size / 1e9
        print(
            f"{each:>5.2f} GB: {(ours.wall - floor.wall) / each:.2f} s and {(ours.cpu - floor.cpu) / each:.2f} CPU-s a GB "
            f"less import torch, cp {copied.wall / each:.2f} and {copied.cpu / each:.2f}; "
            f"{(ours.peak - floor.peak) / 1e6:.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gb", type=int, default=4, help="of the base")
    parser.add_argument("--sample", type=int, default=1, help="GB for PEFT; 0 leaves it out")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="1, 2, 4 and 8 GB instead")
    parser.add_argument("--flags", default="", help="more for the export: '--memory 64MB'")
    parser.add_argument("--peft", nargs=3, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peft:
        merge_by_peft(*chosen.peft)
        return
    process("", [sys.executable, "-c", "import torch"])  # from now on its files are in memory
    needed = (2 * max(GROWTH) if chosen.growth else 2 * chosen.gb + 1) * 10**9
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder:
        if shutil.disk_usage(folder).free < needed:
            sys.exit(f"{folder} has no room for {needed / 1e9:.0f} GB: set TMPDIR, or --gb")
        if chosen.growth:
            bench_growth(Path(folder), chosen.runs, chosen.flags.split())
        else:
            bench(Path(folder), chosen.gb, chosen.sample, chosen.runs, chosen.flags.split())


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
