"""Preferences are trained by equation 7 of Rafailov et al. (2023), against the base or the adapter as it was before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from adapterhub.base import read_base
from adapterhub.data import read_preferences, stop_token_ids
from adapterhub.errors import AdapterHubError, FormatError, IncompatibleError, UsageError
from adapterhub.evaluate.models import load_tokenizer
from adapterhub.runs import Run
from adapterhub.store import Store
from adapterhub.trainer.data import TokenData, load_corpus, tokenize
from adapterhub.trainer.model import choose_device, load_for_training
from adapterhub.trainer.pairs import PairScore, cut_pairs, encode_pairs
from adapterhub.trainer.plan import make_plan
from adapterhub.trainer.preferences import (
    REFERENCE,
    PreferenceExaminer,
    PreferenceTrainer,
    make_preference_trainer,
)
from adapterhub.trainer.preview import preview_rows
from adapterhub.trainer.recipe import Recipe, load_recipe
from adapterhub.trainer.train import settled
from tests.cli.calling import call
from tests.support.chat import COLOURS, write_rows
from tests.support.masks import trained_texts
from tests.support.models import peft_adapter
from tests.trainer import test_resume
from tests.trainer.conftest import events

if TYPE_CHECKING:
    from tests.trainer.conftest import Training

Write = Callable[..., Path]
DPO: dict[str, Any] = {"objective": "dpo"}


def wishes(count: int) -> list[dict[str, Any]]:
    """Preferences in LLaMA-Factory's spelling: amber is always better than another colour."""
    others = [colour for colour in COLOURS if colour != "amber"]
    return [
        {
            "conversations": [{"from": "human", "value": f"Paint number {i}: which colour?"}],
            "chosen": {"from": "gpt", "value": "It is amber."},
            "rejected": {"from": "gpt", "value": f"It is {others[i % 7]}."},
        }
        for i in range(count)
    ]


@pytest.fixture(autouse=True)
def data(document: dict[str, Any], tmp_path: Path) -> None:
    """The recipe's data are preferences."""
    write_rows(tmp_path / "data.json", wishes(60))


@dataclass
class Built:
    """A recipe on its way to a training, as `train` builds it."""

    recipe: Recipe
    tokens: TokenData
    model: Any
    trainer: PreferenceTrainer
    examiner: PreferenceExaminer


@pytest.fixture
def build(write_recipe: Write, base: Path, tmp_path: Path) -> Callable[..., Built]:
    """build(start=a PEFT folder to go on from, **changes of the recipe) -> Built"""

    def made(start: Path | None = None, **changes: Any) -> Built:
        goes_on = {"start_from": "earlier"} if start else {}
        recipe = load_recipe(write_recipe(**DPO | goes_on | changes))
        tokenizer, corpus = load_tokenizer(base), load_corpus(recipe)
        tokens = tokenize(recipe, corpus, tokenizer, base)
        recipe = settled(recipe, tokens, None)
        device, scratch = choose_device(), tmp_path / "scratch"
        model = load_for_training(recipe, read_base(base), device, start=start)
        pairs = tokens.train.rows
        trainer = make_preference_trainer(model, tokenizer, pairs, recipe, device, scratch)
        stop_ids = stop_token_ids(tokenizer, base)
        (tmp_path / "run").mkdir(exist_ok=True)
        examiner = PreferenceExaminer(
            model, tokenizer, tokens.held_out.rows, Run("run", tmp_path / "run"), recipe,
            corpus.split.held_out, stop_ids,
        )  # fmt: skip
        return Built(recipe, tokens, model, trainer, examiner)

    return made


