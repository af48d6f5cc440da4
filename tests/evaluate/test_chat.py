"""A talk gives the answers that transformers itself gives with the adapter attached, and leaves the base as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub.data import stop_token_ids, template_digest
from adapterhub.errors import IncompatibleError, UnsupportedError, UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.chat import Settings, Talk
from adapterhub.store import Store
from tests.support.chat import CHATML, chat_base, chat_tokenizer
from tests.support.models import ModelMaker, peft_adapter

Add = Callable[..., str]
TURNS = [{"role": "user", "content": "Which colour?"}]
OTHER_TEMPLATE = CHATML.replace("assistant\n", "assistant:\n")


def theirs(base: Path, adapter: Path | None, turns: list[dict[str, str]], count: int) -> list[int]:
    """Transformers' own greedy answer, stop token included, with the adapter attached by PEFT."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.eval().generate(**inputs, max_new_tokens=count, do_sample=False)
    found: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return found


@contextmanager
def talking(
    store: Store, *names: str, base: Path | None, remarks: list[str] | None = None, **settings: Any
) -> Iterator[Talk]:
    told = remarks if remarks is not None else []
    talk = Talk(
        store,
        names,
        base=str(base) if base else None,
        settings=Settings(**{"max_tokens": 24, **settings}),
        remark=told.append,
    )
    talk.load()
    with closing(talk):
        yield talk


def test_a_greedy_answer_is_transformers_own_token_for_token(
    store: Store, add: Add, base: Path
) -> None:
    views = {name: store.view(add(name, seed=seed)) for seed, name in enumerate(("one", "two"))}
    with talking(store, "one", "two", base=base) as talk:
        said = []
        for subject in talk.subjects:
            talk.reset()
            said.append(talk.ask(subject, "Which colour?").answer.tokens)
    assert said == [tuple(theirs(base, view, TURNS, 24)) for view in views.values()]
    assert said[0] != said[1]


def test_the_base_answers_the_same_question_as_if_no_adapter_had_been_on_it(
    store: Store, add: Add, base: Path
) -> None:
    view = store.view(add("one"))
    with talking(store, "one", base=base) as talk:
        (one,) = talk.subjects
        first = talk.ask(one, "Which colour?")
        assert talk.ask_again(talk.the_base()).answer.tokens == tuple(theirs(base, None, TURNS, 24))
        second = talk.ask(one, "And now?")
    assert first.row()["adapter"] == "one"
    turns = [
        *TURNS,
        {"role": "assistant", "content": first.answer.text},
        {"role": "user", "content": "And now?"},
    ]
    assert second.answer.tokens == tuple(theirs(base, view, turns, 24))


def test_what_was_said_is_forgotten_but_for_the_systems_part(
    store: Store, add: Add, base: Path
) -> None:
    add("one")
    turns = [{"role": "system", "content": "Be brief."}, *TURNS]
    with talking(store, "base", base=base, system="Be brief.") as talk:
        (subject,) = talk.subjects
        talk.ask(subject, "Something else")
        talk.reset()
        said = talk.ask(subject, "Which colour?").answer.tokens
    assert said == tuple(theirs(base, None, turns, 24))


def test_pieces_join_to_what_the_tokens_mean(store: Store, base: Path) -> None:
    """Random weights say bytes that are no characters as well."""
    tokenizer = models.load_tokenizer(base)
    heard: list[str] = []
    with talking(store, "base", base=base, temperature=2.0, seed=3, max_tokens=200) as talk:
        answer = talk.ask(talk.subjects[0], "Go on", heard=heard.append).answer
    assert "".join(heard) == answer.text
    assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)
    assert len(heard) > 20


