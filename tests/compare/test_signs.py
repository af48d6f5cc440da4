"""The sample of rows, and counting in blocks: what is counted doesn't depend on how."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.compare import signs
from adapterhub.compare.signs import SignConflict, sample_rows, sign_conflicts
from adapterhub.lora.adapter import Factors


def factors(seed: int, out: int, width: int, rank: int = 5) -> Factors:
    random = np.random.default_rng(seed)
    b, a = random.standard_normal((out, rank)), random.standard_normal((rank, width))
    return Factors(b.astype(np.float32), a.astype(np.float32))


@pytest.mark.parametrize("out", [65, 100, 1024, 14336])
def test_the_sample_has_one_row_of_each_stretch_and_is_the_modules_own(out: int) -> None:
    rows = sample_rows("model.layers.3.mlp.up_proj", out)
    edges = [stretch * out // 64 for stretch in range(65)]
    assert all(
        low <= row < high for low, row, high in zip(edges, rows.tolist(), edges[1:], strict=False)
    )
    assert rows.tolist() == sample_rows("model.layers.3.mlp.up_proj", out).tolist()
    if out > 128:
        assert rows.tolist() != sample_rows("model.layers.4.mlp.up_proj", out).tolist()


def test_the_sample_never_changes() -> None:
    """From one version to the next the same rows, else numbers of two days couldn't be compared."""
    rows = sample_rows("model.layers.0.self_attn.q_proj", 4096)
    assert rows[:6].tolist() == [40, 120, 155, 248, 276, 352]
    assert sample_rows("any", 64).tolist() == list(range(64))
    assert len(sample_rows("bad \udce9 name", 200)) == 64


def test_counting_in_small_blocks_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [factors(seed, 90, 31) for seed in range(3)]
    whole = sign_conflicts(deltas)
    monkeypatch.setattr(signs, "_TILE_VALUES", 100)
    assert sign_conflicts(deltas) == whole


def test_a_sample_of_all_rows_is_exact() -> None:
    deltas = [factors(seed, 50, 40) for seed in range(2)]
    assert sign_conflicts(deltas, np.arange(50)) == sign_conflicts(deltas)


def test_the_error_of_the_sampling_is_about_what_sampling_errs_by() -> None:
    """A in common: whether signs agree is then mostly a matter of the row. 300 samples of 40 rows against all 800."""
    one, other = factors(0, 800, 60), factors(1, 800, 60)
    deltas = [one, Factors(other.b, one.a)]
    (exact,) = sign_conflicts(deltas).values()
    random = np.random.default_rng(2)
    misses = []
    for _ in range(300):
        rows = np.sort(random.choice(800, 40, replace=False))
        (sampled,) = sign_conflicts(deltas, rows).values()
        misses.append(((sampled.rate or 0) - (exact.rate or 0)) / sampled.error)
    assert 0.85 < float(np.std(misses)) < 1.2
    assert exact.error == 0


def test_the_top_fifth_is_told_from_the_next_float() -> None:
    steps = np.float32(1) + np.arange(1, 101, dtype=np.float32) * np.finfo(np.float32).eps
    delta = Factors(np.ones((10, 1), np.float32), np.random.default_rng(0).permutation(steps)[None])
    (found,) = sign_conflicts([delta, delta]).values()
    assert found.top_shared == 10 * 100 // 5


def test_zeros_conflict_with_nothing() -> None:
    one, other = factors(0, 10, 12), factors(1, 10, 12)
    half = Factors(one.b.copy(), one.a)
    half.b[:5] = 0
    (found,) = sign_conflicts([half, other]).values()
    opposed = (one.b @ one.a)[5:] * (other.b @ other.a)[5:] < 0
    assert (found.shared, found.opposed) == (60, int(opposed.sum()))
    mostly = Factors(one.b.copy(), one.a)
    mostly.b[1:] = 0  # a trim to a fifth would keep zeros
    (found,) = sign_conflicts([mostly, other]).values()
    assert found.top_shared <= found.shared == 12


def test_nothing_shared_has_no_rate() -> None:
    empty = SignConflict(4, 4, 0, 0, 0, 0, 0.0)
    assert empty.rate is None
    assert empty.top_rate is None
