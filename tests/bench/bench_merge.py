"""What merging costs on adapters of the shape of Llama-3.1-8B: `make bench-merge`. No test: nothing here passes or fails.

Whole processes from store to store, less what `python -c "import torch"` needs in the same run: CPU seconds (user and
system), wall, and anonymous memory at its peak. Beside them what was aimed at. Then PEFT's merges on single modules,
beside ours on the same ones. `--scaling` tells instead how it grows with the number of adapters and their rank.

Every run begins with the same store, without the results of the runs before it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench import shapes
from tests.bench.memory import Weighed, weighed_process
from tests.bench.peers import DENSITY, ENGINES, PATIENCE
from tests.bench.timing import medians, process

PROGRAM = Path(sys.executable).with_name("adapterhub")
DTYPES = ("bfloat16", "float16", "float32")
PARTS = ("sums", "ties", "diff", "peers")
SMALL_KINDS = ("k_proj", "q_proj")
"""What PEFT merges in seconds; the other shapes take it minutes."""
COUNTS, RANKS = (2, 4, 8, 16), (8, 16, 32, 64, 128)
CELL_LIMIT = 120.0
"""Seconds one cell of the scaling table may take."""
TOO_LONG = f"over {CELL_LIMIT:.0f} s"
COPIES = 5
"""How many float32 copies of all parents a merge may well hold: what doesn't fit into memory so is left out."""


@dataclass(frozen=True)
class Target:
    """What was aimed at, for all 32 layers: CPU seconds and MB of memory."""

    cpu: float
    memory: float | None = None

    def __str__(self) -> str:
        return f"{self.cpu:g} s" + (f", {self.memory:g} MB" if self.memory else "")

    def share(self, spent: Weighed, layers: int) -> str:
        """How much of it was spent. For fewer layers only of the time, as if its fixed part grew with them, too."""
        if layers != shapes.LAYERS:
            return f"< {spent.cpu * shapes.LAYERS / layers / self.cpu:.2f}"
        memory = f", {spent.peak / 1e6 / self.memory:.2f}" if self.memory else ""
        return f"{spent.cpu / self.cpu:.2f}{memory}"


OF_TWO, TIES, DIFF = Target(2, 250), Target(300, 600), Target(5)
Row = tuple[Callable[[], Weighed], Target]