def test_a_seed_draws_the_same_answer_and_leaves_the_random_state(store: Store, base: Path) -> None:
    def drawn(seed: int | None) -> tuple[int, ...]:
        with talking(store, "base", base=base, temperature=1.5, seed=seed) as talk:
            return talk.ask(talk.subjects[0], "Go on").answer.tokens

    before = torch.random.get_rng_state()
    assert drawn(1) == drawn(1)
    assert len({drawn(1), drawn(2), drawn(3), drawn(None), drawn(None)}) >= 4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_answer_that_is_halted_keeps_what_was_said(store: Store, base: Path) -> None:
    heard: list[str] = []
    with talking(store, "base", base=base, temperature=1.0, seed=0, max_tokens=100) as talk:
        said = talk.ask(
            talk.subjects[0], "Go on", heard=heard.append, halted=lambda: len(heard) > 4
        )
    assert said.answer.ended == "halted"
    assert 4 < len(said.answer.tokens) < 100


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), "ia3"),
        (AdaLoraConfig(target_modules=["q_proj", "v_proj"], init_r=4, target_r=4, total_step=9), "adalora"),
        (LoraConfig(target_modules=["q_proj", "v_proj"], r=4, use_dora=True), "dora"),
    ],
    ids=["ia3", "adalora", "dora"],
)  # fmt: skip
def test_other_kinds_of_adapters_answer_as_well(
    store: Store, base: Path, tmp_path: Path, config: Any, kind: str
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config.task_type = "CAUSAL_LM"
        made = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if any(part in name for part in ("lora_B", "lora_E", "ia3_l")):
                    parameter.normal_(std=1.0)
        made.save_pretrained(str(tmp_path / "made"))
    digest = store.add_folder(tmp_path / "made", name=kind).digest
    with talking(store, kind, base=base) as talk:
        said = talk.ask(talk.subjects[0], "Which colour?").answer.tokens
        by_base = talk.ask_again(talk.the_base()).answer.tokens
    assert said == tuple(theirs(base, store.view(digest), TURNS, 24))
    assert by_base == tuple(theirs(base, None, TURNS, 24)) != said


def test_biases_that_an_adapter_brings_are_taken_off_with_it(
    tiny: ModelMaker, tmp_path: Path
) -> None:
    base = tiny.gpt2()
    folder = peft_adapter(
        base, tmp_path / "biased", targets=["c_attn"], bias="all", fan_in_fan_out=True, r=2
    )
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    biases = [name for name in weights if name.endswith("bias")]
    assert biases
    save_file(
        {name: value + (name in biases) for name, value in weights.items()},
        folder / "adapter_model.safetensors",
    )
    model = models.load_model(base, "float32")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with models.attached(model, folder):
        pass
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_modules_that_are_only_named_in_the_configuration_do_no_harm(
    store: Store, base: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "named", strength=0.2, r=4)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].append("o_proj")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    view = store.view(store.add_folder(folder, name="named", base=str(base)).digest)
    remarks: list[str] = []
    with talking(store, "named", base=base, remarks=remarks) as talk:
        said = talk.ask(talk.subjects[0], "Which colour?").answer.tokens
    with pytest.warns(UserWarning, match="missing adapter keys"):
        assert said == tuple(theirs(base, view, TURNS, 24))
    assert "no weights for" in " ".join(remarks)


# What is said, and what is refused


def test_another_chat_template_than_the_trained_one_is_pointed_out(
    store: Store, add: Add, base: Path, tmp_path: Path
) -> None:
    trained = template_digest(chat_tokenizer(OTHER_TEMPLATE))
    store.attest(add("one"), "template", {"event": "trained", "digest": trained})
    remarks: list[str] = []
    with talking(store, "one", base=base, remarks=remarks):
        said = " ".join(remarks)
    assert "one: it was trained with the chat template" in said
    assert "--template FILE" in said
    file = tmp_path / "trained.jinja"
    file.write_text(OTHER_TEMPLATE)
    remarks.clear()
    with talking(store, "one", base=base, remarks=remarks, template=file) as talk:
        assert remarks == []
        answer = talk.ask(talk.subjects[0], "Which colour?").answer.tokens
    with talking(store, "one", base=base) as talk:
        assert talk.ask(talk.subjects[0], "Which colour?").answer.tokens != answer


def test_without_a_template_a_text_is_continued_by_itself(
    store: Store, base: Path, tmp_path: Path
) -> None:
    bare = chat_base(tmp_path / "bare")
    chat_tokenizer(None).save_pretrained(bare)
    (bare / "chat_template.jinja").unlink()
    with talking(store, "base", base=bare) as talk:
        assert not talk.converses
        first = talk.ask(talk.subjects[0], "Once upon a time").answer.tokens
        again = talk.ask(talk.subjects[0], "Once upon a time").answer.tokens
    assert first == again
    tokenizer = models.load_tokenizer(bare)
    stop = stop_token_ids(tokenizer, bare)
    asked = tokenizer("Once upon a time")["input_ids"]
    plain = models.stream_answer(models.load_model(bare, "float32"), tokenizer, asked, stop, 24)
    assert plain.tokens == first
    with (
        pytest.raises(UsageError, match="no chat template"),
        talking(store, "base", base=bare, system="Be brief."),
    ):
        pass


