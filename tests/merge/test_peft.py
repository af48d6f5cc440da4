"""PEFT as an outside oracle: its exact combination agrees, and it loads what comes out, giving base + merged ΔW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support.adapters import EMBEDDING, HEAD, llama_modules
from tests.support.attached import apart, attach, load, logits, logits_of_dense
from tests.support.dense import distance, read_deltas, ties, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.merge.conftest import Merger
    from tests.support.models import ModelMaker

ON_LLAMA: dict[str, list[dict[str, Any]]] = {
    "equal": [{"scale": 0.2}, {"scale": 0.2}],
    "disjoint targets": [
        {"modules": llama_modules("q_proj"), "scale": 0.3},
        {"modules": llama_modules("down_proj", layers=[1]), "scale": 0.3, "rank": 2},
    ],
    "rank_pattern and rsLoRA": [
        {"rank_pattern": {"v_proj": 7}, "alpha_pattern": {"q_proj": 1.5}, "scale": 0.2},
        {
            "use_rslora": True,
            "rank": 12,
            "scale": 0.15,
            "modules": llama_modules("q_proj", "up_proj"),
        },
    ],
    "embedding": [
        {"modules": EMBEDDING, "scale": 0.2},
        {"modules": {**EMBEDDING, **llama_modules("q_proj")}, "scale": 0.2},
    ],
    "head": [{"modules": HEAD, "scale": 0.2}, {"modules": llama_modules("v_proj"), "scale": 0.2}],
}


@pytest.mark.parametrize("kind", ["equal", "disjoint targets", "rank_pattern and rsLoRA"])
def test_linear_agrees_with_pefts_cat(
    merger: Merger, tiny_llama: Path, tmp_path: Path, kind: str
) -> None:
    folders = [
        merger.adapter(seed=seed, **settings) for seed, settings in enumerate(ON_LLAMA[kind])
    ]
    weights = [0.7, 1.6]
    model = attach(load(tiny_llama), folders[0])
    model.load_adapter(folders[1], "second")
    model.add_weighted_adapter(["default", "second"], weights, "sum", combination_type="cat")
    # PEFT keeps the first parent's use_rslora, which scales the sum by sqrt(r) more; read what it has in memory.
    by_peft = {
        name: layer.get_delta_weight("sum").double().detach().numpy() / layer.scaling["sum"]
        for name, layer in model.base_model.model.named_modules()
        if "sum" in getattr(layer, "lora_A", {})
    }

    # And it gives a target to every layer of the union, where only one layer has anything to sum.
    by_peft = {name: delta for name, delta in by_peft.items() if delta.any()}

    merged = merger(folders, weights=weights).deltas

    assert distance(merged, by_peft) <= 1e-6
    model.set_adapter("sum")
    if not any(settings.get("use_rslora") for settings in ON_LLAMA[kind]):
        checkout = tmp_path / "checkout"
        merger.store.checkout(merger.add(merger(folders, weights=weights).folder), checkout)
        assert apart(logits(attach(load(tiny_llama), checkout)), logits(model)) <= 2e-6


@pytest.mark.parametrize(
    ("method", "rank"), [("linear", "full"), ("linear", "auto"), ("ties", "full")]
)
@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, False) for kind in ON_LLAMA), ("embedding", True), ("head", True)]
)
def test_peft_loads_a_merged_adapter_and_it_means_base_plus_delta(
    merger: Merger, tiny: ModelMaker, tmp_path: Path, kind: str, method: str, rank: str, tied: bool
) -> None:
    folders = [
        merger.adapter(seed=seed, **settings) for seed, settings in enumerate(ON_LLAMA[kind])
    ]
    merged = merger(folders, method, weights=[1, 0.5], rank=rank)
    checkout = tmp_path / "checkout"
    merger.store.checkout(merger.store.resolve(str(merged.outcome.name)), checkout)

    parents = [read_deltas(folder) for folder in folders]
    dense = (
        weighted_sum(parents, [1, 0.5])
        if method == "linear"
        else ties(parents, [1, 0.5], density=0.2).merged
    )
    if rank == "auto":
        dense = merged.deltas  # what truncation leaves is a claim of its own (test_rank.py)
    base = tiny.llama(tied=tied)
    before = logits(load(base))
    found = logits(attach(load(base), checkout))
    assert apart(found, logits_of_dense(base, dense)) <= 5e-6
    assert apart(found, before) > 1e-3, "the adapter is too weak for this test to say anything"


@pytest.mark.parametrize("rank", ["full", "8"])
def test_peft_loads_a_merge_of_adapters_for_conv1d(
    merger: Merger, tiny: ModelMaker, tmp_path: Path, rank: str
) -> None:
    modules = {"transformer.h.0.attn.c_attn": (192, 64), "transformer.h.1.mlp.c_proj": (64, 256)}
    square = {"transformer.h.1.attn.c_proj": (64, 64)}
    folders = [
        merger.adapter(modules=modules, fan_in_fan_out=True, scale=0.3),
        merger.adapter(modules=square, fan_in_fan_out=True, scale=0.3, seed=1),
    ]
    merged = merger(folders, weights=[1, 1], rank=rank)
    base = tiny.gpt2()
    found = logits(attach(load(base), merged.folder))
    expected = weighted_sum([read_deltas(folder) for folder in folders], [1, 1])
    assert apart(found, logits_of_dense(base, expected, conv1d=True)) <= 5e-6


def test_merging_adapters_that_peft_made_and_saved(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    folders = [
        make_peft_adapter(tiny_llama, "one", r=4, lora_alpha=16, strength=0.3),
        make_peft_adapter(
            tiny_llama,
            "two",
            r=8,
            targets="all-linear",
            use_rslora=True,
            rank_pattern={"down_proj": 2},
            alpha_pattern={"layers.0.mlp.up_proj": 3},
            seed=1,
            strength=0.2,
        ),
    ]
    parents = [merger.add(folder, base=str(tiny_llama)) for folder in folders]
    merged = merger.of(parents, weights=[0.6, 0.9])
    expected = weighted_sum([read_deltas(folder) for folder in folders], [0.6, 0.9])
    assert distance(merged.deltas, expected) <= 1e-6
    assert (
        apart(
            logits(attach(load(tiny_llama), merged.folder)), logits_of_dense(tiny_llama, expected)
        )
        <= 5e-6
    )


@pytest.mark.parametrize("strict", [False, True])
def test_merging_layer_restricted_adapters_does_not_spread_to_other_layers(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Callable[..., Path], strict: bool
) -> None:
    restricted = (
        {"layers_to_transform": [1]}
        if strict
        else {"exclude_modules": ["model.layers.0.self_attn.q_proj"]}
    )
    folder = make_peft_adapter(
        tiny_llama, "one", r=4, targets=("q_proj",), strength=0.3, **restricted
    )
    merged = merger([folder], weights=[2.0])
    assert set(merged.deltas) == {"model.layers.1.self_attn.q_proj"}
    found = logits(attach(load(tiny_llama), merged.folder))
    expected = weighted_sum([read_deltas(folder)], [2.0])
    assert apart(found, logits_of_dense(tiny_llama, expected)) <= 5e-6


def test_logits_tell_adapters_apart(tiny_llama: Path) -> None:
    """The measure itself: a change of one weight in a thousand is seen."""
    plain = logits(load(tiny_llama))
    moved = logits_of_dense(
        tiny_llama, {"model.layers.0.self_attn.q_proj": 1e-3 * np.ones((64, 64))}
    )
    assert apart(moved, plain) > 1e-6
