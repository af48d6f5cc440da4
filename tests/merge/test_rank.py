"""A chosen rank gives the best approximation there is, and the report says what it cost (Eckart and Young 1936).

Whatever the report says is worked out again here from the file that was written, in float64.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from adapterhub.merge.recipe import SERVABLE_RANKS
from tests.merge.direct import cut, engine, factored
from tests.support.adapters import QV, llama_modules, random_factors
from tests.support.dense import Deltas, norm, read_deltas, read_factors, ties, weighted_sum

if TYPE_CHECKING:
    from tests.merge.conftest import Merged, Merger


def discarded(deltas: Deltas, rank: int) -> float:
    """Norm of all singular values beyond the `rank` largest of each module."""
    values = [np.linalg.svd(delta, compute_uv=False)[rank:] for delta in deltas.values()]
    return math.sqrt(sum(float((part**2).sum()) for part in values))


def falling(seed: int, rank: int = 24, modules: Any = QV) -> dict[str, tuple[Any, Any]]:
    """Factors whose delta has quickly falling singular values, as trained adapters do."""
    return {
        module: (b * np.float32(2.0) ** -np.arange(b.shape[1], dtype=np.float32), a)
        for module, (b, a) in random_factors(modules, rank=rank, seed=seed).items()
    }


def check_report(merged: Merged, expected: Deltas) -> None:
    """Energy and error in the report are those of the file, module by module and together."""
    total = norm(expected) ** 2
    lost = {
        module: float(((merged.deltas[module] - delta) ** 2).sum())
        for module, delta in expected.items()
    }
    assert merged.report["energy_kept"] == pytest.approx(1 - sum(lost.values()) / total, abs=2e-6)
    assert merged.report["error"] == pytest.approx(
        math.sqrt(sum(lost.values()) / total), abs=1e-5, rel=1e-4
    )
    assert merged.report["modules"].keys() == expected.keys()
    for module, row in merged.report["modules"].items():
        energy = float((expected[module] ** 2).sum())
        assert row["energy_kept"] == pytest.approx(1 - lost[module] / energy, abs=2e-6)
        assert row["rank"] == read_factors(merged.folder)[module][1].shape[0]


def shares_of(parts: list[float], wholes: list[float]) -> Any:
    """One share a parent; None for a parent that isn't there."""
    return [part / size if size > 0 else None for part, size in zip(parts, wholes, strict=True)]


def same_shares(found: Any, expected: Any) -> bool:
    """To the six digits that are written down."""
    return [one is None for one in found] == [one is None for one in expected] and all(
        abs(one - other) <= 5e-6 * max(1.0, abs(other))
        for one, other in zip(found, expected, strict=True)
        if one is not None
    )


def check_parents(merged: Merged, parents: list[Deltas]) -> None:
    """What is said to be kept of the parents is in the file: <M, ΔW>/||ΔW||², and ||U'ΔWV||²/||ΔW||² where cut."""
    zero = [0.0] * len(parents)
    inner, inside, norms = list(zero), list(zero), list(zero)
    for module, row in merged.report["modules"].items():
        matrix = merged.deltas[module]
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
        u, vt = u[:, : row["rank"]], vt[: row["rank"]]
        those = [parent.get(module, np.zeros_like(matrix)) for parent in parents]
        own = [float((matrix * delta).sum()) for delta in those]
        within = [float(((u.T @ delta @ vt.T) ** 2).sum()) for delta in those]
        sizes = [float((delta**2).sum()) for delta in those]
        assert same_shares(row["retained"], shares_of(own, sizes)), module
        if "subspace" in row:
            assert same_shares(row["subspace"], shares_of(within, sizes)), module
        for place in range(len(parents)):
            inner[place] += own[place]
            inside[place] += within[place]
            norms[place] += sizes[place]
    assert same_shares(merged.report["retained"], shares_of(inner, norms))
    if "subspace" in merged.report:
        assert same_shares(merged.report["subspace"], shares_of(inside, norms))


