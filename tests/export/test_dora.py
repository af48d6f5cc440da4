"""DoRA adapters are exported exactly: as PEFT's own merge in float32, several of them by their deltas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.export.test_bake import check_changed
from tests.support.attached import apart, attach, load, logits, tensors
from tests.support.dense import read_deltas, ties, weighted_sum
from tests.support.dora import deltas_by_peft, dora_adapter

if TYPE_CHECKING:
    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

Make = Callable[..., Path]
ON: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"targets": "all-linear", "r": 4, "rank_pattern": {"up_proj": 7}}),
    "Conv1D": ("gpt2", {"targets": ("c_attn", "c_proj"), "r": 4, "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("kind", ON)
def test_one_dora_adapter_is_what_peft_merges(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Make, kind: str
) -> None:
    model, settings = ON[kind]
    base = getattr(tiny, model)()
    adapter = dora_adapter(make_peft_adapter, base, "dora", seed=1, **settings)
    out = exporter([adapter], base).folder
    check_changed(out, base, deltas_by_peft(base, adapter), conv1d=kind == "Conv1D")
    by_peft = attach(load(base), adapter).merge_and_unload().state_dict()
    for name, weight in tensors(out).items():
        assert float((by_peft[name] - weight).norm()) <= 1e-6 * float(weight.norm()), name
    assert apart(logits(load(out)), logits(attach(load(base), adapter))) <= 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_several_are_merged_by_their_deltas_and_rounded_once(
    exporter: Exporter,
    tiny: ModelMaker,
    make_peft_adapter: Make,
    make_adapter: AdapterMaker,
    dtype: str,
) -> None:
    base = tiny.llama(dtype=dtype)
    doras = [
        dora_adapter(make_peft_adapter, base, f"dora{seed}", seed=seed, r=3 + seed)
        for seed in range(2)
    ]
    plain = make_adapter("plain", scale=0.2)
    parents = [*(deltas_by_peft(base, one) for one in doras), read_deltas(plain)]
    weights = [0.8, -0.5, 1.2]
    out = exporter([*doras, plain], base, weights=weights).folder
    check_changed(out, base, weighted_sum(parents, weights))

    voted = ties(parents, weights, density=0.25, tolerance=1e-6)
    assert voted.count == 0, "choose other seeds: an element lies at a threshold"
    out = exporter([*doras, plain], base, "ties", weights=weights, density=0.25).folder
    check_changed(out, base, voted.merged)
