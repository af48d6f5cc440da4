"""Whole trained tensors take their place in the exported model: it says what PEFT says with the adapter attached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.errors import IncompatibleError, UnsupportedError, UsageError
from tests.support.adapters import EMBEDDING, HEAD, HIDDEN, QV, VOCABULARY
from tests.support.attached import apart, attach, load, logits, tensors
from tests.support.dense import read_parts
from tests.support.trained import trained

if TYPE_CHECKING:
    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

Make = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings"
)
E_NAME, H_NAME = "model.embed_tokens.weight", "lm_head.weight"

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "head": ("llama", {"modules_to_save": ["lm_head"]}),
    "embedding": ("llama", {"modules_to_save": ["embed_tokens"]}),
    "head, embedding and norms": ("llama", {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "a whole linear beside the pairs": ("llama", {"modules_to_save": ["down_proj"]}),
    "kept tied": ("llama", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "LoRA on the embedding": ("llama", {"targets": ("q_proj", "embed_tokens")}),
    "LoRA on the embedding, the head whole": (
        "llama",
        {"targets": ("q_proj", "embed_tokens"), "modules_to_save": ["lm_head"]},
    ),
    "all biases": ("gpt2", {"bias": "all", "targets": ("c_attn", "c_fc"), "fan_in_fan_out": True}),
    "biases of LoRA layers": (
        "gpt2",
        {"bias": "lora_only", "targets": ("c_attn",), "fan_in_fan_out": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_model_says_what_the_attached_one_says(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Make, kind: str, tied: bool
) -> None:
    model, settings = KINDS[kind]
    if model == "gpt2" and not tied:
        pytest.skip("GPT-2 ties its head always")
    if kind == "kept tied" and not tied:
        pytest.skip("nothing is tied")
    base = tiny.gpt2() if model == "gpt2" else tiny.llama(tied=tied)
    # What PEFT only saves beside a LoRA on the embedding is the base's.
    saved_only = ("embed_tokens",) if "LoRA on" in kind else ()
    adapter = trained(
        make_peft_adapter(base, "a", r=3, strength=0.2, **settings), 1, but=saved_only
    )
    if kind == "kept tied":
        both_alike(adapter)
    done = exporter([adapter], base)
    wanted = logits(attach(load(base), adapter))
    assert apart(logits(load(done.folder)), wanted) <= 1e-5
    assert apart(logits(load(base)), wanted) > 1e-3, "too weak for this to say anything"


def both_alike(adapter: Path) -> None:
    """The two that PEFT kept tied, moved alike."""
    path = adapter / "adapter_model.safetensors"
    stored = load_file(path)
    names = [name for name in stored if name.endswith((E_NAME, H_NAME)) and "lora" not in name]
    for name in names:
        stored[name] = stored[names[0]].clone()
    save_file(stored, path, metadata={"format": "pt"})


def test_what_peft_kept_tied_stays_tied(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base = tiny.llama(tied=True)
    settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = trained(make_peft_adapter(base, "a", r=3, **settings), 1)
    both_alike(adapter)
    done = exporter([adapter], base)
    assert not done.untied
    assert H_NAME not in tensors(done.folder)
    assert tensors(done.folder).keys() == tensors(base).keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_values_are_rounded_once_to_the_bases_dtype(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, dtype: str
) -> None:
    head = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(3))
    adapter = make_adapter(
        modules=QV, modules_to_save=["lm_head"], extra={f"base_model.model.{H_NAME}": head}
    )
    found = tensors(exporter([adapter], tiny.llama(dtype=dtype)).folder)[H_NAME]
    assert torch.equal(found, head.to(getattr(torch, dtype)))


def test_a_sum_of_whole_weights_is_that_of_the_merge(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base = tiny.llama()
    folders = [
        trained(make_peft_adapter(base, f"p{seed}", r=3, seed=seed, modules_to_save=["lm_head"]), seed)
        for seed in range(2)
    ]  # fmt: skip
    heads = [tensors(folder)[f"base_model.model.{H_NAME}"].double() for folder in folders]
    before = tensors(base)[H_NAME].double()
    for weights in ([0.3, 0.7], [1.0, 0.5]):
        found = tensors(exporter(folders, base, weights=weights).folder)[H_NAME].double()
        moved = sum(w * (head - before) for w, head in zip(weights, heads, strict=True))
        assert float((found - before - moved).abs().max()) <= 1e-6


def test_of_heads_of_different_shape_one_can_be_kept(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    def parent(name: str, rows: int, seed: int) -> Path:
        extra = {f"base_model.model.{one}": torch.full((rows, HIDDEN), 0.1) for one in (E_NAME, H_NAME)}  # fmt: skip
        return make_adapter(name, modules=QV, seed=seed, extra=extra, modules_to_save=["lm_head", "embed_tokens"])  # fmt: skip

    folders = [exporter.add(parent("a", VOCABULARY, 0)), exporter.add(parent("b", VOCABULARY + 8, 1))]  # fmt: skip
    with pytest.raises(IncompatibleError, match="saved-from"):
        exporter(folders, tiny.llama())
    done = exporter(folders, tiny.llama(), saved_from=folders[1].digest)
    assert tensors(done.folder)[H_NAME].shape == (VOCABULARY + 8, HIDDEN)


# A vocabulary that has grown


def grown(base: Path, folder: Path, rows: int, **settings: Any) -> Path:
    """An adapter that PEFT trained on the base with `rows` new words, random in its embedding and its head."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.resize_token_embeddings(VOCABULARY + rows)
        with torch.no_grad():
            for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:  # fmt: skip
                weight[VOCABULARY:].normal_(std=0.3)
        wrapped = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **settings})
        )
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name or "lora_embedding_A" in name:
                    parameter.normal_(std=0.2)
        wrapped.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"target_modules": ["embed_tokens"]}],
    ids=["saved because it grew", "trained", "LoRA on the embedding"],
)
def test_new_words_come_with_the_model_and_its_configuration_knows_them(
    exporter: Exporter, tiny: ModelMaker, tmp_path: Path, settings: dict[str, Any], tied: bool
) -> None:
    base = tiny.llama(tied=tied)
    adapter = grown(base, tmp_path / "grown", 7, **settings)
    if "target_modules" in settings and not tied:  # PEFT leaves the head's new words behind
        with pytest.raises(IncompatibleError, match=r"embed_tokens.weight 167, lm_head.weight 160"):
            exporter([adapter], base)
        return
    done = exporter([adapter], base)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["vocab_size"] == VOCABULARY + 7
    model = load(base)
    model.resize_token_embeddings(VOCABULARY + 7)
    wanted = attach(model, adapter)
    tokens = torch.arange(VOCABULARY - 3, VOCABULARY + 7)[None]
    with torch.no_grad():
        said = load(done.folder)(input_ids=tokens).logits
        assert torch.allclose(said, wanted(input_ids=tokens).logits, atol=1e-4)


