"""Whole weights and biases in a merge: sums of values where the base drops out, else differences from the base."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adapterhub.errors import AdapterHubError, IncompatibleError, UnsupportedError, UsageError
from adapterhub.formats.safetensors import TensorFile
from adapterhub.lora import rows
from adapterhub.merge.rebuild import rebuild
from adapterhub.merge.recipe import StepInput, make_step, recipe_of
from adapterhub.merge.run import DEFAULTS
from tests.merge.conftest import silent, state
from tests.support.adapters import EMBEDDING, HEAD, QV
from tests.support.attached import apart, attach, load, logits, logits_of_dense, tensors
from tests.support.dense import Deltas, Matrix, distance, read_parts, ties, weighted_sum
from tests.support.trained import trained

if TYPE_CHECKING:
    from tests.merge.conftest import Merged, Merger
    from tests.support.models import ModelMaker

# PEFT says so when it saves the whole embedding beside a LoRA on it, and when a tie is in the way: both are wanted here.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings"
)

Whole = dict[str, Matrix]
Make = Callable[..., Path]


def trained_ones(base: Path, make: Make, **settings: Any) -> list[Path]:
    return [
        trained(make(base, f"p{seed}", r=3, strength=0.2, seed=seed, **settings), seed)
        for seed in range(2)
    ]


def of_base(base: Path, names: Sequence[str]) -> Whole:
    stored = tensors(base)
    return {name: stored[name].double().numpy() for name in names}


def moved(base: Whole, parents: Sequence[Whole], weights: Sequence[float]) -> Whole:
    """W₀ + Σ wᵢ(Wᵢ - W₀), a parent that lacks a tensor having the base's."""
    return {
        name: values
        + sum(w * (p.get(name, values) - values) for p, w in zip(parents, weights, strict=True))
        for name, values in base.items()
    }


def check(
    merged: Merged, base: Path, deltas: Deltas, whole: Whole, *, conv1d: bool = False
) -> None:
    """The merged folder holds these deltas and whole tensors, and PEFT loads it as base + deltas with the whole ones."""
    found, others = read_parts(merged.folder)
    assert distance(found, deltas) <= 1e-6
    assert others.keys() == whole.keys()
    for name, values in whole.items():
        assert np.abs(others[name] - values).max() <= 1e-6, name
    said = logits(attach(load(base), merged.folder))
    assert apart(said, logits_of_dense(base, deltas, conv1d=conv1d, whole=whole)) <= 1e-5
    without = logits_of_dense(base, deltas, conv1d=conv1d)
    assert apart(said, without) > 1e-3, "the whole weights are too weak for this to say anything"


def config(merged: Merged) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((merged.folder / "adapter_config.json").read_text())
    return found


def recipe_in(merger: Merger, merged: Merged) -> Mapping[str, Any]:
    (body,) = [
        a.body for a in merger.store.attestations(merged.outcome.digest) if a.type == "provenance"
    ]
    found: Mapping[str, Any] = body["recipe"]
    return found


KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "head, embedding and norms": (
        "llama",
        {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
        {"modules_to_save": ["embed_tokens", "lm_head", "norm"], "bias": "none"},
    ),
    "all biases": (
        "gpt2",
        {"bias": "all", "targets": ("c_attn", "c_fc"), "fan_in_fan_out": True},
        {"modules_to_save": None, "bias": "all"},
    ),
    "biases of LoRA layers": (
        "gpt2",
        {"bias": "lora_only", "targets": ("c_attn",), "fan_in_fan_out": True},
        {"modules_to_save": None, "bias": "lora_only"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_that_adds_up_to_one_needs_no_base_and_any_other_merge_goes_by_differences(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make, kind: str
) -> None:
    model, settings, written = KINDS[kind]
    base, conv1d = getattr(tiny, model)(), model == "gpt2"
    folders = trained_ones(base, make_peft_adapter, **settings)
    parents = [merger.add(folder) for folder in folders]
    deltas, wholes = zip(*map(read_parts, folders), strict=True)
    before = of_base(base, list(wholes[0]))

    alone = merger.of(parents, weights=[0.3, 0.7])
    expected = {name: 0.3 * wholes[0][name] + 0.7 * wholes[1][name] for name in wholes[0]}
    check(alone, base, weighted_sum(deltas, [0.3, 0.7]), expected, conv1d=conv1d)
    assert "base" not in recipe_in(merger, alone)
    assert {key: config(alone)[key] for key in written} == written

    summed = merger.of(parents, weights=[1, 0.5], base=str(base))
    expected = moved(before, wholes, [1, 0.5])
    check(summed, base, weighted_sum(deltas, [1, 0.5]), expected, conv1d=conv1d)
    assert recipe_in(merger, summed)["base"].startswith("sha256:")

    # The paper's TIES counts over the whole task vector: the differences are part of it.
    vectors = [
        {**d, **{name: np.atleast_2d(w[name] - before[name]) for name in w}}
        for d, w in zip(deltas, wholes, strict=True)
    ]
    voted = ties(vectors, [1, 1.2], density=0.3, tolerance=1e-6)
    assert voted.count == 0, "choose other seeds: an element lies at a threshold"
    found = merger.of(parents, "ties", weights=[1, 1.2], density=0.3, base=str(base))
    expected = {n: before[n] + voted.merged[n].reshape(before[n].shape) for n in before}
    check(found, base, {m: voted.merged[m] for m in deltas[0]}, expected, conv1d=conv1d)


def test_what_only_one_parent_trained_is_the_bases_in_the_other(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base = tiny.llama(tied=True)  # whose head is its embedding
    one = trained(make_peft_adapter(base, "one", r=3, modules_to_save=["lm_head"]), 1)
    parents = [merger.add(one), merger.add(merger.adapter(scale=0.2))]
    before = state(merger.store)
    with pytest.raises(UsageError, match=r"lm_head\.weight") as caught:
        merger.of(parents)
    assert caught.value.exit_code == 2
    assert state(merger.store) == before
    unweighted = merger.of(parents, weights=[1, 0])  # one that doesn't count needs none
    assert np.array_equal(
        read_parts(unweighted.folder)[1]["lm_head.weight"], read_parts(one)[1]["lm_head.weight"]
    )

    merged = merger.of(parents, base=str(base))
    (deltas, whole), other = read_parts(one), read_parts(merger.store.view(parents[1].digest))
    shared = {"lm_head.weight": tensors(base)["model.embed_tokens.weight"].double().numpy()}
    check(
        merged, base, weighted_sum([deltas, other[0]], [0.5, 0.5]), moved(shared, [whole, {}], [0.5, 0.5])
    )  # fmt: skip
    assert config(merged)["modules_to_save"] == ["lm_head"]


def test_what_peft_kept_tied_comes_apart_in_a_merge(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base = tiny.llama(tied=True)
    folders = trained_ones(
        base, make_peft_adapter, modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    deltas, wholes = zip(*map(read_parts, folders), strict=True)
    assert set(wholes[0]) == {"lm_head.weight", "model.embed_tokens.weight"}
    merged = merger(folders, weights=[0.3, 0.7])
    expected = {name: 0.3 * wholes[0][name] + 0.7 * wholes[1][name] for name in wholes[0]}
    check(merged, base, weighted_sum(deltas, [0.3, 0.7]), expected)
    model = attach(load(base), merged.folder)
    with model.disable_adapter():
        assert apart(logits(model), logits(load(base))) <= 1e-6, "the base is still under it"


def test_a_bias_is_one_tensor_whether_or_not_its_layer_has_a_lora(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    # PEFT calls it c_attn.base_layer.bias in the one and c_attn.bias in the other.
    base = tiny.gpt2()
    folders = [
        trained(
            make_peft_adapter(
                base, target, r=2, bias="all", targets=(target,), strength=0.2, fan_in_fan_out=True
            ),
            seed,
        )
        for seed, target in enumerate(["c_attn", "c_fc"])
    ]
    merged = merger(folders, weights=[0.4, 0.6])
    deltas, wholes = zip(*map(read_parts, folders), strict=True)
    expected = {name: 0.4 * wholes[0][name] + 0.6 * wholes[1][name] for name in wholes[0]}
    check(merged, base, weighted_sum(deltas, [0.4, 0.6]), expected, conv1d=True)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_a_lora_on_an_embedding_that_peft_saved_with_the_embedding(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make, method: str
) -> None:
    folder = make_peft_adapter(
        tiny_llama, "embedding", targets=("embed_tokens", "q_proj"), r=4, strength=0.2
    )
    other = merger.adapter(modules={**EMBEDDING, **QV}, scale=0.2)
    merged = merger([folder, other], method, weights=[0.5, 0.5], base=str(tiny_llama))
    parents = [read_parts(one)[0] for one in (folder, other)]
    dense = weighted_sum(parents, [0.5, 0.5])
    if method == "ties":
        # N of the trim counts the embedding too, whose differences are all zero.
        zeros = {"embedding": np.zeros((160, 64))}
        dense = ties([{**parents[0], **zeros}, parents[1]], [0.5, 0.5], density=0.2).merged
        del dense["embedding"]
    found, whole = read_parts(merged.folder)
    assert distance(found, dense) <= 1e-6
    assert np.array_equal(
        whole["model.embed_tokens.weight"],
        of_base(tiny_llama, ["model.embed_tokens.weight"])["model.embed_tokens.weight"],
    )
    said = logits(attach(load(tiny_llama), merged.folder))
    assert apart(said, logits_of_dense(tiny_llama, dense)) <= 1e-5


def test_a_head_by_lora_in_one_and_whole_in_the_other_is_a_sum_or_refused(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make
) -> None:
    low = merger.adapter(modules={**HEAD, **QV}, scale=0.2)
    whole = trained(make_peft_adapter(tiny_llama, "whole", r=3, modules_to_save=["lm_head"]), 1)
    parents = [merger.add(low), merger.add(whole)]
    merged = merger.of(parents, weights=[1, 0.5], base=str(tiny_llama))
    before = of_base(tiny_llama, ["lm_head.weight"])
    deltas = [read_parts(low)[0], read_parts(whole)[0]]
    check(
        merged,
        tiny_llama,
        weighted_sum(deltas, [1, 0.5]),
        moved(before, [{}, read_parts(whole)[1]], [1, 0.5]),
    )
    with pytest.raises(UnsupportedError, match=r"(?s)lm_head\.weight.*--saved-from n\d"):
        merger.of(parents, "ties", base=str(tiny_llama))
    kept = merger.of(parents, "ties", saved_from=parents[0])
    assert read_parts(kept.folder)[1] == {}


# Heads that the base hasn't got


def classifier(base: Path, folder: Path, seed: int, labels: int) -> Path:
    """A sequence classifier trained by PEFT: its head `score` is new, and random."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = sequence_model(base, labels)
        made = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["q_proj", "v_proj"])
        )
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        made.save_pretrained(str(folder))
    return folder


def sequence_model(base: Path, labels: int) -> Any:
    from transformers import AutoModelForSequenceClassification

    automatic: Any = AutoModelForSequenceClassification
    return automatic.from_pretrained(base, num_labels=labels, dtype=torch.float32).eval()


def test_heads_the_base_lacks_are_averaged_or_taken_from_one(
    merger: Merger, tiny_llama: Path, tmp_path: Path
) -> None:
    folders = [classifier(tiny_llama, tmp_path / f"c{seed}", seed, 3) for seed in range(2)]
    parents = [merger.add(folder) for folder in folders]
    merged = merger.of(parents, base=str(tiny_llama))
    deltas, whole = read_parts(merged.folder)
    heads = [read_parts(folder)[1]["score.weight"] for folder in folders]
    assert np.abs(whole["score.weight"] - (heads[0] + heads[1]) / 2).max() <= 1e-7
    assert config(merged)["modules_to_save"] == ["score"]
    assert config(merged)["task_type"] == "SEQ_CLS"

    tokens = torch.arange(3, 15)[None]
    plain = sequence_model(tiny_llama, 3)
    with torch.no_grad():
        plain.score.weight.copy_(torch.from_numpy(whole["score.weight"]))
        for module, delta in deltas.items():
            plain.get_submodule(module).weight.add_(torch.from_numpy(delta).float())
        expected = plain(input_ids=tokens).logits
        found = attach(sequence_model(tiny_llama, 3), merged.folder)(input_ids=tokens).logits
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5

    for method, weights in (("linear", [1.0, 1.0]), ("ties", None)):
        with pytest.raises(UsageError, match=r"(?s)score\.weight.*no such weights.*--saved-from"):
            merger.of(parents, method, weights=weights, base=str(tiny_llama))


def test_heads_of_different_shapes_are_refused_unless_one_is_named(
    merger: Merger, tiny_llama: Path, tmp_path: Path
) -> None:
    folders = [classifier(tiny_llama, tmp_path / f"c{n}", n, n) for n in (2, 5)]
    parents = [merger.add(folder) for folder in folders]
    before = state(merger.store)
    with pytest.raises(IncompatibleError, match=r"score\.weight.*\[2, 64\].*\[5, 64\]") as caught:
        merger.of(parents)
    assert caught.value.hint.endswith(f"--saved-from {parents[0].label}")
    assert state(merger.store) == before
    for method in ("linear", "ties"):
        kept = merger.of(parents, method, saved_from=parents[1])
        whole = read_parts(kept.folder)[1]
        assert np.array_equal(whole["score.weight"], read_parts(folders[1])[1]["score.weight"])
        assert recipe_in(merger, kept)["saved_from"] == parents[1].digest


def test_a_resized_embedding_does_not_fit_the_base_by_itself(
    merger: Merger, tiny_llama: Path
) -> None:
    grown = {"base_model.model.model.embed_tokens.weight": torch.ones(170, 64)}
    folder = merger.adapter(modules_to_save=["embed_tokens"], extra=grown)
    with pytest.raises(IncompatibleError, match=r"(?s)\[170, 64\].*\[160, 64\].*--saved-from"):
        merger([folder], weights=[0.5], base=str(tiny_llama))


# The same again


def test_a_merge_on_a_base_is_rebuilt_on_that_base_only(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base, other = tiny.llama(), tiny.llama(seed=1)
    folders = trained_ones(base, make_peft_adapter, modules_to_save=["lm_head"])
    parents = [merger.add(folder) for folder in folders]
    merged = merger.of(parents, "slerp", rank="auto", base=str(base))

    def again(on: Path) -> Any:
        made = merger.store.resolve(str(merged.outcome.name))
        return rebuild(
            merger.store, made, base=str(on), progress=silent, resources=DEFAULTS, warn=print
        )

    assert again(base).same
    elsewhere = again(other)
    assert not elsewhere.same
    assert "another base" in elsewhere.why


def test_a_base_that_is_named_though_not_needed_changes_nothing_and_must_fit(
    merger: Merger, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base, other = tiny.llama(), tiny.llama(seed=1)
    folders = trained_ones(base, make_peft_adapter, modules_to_save=["lm_head"])
    parents = [merger.add(folder, base=str(base)) for folder in folders]
    assert merger.of(parents).content == merger.of(parents, base=str(base)).content
    with pytest.raises(IncompatibleError, match="fingerprint"):
        merger.of(parents, base=str(other))
    allowed = merger.of(parents, weights=[1, 1], base=str(other), allow_mismatch=True)
    (body,) = [
        a.body for a in merger.store.attestations(allowed.outcome.digest) if a.type == "provenance"
    ]
    assert "fingerprint" in " ".join(body["allowed_mismatch"])


def test_a_step_of_low_rank_leaves_whole_weights_whole(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make
) -> None:
    folders = trained_ones(tiny_llama, make_peft_adapter, modules_to_save=["lm_head"])
    parents = [merger.add(folder) for folder in folders]
    first = make_step("linear", [p.digest for p in parents], weights=[1, 1], name="both", rank=2)
    last = make_step("linear", [StepInput(step="both")], weights=[0.5], name="half")
    merged = merger.run(parents, recipe_of([first, last], rank="full"), base=str(tiny_llama))
    before = of_base(tiny_llama, ["lm_head.weight"])
    wholes = [read_parts(folder)[1] for folder in folders]
    found, whole = read_parts(merged.folder)
    expected = moved(before, wholes, [0.5, 0.5])["lm_head.weight"]
    assert np.abs(whole["lm_head.weight"] - expected).max() <= 1e-6
    assert max(np.linalg.matrix_rank(delta, tol=1e-5) for delta in found.values()) == 2


# Rounding and memory


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_whole_weights_are_rounded_once(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Make, dtype: str
) -> None:
    folders = trained_ones(tiny_llama, make_peft_adapter, modules_to_save=["lm_head"])
    name = "base_model.model.lm_head.weight"
    parents = [load_file(folder / "adapter_model.safetensors")[name] for folder in folders]
    merged = merger(folders, weights=[0.25, 0.75], dtype=dtype)
    found = load_file(merged.folder / "adapter_model.safetensors")
    expected = (0.25 * parents[0] + 0.75 * parents[1]).to(getattr(torch, dtype))
    wrong = found[name] != expected
    assert int(wrong.sum()) <= 3, "only where float32 itself rounds to the other side"
    assert {tensor.dtype for tensor in found.values()} == {getattr(torch, dtype)}
    with pytest.raises(AdapterHubError, match="float16"):
        merger(folders, weights=[1e6, 1 - 1e6], dtype="float16")


def test_the_dtype_is_that_of_whole_weights_too(merger: Merger) -> None:
    head = {"base_model.model.lm_head.weight": torch.rand(160, 64)}
    folder = merger.adapter(dtype="bfloat16", modules_to_save=["lm_head"], extra=head)
    merged = merger([folder], dtype=None)
    found = load_file(merged.folder / "adapter_model.safetensors")
    assert torch.equal(
        found["base_model.model.lm_head.weight"], head["base_model.model.lm_head.weight"]
    )


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "sce"])
def test_whole_weights_are_never_held_whole(
    merger: Merger,
    tiny_llama: Path,
    make_peft_adapter: Make,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    saved = ["lm_head", "embed_tokens"]
    folders = trained_ones(tiny_llama, make_peft_adapter, modules_to_save=saved)
    parents = [merger.add(folder) for folder in folders]
    merged = merger.of(parents, method, base=str(tiny_llama))

    asked: list[int] = []
    floats, array = TensorFile.floats, TensorFile.array

    def watched(self: TensorFile, name: str, first: int, count: int) -> Any:
        asked.append(count)
        return floats(self, name, first, count)

    def factors_only(self: TensorFile, name: str) -> Any:
        assert "lora_" in name, f"{name} was read whole"
        return array(self, name)

    monkeypatch.setattr(TensorFile, "floats", watched)
    monkeypatch.setattr(TensorFile, "array", factors_only)
    monkeypatch.setattr(rows, "TILE_VALUES", 64 * 7)
    made = merger.of(parents, method, base=str(tiny_llama))
    assert 0 < max(asked) <= 64 * 7
    for one, other in zip(read_parts(merged.folder), read_parts(made.folder), strict=True):
        assert one.keys() == other.keys()
        assert all(np.abs(one[name] - other[name]).max() <= 1e-6 for name in one)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({f"{Q}.bias": torch.ones(64), f"{Q}.base_layer.bias": torch.zeros(64)}, "there twice"),
        ({f"{Q}.bias": torch.ones(64, dtype=torch.int32)}, "I32"),
        ({f"{Q}.bias": torch.ones(0)}, "empty"),  # as ZeRO-3 saves what wasn't gathered
    ],
)
def test_whole_tensors_that_mean_nothing_are_refused(
    merger: Merger, extra: dict[str, torch.Tensor], why: str
) -> None:
    folders = [merger.adapter(seed=seed, bias="all", extra=extra) for seed in range(2)]
    with pytest.raises(UnsupportedError, match=rf"q_proj\.bias is {why}"):
        merger(folders)
