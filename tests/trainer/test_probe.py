"""The spectra are those of the dense delta, and the rank that is recommended is the one that was planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.lora.adapter import opened
from adapterhub.store import Store
from adapterhub.trainer.probe import Probe, cuts, probe
from tests.cli.calling import call
from tests.support.adapters import QV, AdapterMaker, Array, llama_modules, random_factors

Planted = Callable[..., Probe]


def factors_of(values: Array, shape: tuple[int, int], rank: int, seed: int) -> tuple[Array, Array]:
    """(B, A) of rank `rank` whose product has these singular values, in a gauge of their own."""
    random = np.random.default_rng(seed)
    u = np.linalg.qr(random.standard_normal((shape[0], rank)))[0]
    v = np.linalg.qr(random.standard_normal((shape[1], rank)))[0]
    gauge = random.standard_normal((rank, rank)) + 3 * np.eye(rank)
    return (u * values) @ gauge, np.linalg.solve(gauge, v.T)


@pytest.fixture
def planted(store: Store, make_adapter: AdapterMaker) -> Planted:
    """planted(values, rank=..., alpha=..., dtype=...) -> the probe of an adapter with that spectrum in every module."""

    def plant(values: Any, *, rank: int = 16, alpha: float | None = None, **options: Any) -> Probe:
        scale = (alpha or rank) / rank
        wanted = np.asarray(values, dtype=np.float64) / scale
        pairs = {
            name: factors_of(wanted, shape, rank, place)
            for place, (name, shape) in enumerate(QV.items())
        }
        folder = make_adapter("planted", factors=pairs, rank=rank, alpha=alpha or rank, **options)
        store.add_folder(folder, name="planted")
        return probed(store, "planted")

    return plant


def probed(store: Store, name: str) -> Probe:
    with opened(store, [store.resolve(name)], "probed", plain=False) as (adapter,):
        return probe(adapter)


@pytest.mark.parametrize("alpha", [16, 40])
def test_the_spectrum_that_was_planted_is_found_scale_included(
    planted: Planted, alpha: float
) -> None:
    values = 3.0 * 0.6 ** np.arange(16)
    found = planted(values, alpha=alpha)
    energy = values**2
    for module in found.modules:
        np.testing.assert_allclose(module.values, values, rtol=1e-4)
        share = values / values.sum()
        assert module.effective_rank == pytest.approx(
            float(np.exp(-(share * np.log(share)).sum())), rel=1e-4
        )
        assert module.stable_rank == pytest.approx(float(energy.sum() / energy[0]), rel=1e-4)
    for rank in cuts(16):
        assert found.whole.kept(rank) == pytest.approx(
            float(energy[:rank].sum() / energy.sum()), rel=1e-5
        )
    for share in (0.9, 0.95, 0.99):
        expected = int(np.searchsorted(np.cumsum(energy) / energy.sum(), share)) + 1
        assert found.whole.needed(share) == expected


def test_it_is_the_spectrum_of_the_dense_delta(store: Store, make_adapter: AdapterMaker) -> None:
    pairs = random_factors(llama_modules(), rank=8, seed=4)
    store.add_folder(make_adapter("dense", factors=pairs, rank=8, alpha=24), name="dense")
    found = probed(store, "dense")
    spectra = {
        name: np.linalg.svd(3.0 * b.astype(np.float64) @ a, compute_uv=False)[:8]
        for name, (b, a) in pairs.items()
    }
    for module in found.modules:
        np.testing.assert_allclose(module.values, spectra[module.name], rtol=1e-5)
    every = np.stack(list(spectra.values())) ** 2
    assert found.whole.norm == pytest.approx(float(np.sqrt(every.sum())), rel=1e-6)
    assert found.whole.kept(3) == pytest.approx(float(every[:, :3].sum() / every.sum()), rel=1e-6)
    assert found.parts["q_proj"].energy + found.parts["v_proj"].energy < found.whole.energy
    assert sum(part.energy for part in found.parts.values()) == pytest.approx(found.whole.energy)


def test_a_rank_that_is_too_large_is_told_with_what_a_smaller_one_keeps(planted: Planted) -> None:
    found = planted([4, 2, 1, 0.5, 0.2, 0.1, *[0.01] * 10])
    assert found.recommendation.rank == 4
    assert found.recommendation.words == "Rank 4 would have kept 99.8% of what rank 16 learned."


@pytest.mark.parametrize(("values", "rank", "says"), [
    (np.ones(16), 32, "flat up to the full rank 16"),
    (0.85 ** np.arange(16), 16, "about right"),
    (np.zeros(16), 16, "Nothing was learned"),
])  # fmt: skip
def test_flat_full_and_empty_spectra(planted: Planted, values: Any, rank: int, says: str) -> None:
    found = planted(values).recommendation
    assert found.rank == rank
    assert says in found.words


def test_almost_all_never_reads_as_all(planted: Planted) -> None:
    found = planted([1000, *[0.01] * 15])
    assert found.recommendation.words.startswith("Rank 1 would have kept 99.9%")


def test_modules_of_other_ranks_and_those_that_are_silent_are_told_apart(
    store: Store, make_adapter: AdapterMaker
) -> None:
    pairs = random_factors(QV, rank=4, rank_pattern={"q_proj": 6})
    name = next(iter(sorted(QV)))
    pairs[name] = (pairs[name][0] * 0, pairs[name][1])
    folder = make_adapter("mixed", factors=pairs, rank=4, rank_pattern={"q_proj": 6})
    store.add_folder(folder, name="mixed")
    found = probed(store, "mixed")
    assert {module.part: module.rank for module in found.modules} == {"q_proj": 6, "v_proj": 4}
    (silent,) = [module for module in found.modules if not module.values]
    assert (silent.name, silent.dead) == (name, ("B",))
    assert found.whole.rank == 6
    assert found.whole.kept(6) == 1


def test_an_adapter_that_peft_saved_is_probed_by_its_name(
    store: Store, tiny_llama: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    store.add_folder(make_peft_adapter(tiny_llama, r=4, use_rslora=True), name="peft")
    record = call("doctor", "peft", "--json").json["probe"]
    assert record["rank"] == 4
    assert set(record["modules"][0]) == {
        "module", "shape", "rank", "dead", "singular_values", "norm", "effective_rank", "stable_rank", "kept", "needed",
    }  # fmt: skip
    assert list(record["kept"]) == ["1", "2", "4"]
    assert list(record["needed"]) == ["0.9", "0.95", "0.99"]