def test_new_words_on_one_side_only_are_refused(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    extra = {f"base_model.model.{E_NAME}": torch.ones(VOCABULARY + 8, HIDDEN)}
    adapter = make_adapter(modules=QV, modules_to_save=["embed_tokens"], extra=extra)
    with pytest.raises(IncompatibleError, match=rf"{VOCABULARY + 8}.*{VOCABULARY}"):
        exporter([adapter], tiny.llama(tied=False))


def test_the_adapters_tokenizer_comes_along(
    exporter: Exporter, tiny: ModelMaker, tmp_path: Path
) -> None:
    base = tiny.llama()
    adapter = grown(base, tmp_path / "grown", 7)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter / name)
    (adapter / "chat_template.jinja").write_text("{{ 'mine' }}")
    done = exporter([adapter], base)
    assert (done.folder / "chat_template.jinja").read_text() == "{{ 'mine' }}"


# What the base has no place for


@pytest.mark.parametrize(
    ("extra", "error", "named"),
    [
        ({"base_model.model.score.weight": torch.ones(3, HIDDEN)}, UnsupportedError, "score.weight"),
        ({f"base_model.model.{H_NAME}": torch.ones(VOCABULARY, 8)}, IncompatibleError, r"\[160, 8\]"),
        ({"base_model.model.model.norm.weight": torch.ones(8)}, IncompatibleError, "norm"),
    ],
)  # fmt: skip
def test_what_the_base_has_no_place_for_is_refused_by_name(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    extra: dict[str, torch.Tensor],
    error: type[Exception],
    named: str,
) -> None:
    adapter = make_adapter(modules=QV, extra=extra, modules_to_save=["score", "lm_head", "norm"])
    into = tmp_path / "out" / "model"
    with pytest.raises(error, match=named):
        exporter([adapter], tiny_llama, into=into)
    assert not into.exists()


