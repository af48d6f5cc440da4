"""Every method on people's own adapters, over all pairs that share a base. Nothing of them is copied in here.

The folder lies beside the checkout (`../shared`) or where $ADAPTERHUB_SHARED says.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from adapterhub.errors import IncompatibleError
from adapterhub.lora.adapter import Adapter, opened
from adapterhub.lora.rows import Factored, whole
from adapterhub.merge.engine import Engine
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.specs import methods
from adapterhub.merge.stages import AdapterStage, Stage

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

SHARED = Path(os.environ.get("ADAPTERHUB_SHARED", Path(__file__).parents[2].parent / "shared"))
pytestmark = pytest.mark.skipif(
    not (SHARED / "adapters").is_dir(), reason="the folder with people's adapters isn't here"
)
GEMMA = (
    "0112LY__logo-gemma-lora",
    "fanyihan-max__WorkforLLM",
    "ao-wei__gemma3-270m-svg-lora-partb",
)
"""Three authors, one base, three spellings of its name, two ranks, two sets of targets."""
GPT2 = ("deepbiolab__gpt2-classification-peft", "sukhmandhawan__LightWeightFineTUning")
"""Two heads of different shapes, one of them beside factors of zeros."""
LOOKED_AT = 6
"""Modules compared, spread over the model: every method goes over all of them where it has to."""
PAIRS = [name for name, spec in methods().items() if (spec.max_inputs or 2) >= 2]
UNDECIDED = 1e-3
"""Share of elements that may change sides by rounding."""


class Regauged:
    """The same deltas in other factors: (B·R, R⁻¹·A)."""

    def __init__(self, stage: AdapterStage) -> None:
        self._stage = stage
        self.shapes = stage.shapes

    def open(self, module: str) -> Factored | None:
        delta = self._stage.open(module)
        if delta is None:
            return None
        turn = torch.linalg.qr(torch.randn(delta.rank, delta.rank, dtype=torch.float64))[0]
        turn = turn * torch.linspace(0.5, 2, delta.rank, dtype=torch.float64)
        b, a = delta.b.double() @ turn, torch.linalg.inv(turn) @ delta.a.double()
        return Factored(b.float(), a.float())


def merged(
    method: str, adapters: Sequence[Adapter], stages: Sequence[Stage]
) -> dict[str, torch.Tensor]:
    digests = [adapter.resolved.digest for adapter in adapters]
    recipe = make_recipe(method, digests)
    result = Engine(recipe, dict(zip(digests, stages, strict=True)), workers=1).result()
    shared = [name for name in sorted(result.shapes) if all(name in s.shapes for s in stages)]
    names = shared[:: max(1, len(shared) // LOOKED_AT)]
    found = {}
    for name in names:
        delta = result.open(name)
        assert delta is not None
        found[name] = whole(delta)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(combinations(GEMMA, 2)), ids=lambda pair: "+".join(pair)[:24])
@pytest.mark.parametrize("method", PAIRS)
def test_a_merge_of_peoples_adapters_is_finite_and_free_of_gauge(
    merger: Merger, method: str, pair: tuple[str, str]
) -> None:
    torch.manual_seed(1)
    parents = [merger.add(SHARED / "adapters" / name) for name in pair]
    with opened(merger.store, parents, "merged") as adapters:
        plain = [AdapterStage(a, torch.device("cpu")) for a in adapters]
        before = merged(method, adapters, plain)
        after = merged(method, adapters, [Regauged(stage) for stage in plain])
    for name, delta in before.items():
        assert torch.isfinite(delta).all(), name
        apart = (after[name] - delta).abs()
        moved = apart > 1e-2 * torch.maximum(after[name].abs(), delta.abs())
        assert int(moved.sum()) <= UNDECIDED * delta.numel() + 1, name
        assert float(apart[~moved].norm()) <= 1e-4 * float(delta.norm()) + 1e-12, name
    assert any(float(delta.norm()) > 0 for delta in before.values())


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_a_merge_of_peoples_adapters_is_stored_and_keeps_what_it_says(
    merger: Merger, method: str
) -> None:
    done = merger([SHARED / "adapters" / name for name in GEMMA[:2]], method, rank=16)
    assert 0 < done.report["energy_kept"] <= 1
    # The first is so weak that what the second puts in its direction may be many times itself.
    assert 0 < done.report["retained"][1] <= 1.5
    assert np.isfinite(done.report["retained"][0])
    assert all(np.isfinite(delta).all() for delta in done.deltas.values())
    assert len(done.deltas) == 36


def test_heads_of_different_shapes_are_refused_until_one_is_named(merger: Merger) -> None:
    parents = [merger.add(SHARED / "adapters" / name) for name in GPT2]
    with pytest.raises(IncompatibleError, match="differ in shape") as caught:
        merger.of(parents)
    assert "--saved-from" in caught.value.hint
    done = merger.of(parents, saved_from=parents[0], rank=16)
    assert done.outcome.manifest.lora is not None
    assert done.outcome.manifest.lora.modules_to_save