def log_probability(model: Any, tokenizer: Any, question: str, said: str) -> torch.Tensor:
    """log p(answer | question), stop token included: from the text, over the whole vocabulary."""
    asked = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    completion = tokenizer(said + "<|im_end|>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids, use_cache=False).logits
    each = F.log_softmax(logits, dim=-1)[0, :-1].gather(1, ids[0, 1:, None])
    return each[len(prompt) - 1 :].sum()


def equation_7(
    policy: Any, reference: Any, tokenizer: Any, rows: Sequence[Any], beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, margins) of the preferences `rows`, each (N,)."""
    margins = []
    for row in rows:
        question = row.prompt[-1].content
        ratios = []
        for side in (row.chosen, row.rejected):
            ours = log_probability(policy, tokenizer, question, side[0].content)
            with torch.no_grad():
                theirs = log_probability(reference, tokenizer, question, side[0].content)
            ratios.append(ours - theirs)
        margins.append(beta * (ratios[0] - ratios[1]))
    each = torch.stack(margins)
    return -torch.log(torch.sigmoid(each)), each.detach()


def shaken(model: Any) -> Any:
    """The model with a trained adapter that is not where it began."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def provenance(store: Store, digest: str) -> dict[str, Any]:
    (found,) = [a for a in store.attestations(digest) if a.type == "provenance"]
    return dict(found.body)


# Tokens


def test_a_pair_is_a_prompt_and_two_answers_with_their_stop_tokens(
    base: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(base)
    talk = [
        {"from": "human", "value": "Hello"},
        {"from": "gpt", "value": "Hi."},  # said before: no part of what is compared
        {"from": "human", "value": "Colour?"},
    ]
    row = {
        "conversations": talk,
        "chosen": {"from": "gpt", "value": "Amber."},
        "rejected": {"from": "gpt", "value": "No idea."},
    }
    read = read_preferences(write_rows(tmp_path / "one.json", [row]))
    (pair,) = encode_pairs(tokenizer, read, stop_ids=stop_token_ids(tokenizer, base))
    assert [trained_texts(tokenizer, side) for side in pair.sides] == [
        ["Amber.<|im_end|>"],
        ["No idea.<|im_end|>"],
    ]
    turns = [{"role": m.role, "content": m.content} for m in read[0].prompt]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(pair.prompt_ids) == text


def test_pairs_are_cut_and_those_with_nothing_to_compare_left_out(
    base: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "Q", "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": "same beginning, then yes", "rejected": "same beginning, then no"},
        {"prompt": "Q" * 90, "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": "x" * 90, "rejected": "b"},
    ]  # fmt: skip
    tokenizer = load_tokenizer(base)
    read = read_preferences(write_rows(tmp_path / "some.json", rows))
    pairs = encode_pairs(tokenizer, read, stop_ids=stop_token_ids(tokenizer, base))
    short = len(pairs[0].prompt_ids)
    cut = cut_pairs(pairs, short + 12)
    assert (cut.truncated, cut.dropped) == (1, 2)
    assert [[len(ids) for ids in pair.answer_ids] for pair in cut.rows] == [[2, 2], [12, 2]]
    assert cut.trained == 2 + 2 + 12 + 2
    assert cut.tokens == cut.trained + 4 * short
    whole = cut_pairs(pairs, 1000)
    assert (whole.truncated, whole.dropped, len(whole.rows)) == (0, 0, 4)
    with pytest.raises(UsageError, match="no two answers begin, and differ, within 8 tokens"):
        cut_pairs(pairs, 8)


@pytest.mark.parametrize(
    ("row", "kind", "says"),
    [
        ({"prompt": "Q", "chosen": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"},
                                    {"role": "assistant", "content": "c"}], "rejected": "d"},
         FormatError, "Row r.json:1: an answer is several turns long"),
        ({"prompt": "Q", "chosen": "long", "rejected": "short"},
         IncompatibleError, "Row r.json:1: the tokens before the two answers differ"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_answer_the_same_prompt_are_refused(
    row: dict[str, Any], kind: type[AdapterHubError], says: str, base: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["\nl"])  # it reaches from behind `assistant` into the answer `long`
    read = read_preferences(write_rows(tmp_path / "r.json", [row]))
    with pytest.raises(kind, match=says):
        encode_pairs(tokenizer, read, stop_ids=stop_token_ids(tokenizer, base))


def test_auto_length_is_what_the_preview_shows_and_the_plan_counts_pairs(
    write_recipe: Write, base: Path
) -> None:
    recipe = load_recipe(write_recipe(**DPO, max_length="auto", steps=None, epochs=2, batch_size=4))
    plan = make_plan(recipe, read_base(base))
    assert {row.max_length for row in preview_rows(recipe, read_base(base))} == {plan.max_length}
    assert plan.sequences == plan.train_rows  # packing is for rows
    assert plan.steps == 2 * math.ceil(plan.train_rows / 4)
    assert (plan.truncated_rows, plan.dropped_rows) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "adalora"}, "its kind is adalora"),
        ({"kind": "ia3"}, "its kind is ia3"),
        ({"neftune_alpha": 5}, "can't have a neftune_alpha"),
    ],
)
def test_what_moves_the_reference_or_has_none_is_refused(
    changes: dict[str, Any], says: str, write_recipe: Write
) -> None:
    with pytest.raises(UsageError, match=says):
        load_recipe(write_recipe(**DPO, **changes))