@pytest.mark.parametrize("rank", ["full", 1, 5, "auto", "energy=0.9"])
@pytest.mark.parametrize("method", ["linear", "karcher", "ties", "della", "sce"])
def test_the_report_says_what_is_kept_of_each_parent(
    merger: Merger, method: str, rank: str | int
) -> None:
    folders = [
        merger.adapter(seed=0, rank=12, modules=llama_modules("q_proj", "up_proj")),
        merger.adapter(seed=1, rank=7, scale=0.1),
        merger.adapter(seed=2, scale=0.0),
    ]
    merged = merger(folders, method, rank=rank)
    check_parents(merged, [read_deltas(folder) for folder in folders])
    assert merged.report["retained"][2] is None, "of nothing, nothing can be kept"
    assert ("subspace" in merged.report) == (rank != "full")


def test_an_uncut_sum_keeps_its_parents_by_their_weights_and_all_of_their_subspace(
    merger: Merger,
) -> None:
    # Adapters on different modules don't mix: of each, its weight is left.
    folders = [
        merger.adapter(seed=0, modules=llama_modules("q_proj")),
        merger.adapter(seed=1, modules=llama_modules("v_proj")),
    ]
    for rank in ("full", 4):
        report = merger(folders, weights=[0.7, -0.3], rank=rank).report
        assert report["retained"] == pytest.approx([0.7, -0.3], abs=2e-6)
        assert report.get("subspace", [1, 1]) == pytest.approx([1, 1], abs=2e-6)
        assert (report["energy_kept"], report["error"]) == (1.0, 0.0)


@pytest.mark.parametrize("rank", [1, 3, 8, 20])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_given_rank_is_the_best_of_that_rank(merger: Merger, method: str, rank: int) -> None:
    folders = [merger.adapter(seed=0, rank=12), merger.adapter(seed=1, rank=7)]
    parents = [read_deltas(folder) for folder in folders]
    weights = [0.8, -0.6]
    if method == "linear":
        expected = weighted_sum(parents, weights)
    else:
        found = ties(parents, weights, density=0.3)
        assert found.count == 0, "choose another seed: an element lies at the threshold"
        expected = found.merged

    parameters: dict[str, Any] = {"density": 0.3} if method == "ties" else {}
    merged = merger(folders, method, weights=weights, rank=rank, **parameters)

    wrong = norm({module: merged.deltas[module] - expected[module] for module in expected})
    best = discarded(expected, rank)
    assert abs(wrong - best) <= 1e-5 * norm(expected)
    assert all(pair[1].shape[0] <= rank for pair in read_factors(merged.folder).values())
    check_report(merged, expected)


def test_a_rank_above_what_there_is_loses_nothing_and_is_not_padded(merger: Merger) -> None:
    folders = [merger.adapter(seed=0, rank=3), merger.adapter(seed=1, rank=2)]
    merged = merger(folders, rank=400)
    assert {pair[1].shape[0] for pair in read_factors(merged.folder).values()} == {5}
    assert merged.report["error"] == pytest.approx(0, abs=1e-5)


