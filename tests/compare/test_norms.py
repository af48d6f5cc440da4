"""The norms of an adapter's layers are those of its deltas."""

from __future__ import annotations

import numpy as np
import pytest

from adapterhub.compare.norms import norms_of
from adapterhub.lora.adapter import opened
from adapterhub.store import Store
from tests.support.adapters import AdapterMaker

SHAPES = {
    **{f"model.layers.{layer}.self_attn.q_proj": (12, 8) for layer in range(3)},
    **{f"model.layers.{layer}.mlp.up_proj": (20, 8) for layer in (0, 2)},
    "lm_head": (30, 8),
}


def test_they_are_the_frobenius_norms_of_the_deltas(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("a", modules=SHAPES, rank=3, seed=4), name="a")
    resolved = store.resolve("a")
    found = norms_of(store, resolved)
    with opened(store, [resolved], "compared") as [adapter]:
        whole = {}
        for name in adapter.modules:
            factors = adapter.factors(name)
            whole[name] = np.linalg.norm(
                factors.b.astype(np.float64) @ factors.a.astype(np.float64)
            )
    assert found.layers == (0, 1, 2)
    for layer in found.layers:
        assert found.rows["q_proj"][layer] == pytest.approx(
            whole[f"model.layers.{layer}.self_attn.q_proj"]
        )
        mlp = whole.get(f"model.layers.{layer}.mlp.up_proj", 0.0)
        assert found.rows["up_proj"][layer] == pytest.approx(mlp)
    assert list(found.rows) == ["q_proj", "up_proj"], "attention first"
    assert found.outside == {"lm_head": pytest.approx(whole["lm_head"])}
    assert found.total == pytest.approx(np.sqrt(sum(norm**2 for norm in whole.values())))