def test_a_template_that_refuses_is_told_in_words(store: Store, base: Path, tmp_path: Path) -> None:
    file = tmp_path / "strict.jinja"
    file.write_text("{{ raise_exception('no system here') if messages[0].role == 'system' }}x")
    with (
        talking(store, "base", base=base, template=file, system="Be brief.") as talk,
        pytest.raises(IncompatibleError, match="can't render this conversation") as caught,
    ):
        talk.ask(talk.subjects[0], "Which colour?")
    assert "no system here" in caught.value.why


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(
    store: Store, add: Add, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("one")
    monkeypatch.setattr("adapterhub.evaluate.chat.free_on_host", lambda: 300_000)
    with pytest.raises(UnsupportedError, match="doesn't fit in memory") as caught:
        Talk(store, ["one"], base=str(base), settings=Settings(), remark=print)
    assert "300 kB are free" in caught.value.why
    assert "--dtype bfloat16" in caught.value.hint
    Talk(store, ["one"], base=str(base), settings=Settings(dtype="bfloat16"), remark=print)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes as the base is stored")
def test_a_cpu_computes_in_32_bits_while_there_is_room(
    store: Store, tiny: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(tiny.llama(dtype="bfloat16"))

    def chosen(dtype: str = "auto") -> str:
        settings = Settings(dtype=dtype)
        return Talk(store, ["base"], base=base, settings=settings, remark=print).dtype

    assert chosen() == "float32"
    assert chosen("float16") == "float16"
    monkeypatch.setattr("adapterhub.evaluate.chat.free_on_host", lambda: 600_000)
    assert chosen() == "bfloat16"


def test_a_conversation_that_is_too_long_is_refused_and_can_begin_anew(
    store: Store, base: Path
) -> None:
    with talking(store, "base", base=base) as talk:
        with pytest.raises(UsageError, match="reads 1024"):
            talk.ask(talk.subjects[0], "x" * 1100)
        said = talk.ask(talk.subjects[0], "y" * 980).answer
        assert len(said.tokens) <= 24
        with pytest.raises(UsageError, match="empty"):
            talk.ask(talk.subjects[0], "  \n")


def test_an_adapter_of_another_base_is_refused_or_recorded(
    store: Store, add: Add, tmp_path: Path
) -> None:
    digest = add("one")
    other = chat_base(tmp_path / "other", seed=1)
    with pytest.raises(IncompatibleError, match="fit the base other"):
        Talk(store, ["one"], base=str(other), settings=Settings(), remark=print)
    remarks: list[str] = []
    with talking(store, "one", base=other, remarks=remarks, allow_mismatch=True) as talk:
        assert talk.ask(talk.subjects[0], "Hello").answer.tokens
    assert "fingerprint" in remarks[0]
    notes = [one.body for one in store.attestations(digest) if one.type == "note"]
    assert notes[0]["event"] == "chat"


def test_an_adapter_that_peft_cannot_attach_leaves_a_sound_base(
    store: Store, add: Add, base: Path, tmp_path: Path
) -> None:
    """It was saved from an inner model, and PEFT doesn't look for such names: unnoticed, the base would answer for it."""
    from safetensors.torch import load_file, save_file

    folder = peft_adapter(base, tmp_path / "odd", strength=0.2, r=4)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name.replace("model.model.model.", "model.model."): v for name, v in weights.items()},
        folder / "adapter_model.safetensors",
    )
    store.add_folder(folder, name="odd", base=str(base))
    with talking(store, "odd", base=base) as talk:
        with pytest.raises(UnsupportedError, match="peft can't attach odd") as caught:
            talk.ask(talk.subjects[0], "Which colour?")
        assert "looks for other names" in caught.value.why
        said = talk.ask(talk.the_base(), "Which colour?").answer.tokens
    assert said == tuple(theirs(base, None, TURNS, 24))


def test_a_whole_model_is_talked_to_by_itself(store: Store, add: Add, base: Path) -> None:
    add("one")
    with talking(store, str(base), base=None) as talk:
        (subject,) = talk.subjects
        assert talk.ask(subject, "Which colour?").answer.tokens == tuple(
            theirs(base, None, TURNS, 24)
        )
        with pytest.raises(UsageError, match="whole model"):
            talk.the_base()
        with pytest.raises(UsageError, match="whole model"):
            talk.find("one")
    for names, named in (((str(base), "one"), None), ((str(base),), str(base))):
        with pytest.raises(UsageError, match="by itself"):
            Talk(store, names, base=named, settings=Settings(), remark=print)
