"""The same recipe on the same inputs gives the same bytes: workers, threads, memory, processes and time don't matter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adapterhub.lora import dense
from adapterhub.lora.dense import EXACT_SIDE
from adapterhub.lora.memory import DEFAULT
from adapterhub.store import Resolved, Store
from tests.merge.conftest import Merger
from tests.support.adapters import AdapterMaker, llama_modules

ROOT = Path(__file__).parents[2]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {}),
    "karcher": ("karcher", {}),
    "karcher over the model": ("karcher", {"scope": "model"}),
    "ties": ("ties", {"density": 0.3}),
    "ties by module": ("ties", {"density": 0.3, "trim_scope": "module"}),
    "dare_ties": ("dare_ties", {"rescale": "l1"}),
    "della": ("della", {}),
    "sce": ("sce", {}),
    "breadcrumbs_ties": ("breadcrumbs_ties", {}),
}
"""One of every kind that is computed in a way of its own."""

LARGE = {
    "model.layers.0.mlp.up_proj": (EXACT_SIDE + 61, EXACT_SIDE + 43),
    "model.layers.0.mlp.down_proj": (EXACT_SIDE + 5, EXACT_SIDE + 261),
    "model.layers.0.self_attn.q_proj": (96, 64),
}
"""Two modules whose dense deltas are approximated, of odd sides, so that no tile of one lies as it would alone."""
ONE_MODULE = 4 * max(out * width for out, width in LARGE.values())
RESOURCES = [(1, 0), (2, ONE_MODULE), (5, DEFAULT), (None, 0)]
"""Workers, and bytes of dense deltas held at a time."""

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
from adapterhub.merge.run import Resources, merge
from adapterhub.store import Store
home, methods, rank, resources = sys.argv[1:5]
store = Store.open(Path(home))
parents = [store.resolve("one"), store.resolve("two")]
for place, (method, parameters) in enumerate(json.loads(methods)):
    recipe = make_recipe(method, [p.digest for p in parents], parameters=parameters, rank=rank, dtype="float32", seed=3)
    done = merge(store, parents, recipe, name=f"{sys.argv[5]}-{place}", progress=silent, redo=True,
                 resources=Resources(**json.loads(resources)))
    print(method, done.digest, done.manifest.content)
"""


def elsewhere(
    store: Path, methods: Sequence[Any], rank: str, *, workers: int, memory: int, threads: int
) -> list[str]:
    """The digests a process of its own gets."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    resources = json.dumps({"workers": workers, "memory": memory})
    name = f"by-{workers}-{memory}-{threads}-{rank}"
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(store),
        json.dumps(methods),
        rank,
        resources,
        name,
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Merger, list[Resolved]]:
    """A store with two adapters of LARGE modules."""
    home = tmp_path_factory.mktemp("large")
    merger = Merger(Store.open(home / "home"), AdapterMaker(home / "adapters"))
    folders = [merger.adapter(seed=seed, rank=5 + seed, modules=LARGE) for seed in range(2)]
    return merger, [merger.add(folder) for folder in folders]


def spied(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Grows with every call of `name` in lora.dense, which runs as it is."""
    calls, real = list[str](), getattr(dense, name)

    def spy(*args: Any) -> Any:
        calls.append(name)
        return real(*args)

    monkeypatch.setattr(dense, name, spy)
    return calls


@pytest.mark.parametrize("kind", METHODS)
def test_no_number_of_workers_and_no_budget_of_memory_changes_a_bit(
    large: tuple[Merger, list[Resolved]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merger, parents = large
    method, parameters = METHODS[kind]
    approximated = spied(monkeypatch, "_randomised")
    held = spied(monkeypatch, "whole")
    digests, held_by = set(), []
    for workers, memory in RESOURCES:
        held.clear()
        merged = merger.of(
            parents, method, rank=5, workers=workers, memory=memory, seed=3, **parameters
        )
        digests.add(merged.outcome.digest)
        held_by.append(len(held))
    assert len(digests) == 1
    is_dense = method not in ("linear", "karcher")
    assert len(approximated) == (2 * len(RESOURCES) if is_dense else 0)
    assert held_by == ([0, 2, 2, 0] if is_dense else [0] * 4)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("rank", ["full", "auto"])
def test_one_worker_and_two_give_the_same_adapter(
    merger: Merger, kind: str, rank: str | int
) -> None:
    method, parameters = METHODS[kind]
    parents = [
        merger.add(merger.adapter(seed=seed, rank=6, modules=llama_modules(layers=[0])))
        for seed in range(3)
    ]
    digests = {
        merger.of(parents, method, rank=rank, workers=workers, **parameters).outcome.digest
        for workers in (1, 2, 5)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("kind", ["linear", "karcher", "ties", "dare_ties", "della"])
def test_another_recipe_gives_another_adapter(merger: Merger, kind: str) -> None:
    method, parameters = METHODS[kind]
    parents = [merger.add(merger.adapter(seed=seed)) for seed in range(2)]
    contents = [
        merger.of(parents, method, weights=weights, rank=rank, **parameters).content
        for weights in ([1, 1], [1, 0.5], [1, 1 + 1e-6])
        for rank in ("full", 3)
    ]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("kind", ["dare_ties", "della"])
def test_another_seed_gives_another_adapter_and_the_same_one_the_same(
    merger: Merger, kind: str
) -> None:
    method, parameters = METHODS[kind]
    parents = [merger.add(merger.adapter(seed=seed)) for seed in range(2)]
    contents = [
        merger.of(parents, method, seed=seed, rank=rank, **parameters).content
        for seed in (0, 1, 2**63 - 1, 0)
        for rank in ("full", 3)
    ]
    assert len(set(contents)) == 6
    assert contents[:2] == contents[6:]


def test_the_digest_does_not_depend_on_names_or_time(merger: Merger) -> None:
    folders = [merger.adapter(seed=seed) for seed in range(2)]
    # Added under new names, merged under another: everything that is only a label differs.
    for method in ("linear", "della"):  # random masks too are keyed by the place of a parent alone
        assert (
            merger(folders, method, rank=4).outcome.digest
            == merger(folders, method, rank=4).outcome.digest
        )


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["full", "16"])
def test_processes_threads_workers_and_memory_give_the_same_bytes(
    merger: Merger, rank: str
) -> None:
    modules = WIDE
    if rank == "full":  # of a wide dense delta it is large
        modules = {name: shape for name, shape in WIDE.items() if "q_proj" in name}
    for seed, name in enumerate(("one", "two")):
        merger.store.add_folder(merger.adapter(seed=seed, rank=24, modules=modules), name=name)
    runs = [
        {"workers": 1, "threads": 1, "memory": DEFAULT},
        {"workers": 2, "threads": 1, "memory": 4 * 1500 * 1100},
        {"workers": 1, "threads": 2, "memory": 0},
        {"workers": 2, "threads": 2, "memory": 0},
    ]
    methods = list(METHODS.values())
    first, *others = (elsewhere(merger.store.home, methods, rank, **run) for run in runs)
    assert len(first) == len(methods)
    assert others == [first] * 3
