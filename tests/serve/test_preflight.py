"""What vLLM would refuse half a minute later, or serve wrongly and say nothing, is refused by name before it starts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapterhub.base import read_base
from adapterhub.chat_template import digest_of_template, template_in
from adapterhub.errors import IncompatibleError, UnsupportedError
from adapterhub.serve.plan import make_plan
from adapterhub.serve.preflight import check, templates_differ
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.adapters import EMBEDDING, QV, AdapterMaker, llama_modules, random_factors
from tests.support.chat import CHATML
from tests.support.models import ModelMaker

Add = Callable[..., str]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True, "extra": {f"{Q}.lora_magnitude_vector": torch.ones(64)}}, "DoRA"),
        ({"extra": {f"{Q}.lora_magnitude_vector": torch.ones(64)}}, "magnitudes"),
        ({"bias": "lora_only", "extra": {f"{Q}.bias": torch.ones(64)}}, "trained biases"),
        ({"bias": "all"}, 'bias: "all"'),
        ({"bias": None}, "bias: null"),
        (
            {
                "modules_to_save": ["lm_head"],
                "extra": {"base_model.model.lm_head.weight": torch.ones(160, 64)},
            },
            "whole trained modules (lm_head)",
        ),
        ({"modules_to_save": ["embed_tokens"]}, "whole trained modules (embed_tokens)"),
        ({"init_lora_weights": "pissa"}, "pissa initialisation"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank": 513}, "rank 513; vLLM serves 512 at most"),
        ({"lora_alpha": None}, "leaves out lora_alpha"),
        ({"target_modules": None}, "leaves out target_modules"),
    ],
)
def test_what_vllm_cannot_honour_is_refused_by_name(
    store: Store, add: Add, fields: dict[str, Any], said: str
) -> None:
    add("tone", **fields)
    with pytest.raises(UnsupportedError, match="tone can't be served") as caught:
        make_plan(store, ["tone"])
    assert said in caught.value.why
    assert caught.value.exit_code == 1


def test_another_kind_of_adapter_is_refused_by_its_kind(
    store: Store, base: Path, make_adapter: Callable[..., Path]
) -> None:
    folder = make_adapter(
        "ia3", peft_type="IA3", factors={}, extra={f"{Q}.ia3_l": torch.ones(64, 1)}
    )
    store.add_folder(folder, name="scaled")
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["scaled"])
    assert "Its kind is IA3" in caught.value.why


def test_a_trained_classification_head_is_no_problem(store: Store, add: Add) -> None:
    head = {"base_model.model.score.weight": torch.ones(3, 64)}
    add("sentiment", modules_to_save=["score"], extra=head)
    assert make_plan(store, ["sentiment"]).adapters[0].label == "sentiment"
    add("unnamed", extra=head, seed=1)  # vLLM takes the head only where modules_to_save names it
    with pytest.raises(UnsupportedError):
        make_plan(store, ["unnamed"])


def test_all_problems_of_all_adapters_come_at_once_and_a_wrong_base_decides_the_exit_code(
    store: Store, add: Add
) -> None:
    add("fine")
    add("both", use_dora=True, bias="all", seed=1)
    add("deep", factors=random_factors({"model.layers.9.self_attn.q_proj": (64, 64)}))
    with pytest.raises(IncompatibleError, match="2 of 3 adapters can't be served") as caught:
        make_plan(store, ["fine", "both", "deep"])
    both, deep = caught.value.why.split("\n")
    assert both.startswith("both:")
    assert "DoRA" in both
    assert 'bias: "all"' in both
    assert deep.strip().startswith("deep: it doesn't fit the base org/tiny: 1 of 1 modules")
    assert caught.value.exit_code == 5


def test_the_hint_serves_what_can_be_served(store: Store, add: Add) -> None:
    add("fine")
    add("dora", use_dora=True, seed=1)
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["fine", "dora"])
    assert caught.value.hint.endswith("adapterhub serve fine")


def test_allow_mismatch_does_not_allow_what_vllm_cannot_honour(store: Store, add: Add) -> None:
    add("dora", use_dora=True)
    with pytest.raises(UnsupportedError):
        make_plan(store, ["dora"], allow_mismatch=True)


@pytest.mark.parametrize("fields", [{"factors": None}, {"alpha": 0}])
def test_an_adapter_that_changes_nothing_is_served_with_a_remark(
    store: Store, add: Add, fields: dict[str, Any]
) -> None:
    if "factors" in fields:
        silent = {name: (np.zeros_like(b), a) for name, (b, a) in random_factors(QV).items()}
        fields = {"factors": silent}
    add("noop", **fields)
    (adapter,) = make_plan(store, ["noop"]).adapters
    assert any("changes nothing" in remark for remark in adapter.remarks)


def test_an_adapter_with_an_effect_and_a_known_base_needs_no_remark(
    store: Store, base: Path, make_adapter: Callable[..., Path]
) -> None:
    store.add_folder(make_adapter("tone"), name="tone", base=str(base))
    assert make_plan(store, ["tone"]).adapters[0].remarks == ()


# What to type instead


@pytest.mark.parametrize(
    ("fields", "commands"),
    [
        (
            {"use_dora": True, "extra": {f"{m}.lora_magnitude_vector": torch.ones(o) for m, (o, _) in QV.items()}},
            ["export", "merge"],
        ),
        ({"bias": "lora_only", "extra": {f"{Q}.bias": torch.ones(64)}}, []),
        ({"modules_to_save": ["lm_head"], "extra": {"base_model.model.lm_head.weight": torch.ones(160, 64)}}, ["export"]),
        ({"rank": 520}, ["merge"]),
        ({"bias": "all"}, ["merge"]),
        ({"lora_alpha": None}, ["merge"]),
        ({"modules_to_save": ["embed_tokens"]}, ["merge"]),
        ({"init_lora_weights": "pissa"}, []),
        ({"alora_invocation_tokens": [1, 2]}, []),
    ],
    ids=["dora", "biases", "head", "rank", "bias: all", "no alpha", "nothing saved", "pissa", "alora"],
)  # fmt: skip
def test_the_commands_offered_make_something_servable_of_it_as_they_are_typed(
    store: Store,
    add: Add,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    commands: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "extra" in fields:
        named = fields["extra"].items()
        fields["extra"] = {
            key if key.startswith("base_model") else f"base_model.model.{key}": tensor
            for key, tensor in named
        }
    add("support/tone", **fields)
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["support/tone"])
    offered = re.findall(r"adapterhub (?!show)(.*?)(?=   or | && |\n|$)", caught.value.hint)
    assert [line.split()[0] for line in offered] == commands
    for line in offered:
        said = call(*shlex.split(line), *(["--no-verify"] if line.startswith("export") else []))
        assert said.code == 0, said.err
    if "export" in commands:
        assert "vllm serve ./tone-model" in caught.value.hint
        assert read_base(tmp_path / "tone-model").tensors.keys() == read_base(base).tensors.keys()
    if "merge" in commands:
        (name,) = (str(name) for name in store.refs.names() if str(name) != "support/tone")
        assert make_plan(store, [name]).adapters[0].rank <= 512


def test_several_adapters_each_get_their_own_line(store: Store, add: Add) -> None:
    add("tone", bias="all")
    add("terms", rank=513)
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["tone", "terms"])
    tone, terms = caught.value.hint.split("\n")
    assert tone.startswith("tone: write its configuration anew")
    assert terms.strip().startswith("terms: cut it to a rank:  adapterhub merge terms --rank 512")


# Layers that vLLM doesn't adapt


def test_an_adapter_of_the_embedding_is_refused_where_vllm_takes_none_there(
    store: Store, add: Add, base: Path, tmp_path: Path
) -> None:
    add("words", modules={**QV, **EMBEDDING})
    mistral = tmp_path / "mistral"
    mistral.mkdir()
    for file in base.iterdir():
        (mistral / file.name).symlink_to(file)
    config = json.loads((base / "config.json").read_text())
    (mistral / "config.json").unlink()
    (mistral / "config.json").write_text(
        json.dumps({**config, "architectures": ["MistralForCausalLM"]})
    )
    assert make_plan(store, ["words"]).adapters
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["words"], base=str(mistral), allow_mismatch=True)
    assert "embed_tokens, and vLLM takes no adapter there" in caught.value.why
    assert "adapterhub export words" in caught.value.hint


def test_on_a_model_that_vllm_takes_no_adapters_on_baking_is_offered(
    store: Store, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    modules = {"transformer.h.0.attn.c_attn": (192, 64)}
    store.add_folder(make_adapter("tone", modules=modules, base=None), name="tone")
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["tone"], base=str(tiny.gpt2()))
    assert "base is a GPT2LMHeadModel, on which vLLM takes no adapters" in caught.value.why
    assert caught.value.hint.startswith("Bake it into a model of its own:  adapterhub export tone")


def test_layers_that_the_arguments_leave_out_would_be_dropped_in_silence_and_are_refused(
    store: Store, add: Add
) -> None:
    add("tone", modules=llama_modules("q_proj", "o_proj"))
    narrow, packed = (
        ["--lora-target-modules", "q_proj"],
        ["--lora-target-modules", "k_proj", "o_proj"],
    )
    with pytest.raises(UnsupportedError) as caught:
        make_plan(store, ["tone"], extra=narrow)
    assert "changes o_proj, which --lora-target-modules leaves out" in caught.value.why
    assert caught.value.hint.endswith("-- --lora-target-modules q_proj o_proj")
    assert make_plan(store, ["tone"], extra=packed).adapters  # q and k are one layer of vLLM


# Templates


@pytest.fixture
def chatty(store: Store, base: Path, add: Add) -> Store:
    """Three adapters: trained with the base's template, with ChatML, and nobody knows."""
    for seed, (name, template) in enumerate({"own": template_in(base), "chatml": CHATML}.items()):
        digest = digest_of_template(template)
        store.attest(add(name, seed=seed), "template", {"digest": digest, "event": "trained"})
    add("silent", seed=2)
    return store