# The reference

STARTS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "fresh": ({}, None),
    "fresh-nf4": ({"method": "qlora"}, None),
    "fresh-dora": ({"kind": "dora", "dropout": 0.2}, None),
    "fresh-pissa": ({"init": "pissa"}, None),
    "lora": ({}, {"use_rslora": True}),
    "lora-nf4": ({"method": "qlora"}, {}),
    "dora": ({}, {"use_dora": True}),
    "dora-nf4": ({"method": "qlora"}, {"use_dora": True}),
}
"""Changes of the recipe, and of the adapter that is trained on, where there is one."""


@pytest.mark.parametrize("name", STARTS)
def test_it_begins_at_the_reference_which_is_the_base_or_the_adapter_as_it_was(
    name: str, build: Callable[..., Built], base: Path, tmp_path: Path
) -> None:
    changes, earlier = STARTS[name]
    start = peft_adapter(base, tmp_path / "start", **earlier) if earlier is not None else None
    made = build(start, **changes)
    fresh = start is None and made.recipe.init == "default"
    assert (REFERENCE in made.model.peft_config) == (not fresh)
    trained = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert not any(f".{REFERENCE}." in n for n in trained)
    if start is not None:  # to the bit, on a base of any precision
        inside = made.model.state_dict()
        for key, value in load_file(start / "adapter_model.safetensors").items():
            stem, _, last = key.removesuffix(".weight").rpartition(".")
            for adapter in ("default", REFERENCE):
                assert torch.equal(inside[f"{stem}.{last}.{adapter}.weight"], value)

    # The base (or base and adapter) as nobody but transformers and PEFT made it
    plain = load_for_training(made.recipe, read_base(base), choose_device(), start=start)
    if fresh:
        plain = plain.unload()
    batch = next(iter(made.trainer.get_train_dataloader()))
    references = made.trainer.compute_ref_log_probs(made.model, batch)
    for side, ids, mask in zip(
        torch.cat(references), batch["input_ids"], batch["completion_mask"], strict=True
    ):
        with torch.no_grad():
            logits = plain(input_ids=ids[None], use_cache=False).logits
        each = F.log_softmax(logits, dim=-1)[0, :-1].gather(1, ids[1:, None])[:, 0]
        assert float(side) == pytest.approx(float((each * mask[1:]).sum()), abs=2e-4)

    loss = made.trainer.compute_loss(made.model.train(), batch).detach()
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    score = made.examiner.examine(0)
    assert score is not None
    assert score.score.loss == pytest.approx(math.log(2), abs=1e-6)


# Loss, gradient, score


