"""One merge of two adapters inside a warm process, by PEFT or by adapterhub: what bench_merge starts and reads.

    python -m tests.bench.peers peft ties k_proj --rank 16 --dtype bfloat16 --scratch DIR

The adapters change one module, of the shape that `k_proj` has in Llama-3.1-8B. PEFT's time is that of the call
`add_weighted_adapter` alone; ours that of the whole command, which reads, checks and hashes files and stores the result.
Prints what one merge took, as JSON, on the last line.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch.nn import Linear, Module

from tests.bench import shapes
from tests.bench.memory import Weighed, weighed_inside
from tests.bench.timing import medians
from tests.support.adapters import QV, AdapterMaker

DENSITY = 0.2
PATIENCE = 10.0
"""A merge that takes longer, in seconds, is done once."""
ENGINES: Mapping[str, Mapping[str, str]] = {
    "adapterhub": {"svd": "linear", "ties": "ties"},
    "peft": {"svd": "svd", "ties": "ties_svd"},
}
"""Engine -> what is merged -> its name there."""

Merge = Callable[[int], object]
"""Merges the two adapters with weights that depend on the number, so that no result is there already."""


def peft(first: Path, second: Path, method: str, rank: int) -> Merge:
    """PEFT's merge, on a model that has just the adapters' modules."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(_skeleton(first), str(first), adapter_name="first")
    model.load_adapter(str(second), adapter_name="second")

    def merge(number: int) -> None:
        model.add_weighted_adapter(
            ["first", "second"],
            _weights(number),
            adapter_name=f"merged{number}",
            combination_type=method,
            svd_rank=rank,
            density=DENSITY if "ties" in method else None,
        )

    return merge


def adapterhub(first: Path, second: Path, method: str, rank: int) -> Merge:
    """Our command line, in this process and on the store at $ADAPTERHUB_HOME."""
    names = [f"{folder.parent.name}/{folder.name}" for folder in (first, second)]
    for folder, name in zip((first, second), names, strict=True):
        _run("add", str(folder), "--name", name)
    flags = ["--method", method, "--rank", str(rank)]
    if method == "ties":
        flags += ["--density", str(DENSITY)]

    def merge(number: int) -> None:
        weights = ",".join(map(str, _weights(number)))
        target = f"{names[0]}-merged{number}"
        _run("merge", *names, *flags, "--weights", weights, "--name", target)

    return merge


def _weights(number: int) -> list[float]:
    return [0.5, 0.5 + number / 100]


def _run(command: str, *arguments: str) -> None:
    from adapterhub.cli.main import build

    code = build(command)([command, *arguments, "-q"], standalone_mode=False)
    if code:
        raise RuntimeError(f"adapterhub {command} {' '.join(arguments)} ended with {code}")


def _skeleton(folder: Path) -> Module:
    """A model of the linears the adapter changes, whose weights nobody looks at."""
    from safetensors import safe_open

    root = Module()
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for key in [key for key in file.keys() if key.endswith(suffix)]:  # noqa: SIM118 - it is no dict
            width = file.get_slice(key).get_shape()[1]
            out = file.get_slice(key.replace("lora_A", "lora_B")).get_shape()[0]
            *parents, last = key.removeprefix(prefix).removesuffix(suffix).split(".")
            place = root
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, Module())
                place = place.get_submodule(parent)
            place.add_module(
                last, Linear(width, out, bias=False, device="meta").to_empty(device="cpu")
            )
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("method", choices=ENGINES["peft"])
    parser.add_argument("kind", choices=shapes.KINDS)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder")
    chosen = parser.parse_args()
    os.environ["ADAPTERHUB_HOME"] = str(chosen.scratch / "home")
    os.environ["ADAPTERHUB_CACHE"] = str(chosen.scratch / "cache")
    engine = {"peft": peft, "adapterhub": adapterhub}[chosen.engine]
    method = ENGINES[chosen.engine][chosen.method]

    small = AdapterMaker(chosen.scratch / "small")
    warm = [small(str(n), modules=QV, seed=n, task_type=None) for n in range(2)]
    engine(warm[0], warm[1], method, 4)(0)

    big = [
        shapes.write(chosen.scratch / "big", str(n), 1, chosen.rank, chosen.dtype, n, chosen.kind)
        for n in range(2)
    ]
    merge = engine(big[0], big[1], method, chosen.rank)
    numbers = iter(range(chosen.runs))

    def once() -> Weighed:
        return weighed_inside(chosen.kind, partial(merge, next(numbers)))

    (result,) = medians(chosen.runs, once, patience=PATIENCE)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