def test_another_template_than_it_was_trained_with_is_remarked_upon_with_both_digests(
    chatty: Store, base: Path, tmp_path: Path
) -> None:
    def remarks(name: str, *extra: str) -> str:
        model = chatty.bases.open(str(base), repo="org/tiny")
        return " ".join(check(chatty, chatty.resolve(name), name, model, extra).remarks)

    own, chatml = (str(digest_of_template(t))[7:19] for t in (template_in(base), CHATML))
    assert "template" not in remarks("own") + remarks("silent")
    assert f"chat template {chatml}, and here it will be asked in {own}" in remarks("chatml")
    given = tmp_path / "given.jinja"
    given.write_text(CHATML)
    for argument in (f"--chat-template={given}", f"--chat-template={CHATML}"):
        assert "template" not in remarks("chatml", argument) + remarks("silent", argument)
        assert chatml in remarks("own", argument)


def test_adapters_of_different_templates_are_told_that_a_server_has_one(chatty: Store) -> None:
    adapters = [(name, chatty.resolve(name).digest) for name in ("own", "chatml", "silent")]
    told = templates_differ(chatty, adapters)
    assert told
    assert "2 chat templates" in told
    assert "chatml" in told
    assert templates_differ(chatty, adapters[1:]) is None


def test_a_template_that_the_adapter_brought_is_named_as_the_file_to_serve_with(
    store: Store, base: Path, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("tone")
    (folder / "chat_template.jinja").write_text(CHATML)
    digest = store.add_folder(folder, name="tone").digest
    store.attest(digest, "template", {"digest": digest_of_template(CHATML), "event": "trained"})
    (adapter,) = make_plan(store, ["tone"]).adapters
    (told,) = (words for words in adapter.remarks if "--chat-template" in words)
    named = Path(told.rpartition(" ")[2])
    assert named.read_text() == CHATML
    again = make_plan(store, ["tone"], extra=["--chat-template", str(named)])
    assert "template" not in " ".join(again.adapters[0].remarks)


# A base that has it already


def test_on_a_model_it_was_exported_into_it_is_said_to_be_there_already(
    store: Store, add: Add, base: Path, tmp_path: Path
) -> None:
    add("tone")
    add("other", seed=1)
    baked = tmp_path / "baked"
    assert call("export", "tone", "--base", base, "-o", baked, "--no-verify").code == 0
    plan = make_plan(store, ["tone", "other"], base=str(baked), allow_mismatch=True)
    tone, other = (" ".join((*one.remarks, *one.overridden)) for one in plan.adapters)
    assert "exported with this adapter in its weights" in tone
    assert "exported with this adapter" not in other