def test_a_weight_needs_the_bases_values_and_says_so(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    """Twice a head that has grown: there is no base to take the difference from."""
    extra = {f"base_model.model.{one}": torch.ones(VOCABULARY + 8, HIDDEN) for one in (E_NAME, H_NAME)}  # fmt: skip
    adapter = make_adapter(modules=QV, modules_to_save=["embed_tokens", "lm_head"], extra=extra)
    with pytest.raises((IncompatibleError, UsageError)):
        exporter([adapter], tiny.llama(), weights=[2.0])


def test_pairs_and_whole_weights_of_one_module_are_both_there(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    head = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(3))
    adapter = make_adapter(
        modules={**HEAD, **EMBEDDING},
        scale=0.2,
        modules_to_save=None,
        extra={"base_model.model.lm_head.base_layer.weight": head},
    )
    found = tensors(exporter([adapter], tiny.llama()).folder)[H_NAME].double().numpy()
    wanted = head.double().numpy() + read_parts(adapter)[0]["lm_head"]
    assert np.abs(found - wanted).max() <= 1e-6


# Names, ties and shapes that are not what they seem


def test_one_weight_under_two_names_is_refused(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    """As when one was trained as AutoModel and the other as AutoModelForCausalLM."""
    names = ("base_model.model.model.norm.weight", "base_model.model.norm.weight")
    folders = [
        make_adapter(f"a{n}", modules=QV, seed=n, modules_to_save=["norm"], extra={name: torch.ones(HIDDEN)})
        for n, name in enumerate(names)
    ]  # fmt: skip
    with pytest.raises(IncompatibleError, match="name the same weight differently"):
        exporter(folders, tiny.llama(), weights=[0.5, 0.5])


def test_a_tied_matrix_saved_as_the_heads_is_the_embeddings_too(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Make
) -> None:
    base = tiny.llama(tied=True)
    adapter = make_peft_adapter(base, "a", r=3, strength=0.2, targets=("q_proj", "lm_head"))
    path = adapter / "adapter_model.safetensors"
    stored = load_file(path)
    matrix = tensors(base)[E_NAME].clone()
    matrix[150:] = torch.randn(10, HIDDEN, generator=torch.Generator().manual_seed(1))
    stored["base_model.model.lm_head.base_layer.weight"] = matrix
    save_file(stored, path, metadata={"format": "pt"})
    done = exporter([adapter], base)
    assert done.untied
    assert torch.equal(tensors(done.folder)[E_NAME], matrix)
    tokens = torch.arange(145, 160)[None]
    with torch.no_grad():
        said = load(done.folder)(input_ids=tokens).logits
        assert torch.allclose(said, attach(load(base), adapter)(input_ids=tokens).logits, atol=1e-4)


def test_modules_to_save_means_whatever_ends_so(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    """PEFT asks for no more: `tokens` is a copy of embed_tokens, and the tied head keeps the base's."""
    values = torch.randn(VOCABULARY, HIDDEN, generator=torch.Generator().manual_seed(3))
    extra = {f"base_model.model.{E_NAME}": values}
    base = tiny.llama(tied=True)
    done = exporter([make_adapter(modules=QV, modules_to_save=["tokens"], extra=extra)], base)
    found = tensors(done.folder)
    assert done.untied
    assert torch.equal(found[E_NAME], values)
    assert torch.equal(found[H_NAME], tensors(base)[E_NAME])


def test_a_pair_for_another_vocabulary_than_the_one_that_is_kept_is_refused(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    extra = {f"base_model.model.{one}": torch.ones(VOCABULARY + 8, HIDDEN) for one in (E_NAME, H_NAME)}  # fmt: skip
    grown_one = exporter.add(make_adapter("a", modules=QV, modules_to_save=["lm_head", "embed_tokens"], extra=extra))  # fmt: skip
    other = exporter.add(make_adapter("b", modules={**HEAD, **QV}, seed=1))
    with pytest.raises(IncompatibleError, match=r"(?s)lm_head.*168"):
        exporter([grown_one, other], tiny.llama(), saved_from=grown_one.digest)


def test_dora_beside_a_whole_weight_of_the_same_module_is_refused(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Make, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama()
    dora = exporter.add(make_peft_adapter(base, "d", r=3, use_dora=True, targets=("down_proj",)))
    name = "base_model.model.model.layers.0.mlp.down_proj.weight"
    shape = tensors(base)[name.removeprefix("base_model.model.")].shape
    whole = exporter.add(make_adapter("w", modules=QV, modules_to_save=["down_proj"], extra={name: torch.ones(shape)}))  # fmt: skip
    with pytest.raises(UnsupportedError, match=r"DoRA adapter of .*layers\.0\.mlp\.down_proj"):
        exporter([dora, whole], base, weights=[1.0, 1.0])


@pytest.mark.parametrize("modules", [HEAD, EMBEDDING])
def test_a_tied_base_whose_embedding_cannot_be_told_is_left_alone(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    modules: dict[str, tuple[int, int]],
) -> None:
    """Its file holds only the head, which transformers ties to the embedding while it loads."""
    base = tmp_path / "base"
    shutil.copytree(tiny.llama(tied=True), base)
    stored = load_file(base / "model.safetensors")
    stored[H_NAME] = stored.pop(E_NAME)
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    assert apart(logits(load(base)), logits(load(tiny.llama(tied=True)))) == 0
    with pytest.raises((UnsupportedError, IncompatibleError)):
        exporter([make_adapter("a", modules=dict(modules))], base)
    assert exporter([make_adapter("b", modules=QV)], base).tensors_changed


def test_weights_that_cancel_within_one_adapter_are_verified(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    one = exporter.add(make_adapter(modules=QV, scale=3.0))
    done = exporter([one, one], tiny_llama, weights=[100.0, -99.0])
    assert done.verified["weights"]["deltas"] == "from the merge"


@pytest.mark.parametrize("rows", [7, -20])
def test_an_index_tells_the_size_of_a_grown_vocabulary(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, rows: int
) -> None:
    size = VOCABULARY + rows
    extra = {f"base_model.model.{one}": torch.full((size, HIDDEN), 0.1) for one in (E_NAME, H_NAME)}
    adapter = make_adapter(modules=QV, modules_to_save=["embed_tokens", "lm_head"], extra=extra)
    done = exporter([adapter], tiny.llama(sharded=True), verify="sized")
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())["metadata"]
    found = tensors(done.folder).values()
    assert index["total_size"] == sum(one.numel() * one.element_size() for one in found)
    assert index.get("total_parameters", 0) in (0, sum(one.numel() for one in found))
    assert "exported" in done.verified["logits"], done.verified["logits"]
