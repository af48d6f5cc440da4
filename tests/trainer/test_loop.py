"""The loss we take is trl's own, packed rows don't see each other, and 4-bit weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer

from adapterhub.base import BaseModel, read_base
from adapterhub.errors import UsageError
from adapterhub.evaluate.models import load_tokenizer
from adapterhub.evaluate.scoring import score, summed_nll
from adapterhub.trainer.data import load_corpus, tokenize
from adapterhub.trainer.loop import Trainer, make_trainer, packed_sequences, steps_of, to_dataset
from adapterhub.trainer.methods import orthogonality
from adapterhub.trainer.model import choose_device, load_for_training, meta_model, scoring_mode
from adapterhub.trainer.model import count_parameters as count
from adapterhub.trainer.objectives import Tokens
from adapterhub.trainer.recipe import Recipe, load_recipe

Write = Callable[..., Path]


@pytest.fixture
def built(write_recipe: Write, base: Path, tmp_path: Path) -> Callable[..., Any]:
    """built(**changes) -> (recipe, rows, model, trainer)"""

    def build(**changes: Any) -> tuple[Recipe, Tokens, Any, Trainer]:
        recipe = load_recipe(write_recipe(**changes))
        found = read_base(base)
        tokenizer = load_tokenizer(base)
        rows = tokenize(recipe, load_corpus(recipe), tokenizer, base).train
        device = choose_device()
        model = load_for_training(recipe, found, device)
        trainer = make_trainer(model, tokenizer, rows.rows, recipe, device, tmp_path / "scratch")
        return recipe, rows, model, trainer

    return build


def shaken(model: Any) -> Any:
    """The model with a B that is not zero, so that the adapter has a part in the loss."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradient_are_those_of_trl(built: Callable[..., Any], packing: bool) -> None:
    _, rows, _, trainer = built(packing=packing, batch_size=2)
    _, _, twin, _ = built(packing=packing, batch_size=2)
    del (
        twin.get_base_model().forward
    )  # the twin answers as transformers made it, and trl trains it its own way
    plain = SFTTrainer(
        model=twin,
        args=copy(trainer.args),
        train_dataset=to_dataset(rows.rows),
        processing_class=trainer.processing_class,
    )
    results = []
    for one in (trainer, plain):
        batch, of = next(iter(one.get_train_dataloader())), one.model
        assert of is not None
        shaken(of).zero_grad()
        loss = one.training_step(of, batch, num_items_in_batch=torch.tensor(100))
        gradient = {n: p.grad for n, p in of.named_parameters() if p.grad is not None}
        results.append((float(loss), gradient))
    (ours, our_gradient), (theirs, their_gradient) = results
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert set(our_gradient) == set(their_gradient)
    assert all("lora_" in name for name in our_gradient)
    for name, gradient in our_gradient.items():
        torch.testing.assert_close(gradient, their_gradient[name].float(), rtol=1e-3, atol=1e-6)


def test_packed_rows_do_not_see_each_other(built: Callable[..., Any]) -> None:
    _, rows, model, trainer = built(packing=True)
    shaken(model).eval()
    total, tokens = 0.0, 0
    for batch in trainer.get_train_dataloader():
        labels = batch.pop("labels")
        with torch.no_grad():
            nll, marked = summed_nll(model, batch, labels)
        total += float(nll)
        tokens += marked
    alone = score(model, rows.rows, batch_tokens=1)
    assert tokens == alone.tokens
    assert total == pytest.approx(alone.nll, rel=1e-5)


def test_steps_follow_from_epochs_and_packed_sequences(write_recipe: Write, base: Path) -> None:
    recipe = load_recipe(write_recipe(steps=None, epochs=2, batch_size=2, gradient_accumulation=2))
    rows = tokenize(recipe, load_corpus(recipe), load_tokenizer(base), base).train.rows
    sequences = packed_sequences(recipe, rows)
    tokens = sum(len(row.input_ids) for row in rows)
    assert tokens / 256 <= sequences < len(rows)
    assert steps_of(recipe, 9) == 6  # 9 sequences, 4 a step: 3 steps an epoch
    assert steps_of(load_recipe(write_recipe(steps=5)), 9) == 5