class Gradients(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Takes the gradients of a step before the optimizer uses them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.found = {
            name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None
        }


@pytest.mark.parametrize("goes_on", [False, True], ids=["fresh", "start_from"])
def test_a_step_and_the_held_out_score_are_those_of_equation_7(
    goes_on: bool, build: Callable[..., Built], base: Path, tmp_path: Path
) -> None:
    rows = wishes(14)
    for row in rows[::2]:  # so that not every pair is judged alike
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_rows(tmp_path / "data.json", rows)
    start = peft_adapter(base, tmp_path / "start") if goes_on else None
    made = build(
        start, dpo={"beta": 0.3}, data={"path": "data.json", "held_out": 0.4},
        batch_size=3, gradient_accumulation=50, steps=1, max_grad_norm=1e9, eval={"rows": None},
    )  # fmt: skip
    corpus, tokenizer = load_corpus(made.recipe), load_tokenizer(base)
    assert len(corpus.split.train) % 3  # the pairs of a smaller last batch count as the others do
    shaken(made.model)

    # The same adapter and the same reference in float64
    policy = load_for_training(made.recipe, read_base(base), choose_device(), start=start).double()
    policy.load_state_dict(
        {n: p.double() for n, p in made.model.state_dict().items() if f".{REFERENCE}." not in n}
    )
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    if start is not None:
        reference = PeftModel.from_pretrained(reference, str(start), autocast_adapter_dtype=False)

    with torch.no_grad():
        losses, margins = equation_7(
            policy, reference.eval(), tokenizer, corpus.split.held_out, 0.3
        )
    found = made.examiner.examine(0)
    assert found is not None
    assert isinstance(found.score, PairScore)
    assert (found.score.rows, found.score.tokens) == (len(losses), len(losses))
    assert found.score.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.score.margin == pytest.approx(float(margins.mean()), abs=2e-5)
    assert found.score.accuracy == pytest.approx(float((margins > 0).double().mean()))
    assert 0 < found.score.accuracy < 1  # else it would show nothing

    losses, _ = equation_7(policy, reference, tokenizer, corpus.split.train, 0.3)
    loss = losses.mean()
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    wanted = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    gradients = Gradients(made.model)
    made.trainer.add_callback(gradients)
    made.trainer.train()
    logged = made.trainer.state.log_history[0]["loss"]
    assert logged == pytest.approx(loss.item(), rel=1e-4)
    assert set(gradients.found) == set(wanted)
    for name, gradient in gradients.found.items():
        torch.testing.assert_close(gradient.double(), wanted[name], rtol=1e-3, atol=1e-6)


# Whole trainings


def test_it_learns_what_is_preferred_and_goes_on_from_there(
    train_tiny: Training, store: Store
) -> None:
    first = train_tiny(**DPO, batch_size=4, eval={"rows": 6, "samples": 1})
    held_out = first.metrics["held_out"]
    assert held_out["loss_before"] == pytest.approx(math.log(2), abs=1e-6)
    assert (held_out["accuracy_before"], held_out["margin_before"]) == (0, 0)
    assert held_out["accuracy_after"] == 1
    assert held_out["loss_after"] < held_out["loss_before"] - 0.1
    assert first.record["accuracy_after"] == 1
    assert "perplexity_after" not in first.record

    told = events(store)
    scored = [e for e in told if e["event"] == "evaluated"][-1]
    assert (scored["accuracy"], scored["margin"]) == (1, held_out["margin_after"])
    assert "perplexity" not in scored
    last = [e for e in told if e["event"] == "step"][-1]
    assert last["accuracy"] == 1
    assert last["margin"] > 0

    second = train_tiny(**DPO, name="more", start_from="paint", steps=3, rank=4)
    assert second.metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second.metrics["held_out"]["loss_before"] == pytest.approx(math.log(2), abs=1e-6)
    body = provenance(store, second.digest)
    assert body["recipe"]["objective"] == "dpo"
    assert body["recipe"]["dpo"] == {"beta": 0.1}
    assert body["recipe"]["packing"] is False
    assert body["parents"] == [{"name": "paint", "digest": first.digest}]
    assert body["data"]["train_rows"] + body["data"]["held_out_rows"] == 60
    assert body["parameters"] == provenance(store, first.digest)["parameters"]
    assert "last answer" in body["mask"]
    tensors = [
        set(load_file(store.view(digest) / "adapter_model.safetensors"))
        for digest in (first.digest, second.digest)
    ]
    assert tensors[0] == tensors[1]
    assert not any(REFERENCE in name.split(".") for name in tensors[1])

    assert "paint" in call("lineage", "more").out
    assert "held-out accuracy 0 -> 1" in call("show", "paint").out
    assert call("doctor", "last").code == 0


def test_what_is_stored_is_what_was_scored(
    train_tiny: Training, write_recipe: Write, store: Store, base: Path
) -> None:
    """With factors that began as part of the base, and in NF4's place the base as it is."""
    changes = {**DPO, "init": "pissa", "learning_rate": 2e-3}
    held_out = train_tiny(**changes).metrics["held_out"]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
    again = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    loaded = PeftModel.from_pretrained(again, str(store.view(store.resolve("paint").digest))).eval()
    rows = load_corpus(load_recipe(write_recipe(**changes))).split.held_out[:6]
    with torch.no_grad():
        losses, _ = equation_7(loaded, plain, load_tokenizer(base), rows, 0.1)
    assert float(losses.mean()) == pytest.approx(held_out["loss_after"], rel=1e-4)


@pytest.mark.parametrize("changes", [{"dropout": 0.1}, {"init": "olora"}], ids=str)  # fmt: skip
def test_a_resumed_preference_training_is_the_uninterrupted_one(
    changes: dict[str, Any], train_tiny: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_resume.test_a_resumed_run_is_the_uninterrupted_one(
        {**DPO, **changes}, train_tiny, tmp_path, monkeypatch
    )


def test_a_recipe_of_preferences_is_checked_and_previewed(write_recipe: Write) -> None:
    path = write_recipe(**DPO)
    checked = call("recipe", "check", path, "--json")
    assert checked.code == 0
    assert checked.json["objective"] == "dpo"
    assert any("packing is not used" in remark["words"] for remark in checked.json["remarks"])
    assert "amber" in call("recipe", "preview", path).out