def test_shared_directions_are_counted_once(merger: Merger) -> None:
    folder = merger.adapter(rank=6)
    merged = merger([folder, folder], weights=[0.5, 2.0], rank=64)
    assert {pair[1].shape[0] for pair in read_factors(merged.folder).values()} == {6}


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize("spectrum", ["falling", "flat"])
def test_auto_is_servable_and_keeps_99_percent_or_stops_at_its_cap(
    merger: Merger, method: str, spectrum: str
) -> None:
    modules = llama_modules()
    if spectrum == "falling":
        folders = [
            merger.adapter(factors=falling(seed, modules=modules), rank=24) for seed in range(2)
        ]
    else:
        folders = [merger.adapter(seed=seed, rank=40, modules=modules) for seed in range(2)]
    parents = [read_deltas(folder) for folder in folders]
    merged = merger(folders, method, weights=[1, 1], rank="auto")

    expected = (
        weighted_sum(parents, [1, 1])
        if method == "linear"
        else ties(parents, [1, 1], density=0.2).merged
    )
    chosen = merged.report["rank"]
    kept = 1 - (norm({m: merged.deltas[m] - expected[m] for m in expected}) / norm(expected)) ** 2
    assert chosen in SERVABLE_RANKS
    assert chosen <= 64
    assert kept >= 0.99 or chosen == 64
    smaller = [rank for rank in SERVABLE_RANKS if rank < chosen]
    if smaller:  # it is the smallest that will do
        assert 1 - (discarded(expected, smaller[-1]) / norm(expected)) ** 2 < 0.99
    check_report(merged, expected)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_share_of_the_energy_takes_the_smallest_rank_in_every_module(
    merger: Merger, method: str, share: float
) -> None:
    modules = llama_modules("q_proj", "v_proj", "up_proj")
    folders = [merger.adapter(factors=falling(seed, modules=modules), rank=24) for seed in range(2)]
    parents = [read_deltas(folder) for folder in folders]
    merged = merger(folders, method, weights=[1, 1], rank=f"energy={share}")
    if method == "linear":
        expected = weighted_sum(parents, [1, 1])
    else:
        expected = ties(parents, [1, 1], density=0.2).merged
    for module, delta in expected.items():
        energies = np.linalg.svd(delta, compute_uv=False) ** 2
        wanted = 1 + int(np.searchsorted(np.cumsum(energies) / energies.sum(), share))
        found = merged.report["modules"][module]
        assert found["rank"] == wanted
        assert found["energy_kept"] >= share - 1e-6
    check_report(merged, expected)
    assert merged.report["rank"] == max(r["rank"] for r in merged.report["modules"].values())


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_all_of_the_energy_takes_the_directions_there_are(merger: Merger, method: str) -> None:
    folders = [merger.adapter(seed=0, rank=3), merger.adapter(seed=1, rank=2)]
    merged = merger(folders, method, rank="energy=1", weights=[1, 1])
    for module, delta in merger(folders, method, weights=[1, 1]).deltas.items():
        there = int(np.linalg.matrix_rank(delta, rtol=1e-6))  # trimmed, whole columns may be zero
        assert there == 5 or method == "ties"
        assert merged.report["modules"][module]["rank"] == there
    assert merged.report["error"] <= 1e-5


@pytest.mark.parametrize(
    ("kept_by_8", "rank"), [(0.9899, 16), (0.9901, 8)], ids=["just below", "just above"]
)
def test_auto_wants_99_percent_of_all_modules_together(kept_by_8: float, rank: int) -> None:
    # Two modules of the same energy; 8 directions hold all of one, and of the other what is missing.
    def module(energies: Any) -> Any:
        u, v = (np.linalg.qr(np.random.default_rng(s).standard_normal((40, 40)))[0] for s in (0, 1))
        count = len(energies)
        return factored(u[:, :count] * np.sqrt(energies), v[:, :count].T)

    missing = 2 * (1 - kept_by_8)
    rest = [(1 - missing) / 8] * 8 + [missing / 8] * 8
    parent = {"one": module([1 / 8] * 8), "two": module(rest)}
    _, report = cut(engine([parent], "linear", rank="auto"))
    assert dict(report.ranks) == {"one": 8, "two": rank}


def test_the_cap_of_auto_grows_with_the_parents(merger: Merger) -> None:
    modules = {"model.layers.0.mlp.up_proj": (300, 280)}
    folders = [merger.adapter(seed=seed, rank=130, modules=modules) for seed in range(2)]
    assert merger(folders, rank="auto").report["rank"] == 130  # 128 would not keep 99%


def test_modules_of_smaller_rank_keep_theirs_in_the_pattern(merger: Merger) -> None:
    folders = [
        merger.adapter(seed=0, rank=16, modules=llama_modules("q_proj", "up_proj")),
        merger.adapter(seed=1, rank=2, modules=llama_modules("v_proj", layers=[1])),
    ]
    merged = merger(folders, rank=16)
    config = json.loads((merged.folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16
    assert (
        config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.1.self_attn.v_proj": 2}
    )