def test_qlora_trains_through_real_nf4_weights_and_leaves_them_alone(
    built: Callable[..., Any],
) -> None:
    _, rows, model, trainer = built(method="qlora")
    packed = {n: p for n, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 2 * 7  # the seven linear layers of both blocks, two weights in a byte
    states = [p.quant_state for p in packed.values()]
    assert all(s.quant_type == "nf4" and s.nested for s in states)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}

    before = {name: p.detach().clone() for name, p in packed.items()}
    with scoring_mode(model):
        first = score(model, rows.rows)
    trainer.train()
    with scoring_mode(model):
        last = score(model, rows.rows)
    assert last.loss < first.loss - 0.5
    assert all(torch.equal(before[name], p) for name, p in packed.items())


def test_scoring_leaves_the_mode_as_it_was_and_drops_nothing_out(built: Callable[..., Any]) -> None:
    _, rows, model, _ = built(dropout=0.5)
    shaken(model).train()
    with scoring_mode(model):
        assert score(model, rows.rows).nll == score(model, rows.rows).nll
    assert model.training


def test_parameters_of_an_eight_billion_model_are_counted_without_loading_it(
    write_recipe: Write, tmp_path: Path
) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path / "llama")  # fmt: skip
    base = BaseModel(tmp_path / "llama", "meta-llama/Llama-3.1-8B", None, {}, {})
    trainable, total = count(meta_model(load_recipe(write_recipe(rank=16)), base))
    assert (trainable, total) == (41_943_040, 8_072_204_288)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "v_porj"], "names v_porj, which is not in the base"),
        (["lm_head"], "names lm_head, which can't be trained"),
    ],
)
def test_target_modules_that_would_be_ignored_are_refused(
    built: Callable[..., Any], targets: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        built(target_modules=targets)


def test_the_loss_by_logits_is_the_lean_one(built: Callable[..., Any]) -> None:
    """What a model gets whose head does more than the lean loss knows."""
    _, _, lean, trainer = built(batch_size=2)
    _, _, full, plain = built(batch_size=2)
    del full.get_base_model().forward
    plain._lean = False
    losses = []
    for model, one in ((lean, trainer), (full, plain)):
        batch = next(iter(one.get_train_dataloader()))
        losses.append(float(one.training_step(shaken(model), batch, torch.tensor(50))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
def test_adalora_is_regularised_once_a_step_and_the_loss_told_is_that_of_tokens(
    shape: tuple[int, int], built: Callable[..., Any]
) -> None:
    batch, accumulation = shape
    _, rows, model, trainer = built(
        kind="adalora", packing=False, batch_size=batch, gradient_accumulation=accumulation
    )
    batches = iter(trainer.get_train_dataloader())
    samples, count = trainer.get_batch_samples(batches, accumulation, trainer.args.device)
    trainer.current_gradient_accumulation_steps = accumulation
    total = sum(float(trainer.training_step(model, dict(one), count)) for one in samples)
    once = 0.5 * float(orthogonality(model.base_model).detach())
    assert trainer.penalty == pytest.approx(once, rel=1e-5)
    nll = sum(float(summed_nll(model, *_apart(dict(one)))[0].detach()) for one in samples)
    assert total - trainer.penalty == pytest.approx(nll / int(count), rel=1e-4)
    assert rows.rows


def _apart(batch: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    labels = batch.pop("labels")
    return batch, labels


@pytest.mark.parametrize("packing", [True, False])
def test_neftune_noise_is_that_of_each_row_alone(built: Callable[..., Any], packing: bool) -> None:
    alpha, hidden = 5.0, 64
    _, _, model, trainer = built(packing=packing, batch_size=4, neftune_alpha=alpha)
    batch = next(iter(trainer.get_train_dataloader()))
    embedding = model.get_base_model().get_input_embeddings()
    with torch.no_grad():
        embedding.weight.zero_()  # so that the noise is all there is
    seen: list[torch.Tensor] = []
    embedding.register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    model.train()
    trainer.compute_loss(model, batch)
    bounds = batch["cu_seq_lens_q"].tolist()
    assert len(bounds) > 4
    for start, end in pairwise(bounds):
        limit = alpha / ((end - start) * hidden) ** 0.5
        largest = float(seen[0][0, start:end].abs().max())
        assert 0.9 * limit < largest <= limit