class Bench:
    """A store with adapters, in a folder that goes when the benchmark ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            "ADAPTERHUB_HOME": str(folder / "home"),
            "ADAPTERHUB_CACHE": str(folder / "cache"),
        }

    def add(self, layers: int, rank: int, dtype: str, numbers: Iterable[int]) -> list[str]:
        """Adapters of that make, put in with the command line; returns their names."""
        names = []
        for number in numbers:
            name = f"l{layers}-r{rank}-{dtype}/n{number}"
            made = shapes.write(self.folder / "made", name, layers, rank, dtype, number)
            weighed_process(f"add {name}", [PROGRAM, "add", made, "--name", name], env=self.env)
            shutil.rmtree(made)
            names.append(name)
        return names

    def run(self, what: str, *arguments: str, limit: float | None = None) -> Weighed:
        """The command on a copy of the store, so that what it stores was never there before."""
        with self._copy() as env:
            return weighed_process(what, [PROGRAM, *arguments], env=env, limit=limit)

    def merge(
        self,
        what: str,
        names: Sequence[str],
        rank: int,
        method: str = "linear",
        *flags: str,
        limit: float | None = None,
    ) -> Weighed:
        """`adapterhub merge`."""
        result = ["--method", method, "--rank", str(rank), "--name", "result", "-q"]
        return self.run(what, "merge", *names, *result, *flags, limit=limit)

    @contextmanager
    def _copy(self) -> Iterator[dict[str, str]]:
        """The environment that leads to a copy of the store; blobs, which nobody changes, are linked."""
        home, again = self.folder / "home", self.folder / "again"

        def copy(source: str, target: str) -> None:
            if "blobs" in Path(source).parts:
                os.link(source, target)
            else:
                shutil.copy2(source, target)

        shutil.copytree(home, again / "home", copy_function=copy)
        try:
            yield {
                "ADAPTERHUB_HOME": str(again / "home"),
                "ADAPTERHUB_CACHE": str(again / "cache"),
            }
        finally:
            shutil.rmtree(again)


def imported(module: str) -> Weighed:
    """The floor that is taken off: a Python that only imports `module`."""
    return weighed_process(f"import {module}", [sys.executable, "-c", f"import {module}"])


def net(spent: Weighed, floor: Weighed) -> Weighed:
    """What is left when the floor is taken off."""
    return Weighed(
        spent.what, spent.wall - floor.wall, spent.cpu - floor.cpu, spent.peak - floor.peak
    )


def gram_methods() -> list[str]:
    """The methods that are decided by the angles between the deltas: they have a scope over which those are taken."""
    told = subprocess.run([PROGRAM, "methods", "--json"], stdout=subprocess.PIPE, check=True).stdout
    return [
        method["name"]
        for method in json.loads(told)
        if any(parameter["flag"] == "--scope" for parameter in method["parameters"])
    ]


def bench_commands(floor: str, rows: Sequence[Row], runs: int, layers: int) -> list[Weighed]:
    """A table of commands, less the import of `floor`, which stands in the first line. Returns what it shows of them."""
    first, *others = medians(
        runs, partial(imported, floor), *(row for row, _ in rows), patience=PATIENCE
    )
    spent = [net(other, first) for other in others]
    print(f"{_extent(layers)}; less the import in the first line")
    print(f"{'':30}{'cpu':>10}{'x cpu':>8}{'wall':>10}{'memory':>10}   {'target':15}share of it")
    print(_figures(first, 1.0))
    for one, (_, target) in zip(spent, rows, strict=True):
        print(f"{_figures(one, one.cpu / first.cpu)}   {target!s:15}{target.share(one, layers)}")
    if layers != shapes.LAYERS:
        print(f"<: the CPU times {shapes.LAYERS}/{layers}, since the target is for all layers")
    print(flush=True)
    return spent


def _extent(layers: int) -> str:
    return f"{layers} of {shapes.LAYERS} layers, {len(shapes.modules(layers))} modules"


def _figures(spent: Weighed, ratio: float) -> str:
    return (
        f"{spent.what:30}{spent.cpu:>8.2f} s{ratio:>8.2f}{spent.wall:>8.2f} s"
        f"{spent.peak / 1e6:>7.0f} MB"
    )


def sums(bench: Bench, names: Sequence[str], rank: int) -> list[Row]:
    """linear of two, and of all, a second being meant for each; every method that needs the angles, of two."""
    rows: list[Row] = [(partial(bench.merge, "linear of 2", names[:2], rank), OF_TWO)]
    if len(names) > 2:
        what = f"linear of {len(names)}"
        rows.append((partial(bench.merge, what, names, rank), Target(len(names))))
    rows += [
        (partial(bench.merge, f"{method} of 2", names[:2], rank, method), OF_TWO)
        for method in gram_methods()
    ]
    return rows


def bench_peers(
    peer: Callable[[str, str, str], Weighed],
    kinds: Sequence[str],
    layers: int,
    measured: Mapping[str, Weighed],
) -> None:
    """PEFT's merges by dense SVD, module by module, beside ours; and what they would take for all modules.

    Args:
        peer: measures (engine, method, kind of module).
        measured: by method, what ours took for all modules of the layers, where that is known.
    """
    print(
        f"one module, two adapters; PEFT's call alone beside our whole command, both in warm processes\n"
        f"{'':22}{'adapterhub cpu':>16}{'memory':>9}{'PEFT cpu':>12}{'memory':>9}{'x cpu':>8}{'x wall':>8}"
    )
    every = len(shapes.modules(layers))
    for method, theirs in ENGINES["peft"].items():
        total = dict.fromkeys(ENGINES, 0.0)
        for kind in kinds:
            took = {engine: peer(engine, method, kind) for engine in ENGINES}
            for engine, spent in took.items():
                total[engine] += spent.cpu * shapes.alike(kind) * layers
            ours, peft = took["adapterhub"], took["peft"]
            print(
                f"{theirs + ', ' + kind:22}{ours.cpu * 1e3:>13.1f} ms{ours.peak / 1e6:>6.0f} MB"
                f"{peft.cpu:>10.2f} s{peft.peak / 1e6:>6.0f} MB"
                f"{peft.cpu / ours.cpu:>8.0f}{peft.wall / ours.wall:>8.0f}"
            )
        covered = sum(shapes.alike(kind) for kind in kinds) * layers
        shown = ", ".join(shapes.KINDS[kind] for kind in kinds)
        print(
            f"  extrapolated to the {covered} such of {every} modules ({shown}): PEFT {total['peft']:.0f} s of CPU, "
            f"adapterhub {total['adapterhub']:.1f} s, x {total['peft'] / total['adapterhub']:.0f}"
        )
        if method in measured:
            whole = measured[method].cpu
            print(
                f"  beside {whole:.1f} s, measured above, of adapterhub for all {every}: "
                f"x {total['peft'] / whole:.0f}{'' if covered == every else ' at least'}"
            )
    print()


def _peer(
    folder: Path, rank: int, dtype: str, runs: int, engine: str, method: str, kind: str
) -> Weighed:
    """What one merge took in a process of its own, the median of its runs."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        worker = [sys.executable, "-m", "tests.bench.peers", engine, method, kind]
        options = [f"--rank={rank}", f"--dtype={dtype}", f"--runs={runs}", f"--scratch={scratch}"]
        ran = subprocess.run([*worker, *options], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{engine} {method} {kind} ended with {ran.returncode}:\n{ran.stderr}")
    return Weighed(**json.loads(ran.stdout.splitlines()[-1]))


def bench_scaling(bench: Bench, dtype: str, layers: int, runs: int) -> None:
    """linear by number of adapters and rank, one row a rank. What would take too long is left out."""
    (floor,) = medians(runs, partial(imported, "torch"))
    print(
        f"linear of K adapters of one rank, to that rank; {_extent(layers)}, {dtype}; "
        f"less import torch ({floor.cpu:.2f} s, {floor.peak / 1e6:.0f} MB)\n"
        f"CPU seconds, x those of the first cell, peak of anonymous memory"
    )
    print(f"{'':8}" + "".join(f"{f'K = {count}':>25}" for count in COUNTS))
    found: dict[tuple[int, int], Weighed] = {}
    left_out: dict[tuple[int, int], str] = {}
    for rank in RANKS:
        names: list[str] = []
        cells = []
        for count in COUNTS:
            cell = (rank, count)
            try:
                _foresee(cell, found, left_out, layers)
                names += bench.add(layers, rank, dtype, range(len(names), count))
                work = partial(bench.merge, "", names, rank, limit=CELL_LIMIT)
                found[cell] = net(medians(runs, work, patience=PATIENCE)[0], floor)
            except _LeftOutError as error:
                left_out[cell] = str(error)
            except subprocess.TimeoutExpired:
                left_out[cell] = TOO_LONG
            if cell in found:
                spent = found[cell]
                ratio = spent.cpu / next(iter(found.values())).cpu
                cells.append(f"{spent.cpu:.2f} s x{ratio:.1f} {spent.peak / 1e6:>5.0f} MB")
            else:
                cells.append(left_out[cell])
        print(f"r = {rank:<4}" + "".join(f"{cell:>25}" for cell in cells), flush=True)
        shutil.rmtree(bench.folder / "home", ignore_errors=True)  # none, where the row is left out
    print()


class _LeftOutError(Exception):
    """Why a cell is left out, in a few words."""


def _foresee(
    cell: tuple[int, int],
    found: dict[tuple[int, int], Weighed],
    left_out: dict[tuple[int, int], str],
    layers: int,
) -> None:
    """Raises _LeftOutError for a cell that would take too long, by that with half the data, or too much memory."""
    rank, count = cell
    for half in ((rank // 2, count), (rank, count // 2)):
        if half in left_out:
            raise _LeftOutError(left_out[half])
        if half in found and 2 * found[half].wall > CELL_LIMIT:
            raise _LeftOutError(TOO_LONG)
    needed = COPIES * 4 * count * shapes.parameters(layers, rank)
    if needed > _available():
        raise _LeftOutError(f"needs up to {needed / 1e9:.0f} GB")


def _available() -> int:
    """Bytes of memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="few layers, k_proj for peers; a minute"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="the table by number and rank instead"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--adapters", type=int, default=4, help="of the larger merge")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of 32; 4 with --scaling")
    parser.add_argument("--ties-layers", type=int, help="of the TIES merge; as --layers by default")
    parser.add_argument(
        "--all-peers", action="store_true", help="the large shapes too: minutes each"
    )
    chosen = parser.parse_args()
    layers = chosen.layers or (4 if chosen.scaling else 2 if chosen.quick else shapes.LAYERS)
    ties_layers = chosen.ties_layers or (1 if chosen.quick else layers)
    rank, dtype, runs = chosen.rank, chosen.dtype, chosen.runs
    measured: dict[str, Weighed] = {}
    process("", [sys.executable, "-c", "import torch"])  # from now on its files are in memory
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as folder:
        bench = Bench(Path(folder))
        if chosen.scaling:
            bench_scaling(bench, dtype, layers, runs)
            return
        print(
            f"rank {rank}, {dtype}; medians of {runs} runs, one run of what takes over {PATIENCE:.0f} s\n"
        )
        if {"sums", "diff"} & set(chosen.only):
            names = bench.add(layers, rank, dtype, range(max(2, chosen.adapters)))
            if "sums" in chosen.only:
                measured["svd"] = bench_commands("torch", sums(bench, names, rank), runs, layers)[0]
            if "diff" in chosen.only:
                diff = partial(bench.run, "diff of 2", "diff", *names[:2], "--json")
                bench_commands("numpy", [(diff, DIFF)], runs, layers)
            shutil.rmtree(bench.folder / "home")
        if "ties" in chosen.only:
            names = bench.add(ties_layers, rank, dtype, range(2))
            flags = ("ties", "--density", str(DENSITY))
            merge = partial(bench.merge, f"ties of 2, density {DENSITY}", names, rank, *flags)
            (spent,) = bench_commands("torch", [(merge, TIES)], runs, ties_layers)
            if ties_layers == layers:
                measured["ties"] = spent
        if "peers" in chosen.only:
            small = SMALL_KINDS[:1] if chosen.quick else SMALL_KINDS
            kinds = tuple(shapes.KINDS) if chosen.all_peers else small
            peer = partial(_peer, bench.folder, rank, dtype, runs)
            bench_peers(peer, kinds, layers, measured)


if __name__ == "__main__":
    main()
