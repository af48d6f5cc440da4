"""What a question to the estimator costs on adapters of the shape of Llama-3.1-8B, beside preparing it and the merge itself.

`python -m tests.bench.bench_estimate`. No test: nothing here passes or fails. Aimed at: 200 ms for a question about a sum,
about a second for one about an element-wise method. `--merge` runs the merge of the two adapters by a sum as well, as a
whole process from store to store.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

from adapterhub.merge.estimate import Estimator
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.specs import MethodSpec, methods
from adapterhub.store import Store
from tests.bench import shapes
from tests.bench.timing import Timed, inside, medians, process
from tests.merge.conftest import silent

PROGRAM = Path(sys.executable).with_name("adapterhub")
NAMES = ("bench/n1", "bench/n2")


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--layers", type=int, default=shapes.LAYERS)
    given.add_argument("--rank", type=int, default=16)
    given.add_argument("--runs", type=int, default=5)
    given.add_argument("--merge", action="store_true", help="run the merge, too")
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.layers, options.rank, options.runs, merge=options.merge)


def run(folder: Path, layers: int, rank: int, runs: int, *, merge: bool) -> None:
    store = Store.open(folder / "home")
    for number, name in enumerate(NAMES):
        made = shapes.write(folder / "made", f"n{number}", layers, rank, "bfloat16", number)
        store.add_folder(made, name=name, move=True)
    parents = [store.resolve(name) for name in NAMES]
    digests = [one.digest for one in parents]
    print(f"{len(shapes.modules(layers))} modules, rank {rank}, {os.cpu_count()} cores\n")
    rows = medians(min(runs, 3), lambda: inside("preparing", lambda: Estimator.prepare(store, parents, silent)))  # fmt: skip
    estimator, weights = Estimator.prepare(store, parents, silent), _weights()

    def ask(spec: MethodSpec, rank: str | int) -> Timed:
        given = next(weights) if spec.default_weights != "none" else None
        # Without weights the question has to differ in something else, or it is answered from memory.
        parameters = {} if given else dict.fromkeys(_allowed(spec), next(weights)[0])
        recipe = make_recipe(spec.name, digests, weights=given, rank=rank, parameters=parameters)
        return inside(f"{spec.name}, rank {rank}", lambda: estimator.ask(recipe))

    began = time.perf_counter()
    ask(methods()["ties"], "auto")
    first = time.perf_counter() - began
    for spec in methods().values():
        if spec.max_inputs is None or spec.max_inputs >= len(NAMES):
            varies = spec.default_weights != "none" or _allowed(spec)
            rows += medians(runs if varies else 1, partial(ask, spec, "auto"))
    recipe = make_recipe("linear", digests, weights=next(weights), rank="auto")
    estimator.ask(recipe)
    again = make_recipe("linear", digests, weights=recipe.steps[0].weights, rank=8)
    rows.append(inside("linear, another rank of the same weights", lambda: estimator.ask(again)))
    if merge:
        os.environ["ADAPTERHUB_HOME"] = str(store.home)
        command: list[str | Path] = [
            PROGRAM,
            "merge",
            *NAMES,
            "--weights",
            "0.61,0.39",
            "--rank",
            "auto",
        ]
        rows.append(process("the merge (linear), as a process", command))
    for row in rows:
        print(f"{row.what:44}{row.wall * 1e3:>9.1f} ms{row.cpu * 1e3:>9.1f} ms cpu")
    print(f"{'the first question with rows (reads them)':44}{first * 1e3:>9.1f} ms")


def _weights() -> Iterator[tuple[float, float]]:
    """Two that weren't asked about before."""
    for number in count(1):
        yield 0.5 + number / 1000, 0.5 - number / 1000


def _allowed(spec: MethodSpec) -> list[str]:
    """A parameter that can be any number below 1, if there is one."""
    return [one.name for one in spec.parameters if one.kind == "number"][:1]


if __name__ == "__main__":
    main()
