"""The weighted sum is the weighted sum: against dense float64 matrices computed here from the raw files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.adapters import EMBEDDING, HEAD, QV, llama_modules, random_factors
from tests.support.dense import norm, read_deltas, weighted_sum

if TYPE_CHECKING:
    from pathlib import Path

    from tests.merge.conftest import Merger

# The store a fixture makes is shared by all examples of a test; each uses fresh names in it.
LAW = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

WEIGHT = st.one_of(st.floats(0.001, 8), st.floats(-8, -0.001), st.just(0.0))

KINDS: dict[str, list[dict[str, Any]]] = {
    "mixed ranks": [{"rank": 2}, {"rank": 16, "alpha": 4}, {"rank": 5, "alpha": 1.5}],
    "disjoint targets": [
        {"modules": llama_modules("q_proj", "v_proj")},
        {"modules": llama_modules("down_proj", "up_proj")},
    ],
    "overlapping targets": [
        {"modules": llama_modules("q_proj", "v_proj")},
        {"modules": llama_modules("v_proj", "o_proj", layers=[1])},
        {"modules": llama_modules()},
    ],
    "rsLoRA beside LoRA": [{"use_rslora": True, "rank": 16}, {"rank": 8}],
    "patterns": [
        {
            "rank_pattern": {"q_proj": 7, "layers.1.self_attn.v_proj": 2},
            "alpha_pattern": {"v_proj": 31},
        },
        {
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 0.25},
            "rank_pattern": {"v_proj": 9},
            "use_rslora": True,
        },
    ],
    "patterns that are regular expressions": [
        {
            "rank_pattern": {r"layers\.(0|7)\..*_proj": 6},
            "alpha_pattern": {r"^model\.layers\.1\..+": 5},
        },
        {
            "rank_pattern": {"q_proj": 3, "layers.0.self_attn.q_proj": 9}
        },  # the first that matches counts
    ],
    "Conv1D": [
        {"modules": {"transformer.h.0.attn.c_attn": (192, 64)}, "fan_in_fan_out": True},
        {"modules": {"transformer.h.0.attn.c_attn": (192, 64)}, "fan_in_fan_out": True, "rank": 3},
    ],
    "embedding and head": [
        {"modules": {**QV, **EMBEDDING}},
        {"modules": {**EMBEDDING, **HEAD}, "rank": 3},
    ],
    "bfloat16": [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "rank": 8}],
    "float16": [{"dtype": "float16"}, {"dtype": "float16", "rank": 8}],
    "float16, bfloat16, float32, float64": [
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"dtype": "float32"},
        {"dtype": "float64"},
    ],
}


def error(found: dict[str, Any], parents: list[dict[str, Any]], weights: list[float]) -> float:
    """Against the dense sum, relative to what was summed, so that cancellation doesn't count as an error."""
    expected = weighted_sum(parents, weights)
    assert found.keys() == expected.keys()
    mass = norm(
        weighted_sum(
            [{m: np.abs(d) for m, d in parent.items()} for parent in parents],
            [abs(w) for w in weights],
        )
    )
    return norm({module: found[module] - expected[module] for module in expected}) / (mass or 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", ["full", 64])
def test_linear_is_the_dense_weighted_sum(merger: Merger, kind: str, rank: str | int) -> None:
    folders = [merger.adapter(seed=seed, **settings) for seed, settings in enumerate(KINDS[kind])]
    weights = [0.7, -0.4, 1.9, 0.25][: len(folders)]

    merged = merger(folders, weights=weights, rank=rank)

    parents = [read_deltas(folder) for folder in folders]
    expected = weighted_sum(parents, weights)
    assert merged.deltas.keys() == expected.keys()
    for module in expected:  # in every module by itself, not only in the sum of all
        wrong = np.linalg.norm(merged.deltas[module] - expected[module]) / np.linalg.norm(
            expected[module]
        )
        assert wrong <= 1e-6, module


@LAW
@given(
    weights=st.lists(WEIGHT, min_size=1, max_size=4),
    ranks=st.lists(st.integers(1, 20), min_size=4, max_size=4),
    scales=st.lists(st.sampled_from([1e-4, 0.01, 1.0]), min_size=4, max_size=4),
    seed=st.integers(0, 10_000),
)
def test_linear_is_exact_for_any_weights_ranks_and_scales(
    merger: Merger, weights: list[float], ranks: list[int], scales: list[float], seed: int
) -> None:
    targets = [("q_proj",), ("q_proj", "v_proj"), ("v_proj",), ("o_proj", "q_proj")]
    folders = [
        merger.adapter(
            seed=seed + place,
            rank=ranks[place],
            scale=scales[place],
            modules=llama_modules(*targets[place], layers=[0]),
        )
        for place in range(len(weights))
    ]
    merged = merger(folders, weights=weights)
    assert error(merged.deltas, [read_deltas(folder) for folder in folders], weights) <= 1e-6


@pytest.mark.parametrize("rank", ["full", "auto", 4])
def test_an_adapter_minus_itself_is_nothing(merger: Merger, rank: str | int) -> None:
    folder = merger.adapter(rank=4)
    merged = merger([folder, folder], weights=[1, -1], rank=rank)
    assert norm(merged.deltas) <= 1e-6 * norm(read_deltas(folder))


@pytest.mark.parametrize("rank", ["full", "auto", 4])
def test_negation_undoes_an_adapter(merger: Merger, rank: str | int) -> None:
    folder = merger.adapter()
    negative = merger([folder], weights=[-1], rank=rank)
    back = merger([folder, negative.folder], weights=[1, 1])
    assert norm(back.deltas) <= 2e-6 * norm(read_deltas(folder))


@pytest.mark.parametrize("rank", ["full", "auto", 2])
def test_weights_of_zero_give_an_adapter_that_changes_nothing(
    merger: Merger, rank: str | int
) -> None:
    folder = merger.adapter()
    assert norm(merger([folder, merger.adapter(seed=1)], weights=[0, 0], rank=rank).deltas) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rank", ["full", 8])
def test_a_narrow_result_is_off_by_one_rounding_of_each_factor(
    merger: Merger, dtype: str, rank: str | int
) -> None:
    folders = [merger.adapter(dtype=dtype, seed=seed) for seed in range(2)]
    expected = weighted_sum([read_deltas(folder) for folder in folders], [0.5, 0.5])
    merged = merger(folders, rank=rank, dtype=None)
    half_ulp = {"bfloat16": 2**-9, "float16": 2**-12}[dtype]
    wrong = norm({m: merged.deltas[m] - expected[m] for m in expected}) / norm(expected)
    assert merged.outcome.manifest.lora is not None
    assert merged.outcome.manifest.lora.dtype == dtype
    assert wrong <= 2.1 * half_ulp


def test_small_float16_parents_lose_no_more_than_one_rounding(merger: Merger) -> None:
    # Values of a real B after few steps; the scale times the weight would push them below float16's normal numbers.
    random = np.random.default_rng(0)
    factors = {
        module: ((b * 1e-3).astype(np.float16), a * 20)
        for module, (b, a) in random_factors(QV, rank=8, seed=int(random.integers(100))).items()
    }
    folders = [merger.adapter(factors=factors, rank=8, alpha=1, dtype="float16") for _ in range(2)]
    expected = weighted_sum([read_deltas(folder) for folder in folders], [0.5, 0.5])
    for rank in ("full", 16):
        merged = merger(folders, rank=rank, dtype=None)
        wrong = norm({m: merged.deltas[m] - expected[m] for m in expected}) / norm(expected)
        assert wrong <= 2.1 * 2**-12, rank


def test_defaults_are_the_mean(merger: Merger) -> None:
    folders: list[Path] = [merger.adapter(seed=seed) for seed in range(3)]
    parents = [read_deltas(folder) for folder in folders]
    assert error(merger(folders).deltas, parents, [1 / 3] * 3) <= 1e-6


def test_the_length_of_a_files_header_makes_no_difference(merger: Merger) -> None:
    # safetensors pads headers to a multiple of 8: their length is the first byte of the file, and may be any of these.
    from safetensors.torch import load_file, save_file

    for padding in range(0, 256, 8):
        folder = merger.adapter(modules={"q": (4, 4)})
        path = folder / "adapter_model.safetensors"
        save_file(load_file(path), path, metadata={"format": "pt", "note": "x" * padding})
        assert merger([folder], weights=[2.0]).outcome.created or padding


@pytest.mark.parametrize(
    ("parent", "asked"), [("float64", None), ("float32", "bfloat16"), ("float32", "float16")]
)
def test_a_result_narrower_than_its_parents_is_said(
    merger: Merger, parent: str, asked: str | None
) -> None:
    merged = merger([merger.adapter(dtype=parent)], dtype=asked)
    assert len(merged.warnings) == 1
    assert parent in merged.warnings[0]
    assert (asked or "float32") in merged.warnings[0]


def test_parents_of_different_dtypes_give_float32_and_equal_ones_their_own(merger: Merger) -> None:
    def dtype(*parents: str) -> str:
        merged = merger(
            [merger.adapter(dtype=one, seed=seed) for seed, one in enumerate(parents)], dtype=None
        )
        assert merged.warnings == []
        lora = merged.outcome.manifest.lora
        assert lora is not None
        return lora.dtype

    assert dtype("bfloat16", "bfloat16") == "bfloat16"
    assert dtype("float16", "float16") == "float16"
    assert dtype("bfloat16", "float16") == dtype("bfloat16", "float32") == "float32"
