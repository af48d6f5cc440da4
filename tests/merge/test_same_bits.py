"""The same recipe on the same inputs gives the same bytes: workers, threads, processes and time don't matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.adapters import llama_modules

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

ROOT = Path(__file__).parents[2]
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("ties", {"density": 0.3}),
    ("ties", {"density": 0.3, "trim_scope": "module"}),
]
# As large as is still quick: QR, SVD and sums of this size do change with the number of BLAS threads.
WIDE = {
    "model.layers.0.mlp.up_proj": (1500, 1100),
    "model.layers.0.mlp.down_proj": (1100, 1500),
    "model.layers.0.self_attn.q_proj": (640, 640),
    "model.layers.1.self_attn.q_proj": (640, 640),
}

SCRIPT = """
import json, sys
from pathlib import Path
from tests.merge.conftest import silent
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.run import merge
from adapterhub.store import Store
home, method, rank, parameters, workers = sys.argv[1:6]
store = Store.open(Path(home))
parents = [store.resolve("one"), store.resolve("two")]
recipe = make_recipe(method, [p.digest for p in parents], weights=[0.3, 1.1], parameters=json.loads(parameters),
                     rank=rank, dtype="float32")
done = merge(store, parents, recipe, name=sys.argv[6], progress=silent, workers=int(workers) or None)
print(done.digest, done.manifest.content)
"""


def elsewhere(
    store: Path, method: str, rank: str, parameters: str, *, workers: int, threads: int, name: str
) -> str:
    """The digests a process of its own gets."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(store),
        method,
        rank,
        parameters,
        str(workers),
        name,
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("method", "parameters"), METHODS)
@pytest.mark.parametrize("rank", ["full", "auto", 5])
def test_one_worker_and_two_give_the_same_adapter(
    merger: Merger, method: str, parameters: dict[str, Any], rank: str | int
) -> None:
    parents = [
        merger.add(merger.adapter(seed=seed, rank=6, modules=llama_modules())) for seed in range(3)
    ]
    digests = {
        merger.of(parents, method, rank=rank, workers=workers, **parameters).outcome.digest
        for workers in (1, 2, 5, None)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_another_recipe_gives_another_adapter(
    merger: Merger, method: str, parameters: dict[str, Any]
) -> None:
    parents = [merger.add(merger.adapter(seed=seed)) for seed in range(2)]
    contents = [
        merger.of(parents, method, weights=weights, rank=rank, **parameters).content
        for weights in ([1, 1], [1, 0.5], [1, 1 + 1e-6])
        for rank in ("full", 3)
    ]
    assert len(set(contents)) == len(contents)


def test_the_digest_does_not_depend_on_names_or_time(merger: Merger) -> None:
    folders = [merger.adapter(seed=seed) for seed in range(2)]
    # Added under new names, merged under another: everything that is only a label differs.
    assert merger(folders, rank=4).outcome.digest == merger(folders, rank=4).outcome.digest


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["full", "16"])
@pytest.mark.parametrize(("method", "parameters"), [("linear", "{}"), ("ties", '{"density": 0.3}')])
def test_processes_threads_and_workers_give_the_same_bytes(
    merger: Merger, method: str, parameters: str, rank: str
) -> None:
    if method == "ties" and rank == "full":
        modules = {
            name: shape for name, shape in WIDE.items() if "q_proj" in name
        }  # full rank of a wide one is large
    else:
        modules = WIDE
    for seed, name in enumerate(("one", "two")):
        merger.store.add_folder(merger.adapter(seed=seed, rank=24, modules=modules), name=name)
    home = merger.store.home
    found = {
        (workers, threads): elsewhere(
            home,
            method,
            rank,
            parameters,
            workers=workers,
            threads=threads,
            name=f"by-{workers}-{threads}",
        )
        for workers, threads in ((1, 1), (2, 1), (1, 2), (2, 2))
    }
    assert len(set(found.values())) == 1, found
