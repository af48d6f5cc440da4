"""DoRA adapters in a merge: refused, or taken as the plain delta that they are on their base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base import read_base
from adapterhub.errors import (
    FormatError,
    IncompatibleError,
    NotFoundError,
    UnsupportedError,
)
from adapterhub.merge.rebuild import rebuild
from adapterhub.merge.run import DEFAULTS
from tests.merge.conftest import silent, state
from tests.support.adapters import llama_modules
from tests.support.attached import apart, attach, load, logits, logits_of_dense
from tests.support.dense import distance, norm, read_deltas, read_parts, ties, weighted_sum
from tests.support.dora import deltas_by_peft, dora_adapter

if TYPE_CHECKING:
    from tests.merge.conftest import Merger
    from tests.support.models import ModelMaker

Make = Callable[..., Path]
ON: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        {},
        {"targets": "all-linear", "r": 4, "use_rslora": True, "rank_pattern": {"up_proj": 7}},
    ),
    "llama in bf16": ("llama", {"dtype": "bfloat16"}, {"r": 4}),
    # Square ones too, whose orientation their shape doesn't show.
    "Conv1D": ("gpt2", {}, {"targets": ("c_attn", "c_proj"), "r": 4, "fan_in_fan_out": True}),
    "Conv1D in bf16": ("gpt2", {"dtype": "bfloat16"}, {"targets": ("c_proj",), "r": 4}),
}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")
@pytest.mark.parametrize("kind", ON)
def test_the_delta_of_a_dora_adapter_is_what_peft_merges(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make, kind: str
) -> None:
    model, of_base, settings = ON[kind]
    base = getattr(tiny, model)(**of_base)
    folder = dora_adapter(make_peft_adapter, base, "dora", seed=1, **settings)
    exact = deltas_by_peft(base, folder)
    parent = merger.add(folder, base=str(base))
    merged = merger.of([parent], weights=[1], base=str(base), dora="approximate")
    assert distance(merged.deltas, exact) <= 2e-6
    as_plain = read_parts(folder)[0]
    assert distance(as_plain, exact) > 0.1, "the magnitudes are too weak for this to say anything"

    assert merged.outcome.manifest.kind == "lora"
    said = logits(attach(load(base), merged.folder))
    assert apart(said, logits(attach(load(base), folder))) <= 1e-5


def test_a_dora_adapter_goes_into_any_method_and_leaves_as_the_best_lora_of_a_rank(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make
) -> None:
    dora = dora_adapter(make_peft_adapter, tiny_llama, "dora", seed=1, r=4)
    plain = merger.adapter(modules=llama_modules("q_proj", "up_proj"), scale=0.2)
    parents = [merger.add(dora, base=str(tiny_llama)), merger.add(plain)]
    exact = [deltas_by_peft(tiny_llama, dora), read_deltas(plain)]
    on: dict[str, Any] = {"base": str(tiny_llama), "dora": "approximate"}

    summed = weighted_sum(exact, [1.5, -0.5])
    assert distance(merger.of(parents, weights=[1.5, -0.5], **on).deltas, summed) <= 2e-6

    voted = ties(exact, [1, 1.2], density=0.3, tolerance=1e-5)
    merged = merger.of(parents, "ties", weights=[1, 1.2], density=0.3, **on)
    assert distance(merged.deltas, voted.merged, apart=voted.undecided) <= 1e-5
    assert voted.count <= 4

    cut = merger.of(parents, weights=[1.5, -0.5], rank=6, **on)
    best = {}
    for module, delta in summed.items():
        u, s, vt = np.linalg.svd(delta)
        best[module] = (u[:, :6] * s[:6]) @ vt[:6]
    assert distance(cut.deltas, best) <= 1e-5
    lost = norm({module: summed[module] - best[module] for module in best}) / norm(summed)
    assert cut.report["error"] == pytest.approx(lost, abs=1e-5)

    (body,) = [
        a.body for a in merger.store.attestations(cut.outcome.digest) if a.type == "provenance"
    ]
    assert body["recipe"]["dora"] == "approximate"
    assert body["recipe"]["base"] == read_base(tiny_llama).fingerprint
    made = merger.store.resolve(str(cut.outcome.name))
    again = rebuild(
        merger.store,
        made,
        base=str(tiny_llama),
        progress=silent,
        resources=DEFAULTS,
        warn=lambda _: None,
    )
    assert again.same
    said = logits(attach(load(tiny_llama), cut.folder))
    assert apart(said, logits_of_dense(tiny_llama, best)) <= 1e-5


def test_one_dora_adapter_at_weight_one_is_that_adapter(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make
) -> None:
    parent = merger.add(dora_adapter(make_peft_adapter, tiny_llama, "dora", seed=1, r=4))
    same = merger.of([parent], dtype=None)
    assert (same.outcome.digest, same.outcome.created) == (parent.digest, False)
    asked = merger.of([parent], dtype=None, dora="approximate", base=str(tiny_llama))
    assert (asked.outcome.manifest.kind, asked.outcome.created) == ("lora", True)


@pytest.mark.parametrize("weights", [[0.5], [1.0, 1.0]])
def test_a_dora_adapter_is_refused_naming_the_ways_out(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make, weights: list[float]
) -> None:
    dora = merger.add(dora_adapter(make_peft_adapter, tiny_llama, "dora", seed=1, r=4))
    parents = [dora, merger.add(merger.adapter())][: len(weights)]
    before = state(merger.store)
    with pytest.raises(UnsupportedError, match="DoRA") as caught:
        merger.of(parents, weights=weights, base=str(tiny_llama))
    assert dora.label in caught.value.what
    assert "adapterhub export" in caught.value.hint
    assert "--dora approximate" in caught.value.hint
    assert state(merger.store) == before


def test_without_the_right_base_a_dora_adapter_is_nothing(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base = tiny.llama()
    folder = dora_adapter(make_peft_adapter, base, "dora", seed=1, r=4)
    lost, known = merger.add(folder), merger.add(folder, base=str(base))
    with pytest.raises(NotFoundError):
        merger.of([merger.add(merger.adapter()), lost], dora="approximate")
    with pytest.raises(IncompatibleError, match="fingerprint"):
        merger.of([known], weights=[2], dora="approximate", base=str(tiny.llama(seed=1)))
    with pytest.raises(IncompatibleError, match="lacks what it changes"):
        merger.of(
            [known], weights=[2], dora="approximate", base=str(tiny.gpt2()), allow_mismatch=True
        )


def test_a_dora_adapter_that_lost_a_magnitude_is_refused_naming_the_module(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make
) -> None:
    folder = dora_adapter(make_peft_adapter, tiny_llama, "dora", seed=1, r=4)
    path = folder / "adapter_model.safetensors"
    lost = "model.layers.1.self_attn.v_proj"
    stored = {k: t for k, t in load_file(path).items() if f"{lost}.lora_magnitude" not in k}
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(FormatError, match=lost):
        merger([folder], weights=[2], dora="approximate", base=str(tiny_llama))


def test_dora_with_whole_weights_beside_it(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make
) -> None:
    folder = dora_adapter(
        make_peft_adapter, tiny_llama, "dora", seed=1, r=4, modules_to_save=["lm_head"]
    )
    path = folder / "adapter_model.safetensors"
    stored = load_file(path)
    stored["base_model.model.lm_head.weight"] += 0.1 * torch.randn(160, 64)
    save_file(stored, path, metadata={"format": "pt"})
    merged = merger([folder], weights=[0.5], dora="approximate", base=str(tiny_llama))
    delta, whole = read_parts(merged.folder)
    head = load(tiny_llama).lm_head.weight.detach().double().numpy()
    exact = deltas_by_peft(tiny_llama, folder)
    assert np.abs(whole["lm_head.weight"] - head - 0.5 * exact.pop("lm_head")).max() <= 1e-6
    assert distance(delta, weighted_sum([exact], [0.5])) <= 2e-6
