"""The lean loss is the full one, and rows attended to one by one are rows alone: for every family of models that differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from adapterhub.data import IGNORED, Encoded
from adapterhub.errors import UnsupportedError
from adapterhub.trainer import head as module
from adapterhub.trainer.attention import NAME, boundaries, how_rows_stay_apart, rows_apart
from adapterhub.trainer.head import (
    HeadForm,
    LinearCrossEntropy,
    install_lean_loss,
    lean_loss_is_exact,
)

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 5},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 5, "final_logit_softcapping": 2.0},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 3.0},
    "GPTNeoX": {},
}
ROWS = [
    Encoded(tuple(range(5, 25)), tuple(range(5, 25))),
    Encoded(tuple(range(30, 47)), tuple(range(30, 47))),
]


def summed(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, form: HeadForm
) -> Any:
    apply: Any = LinearCrossEntropy.apply  # torch leaves it untyped
    return apply(hidden, weight, None, targets, form)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    import transformers

    family = request.param
    config = getattr(transformers, f"{family}Config")(**SIZES, **FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: Any = getattr(transformers, f"{family}ForCausalLM")(config)
    found.get_output_embeddings().requires_grad_(False)
    return found


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three positions at a time."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 3 * 4 * VOCABULARY)


@pytest.mark.usefixtures("small_chunks")
def test_loss_and_gradient_are_the_full_ones(model: Any) -> None:
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :5] = labels[1, 8:] = IGNORED
    embedded = model.get_input_embeddings()(ids).detach()

    full = embedded.clone().requires_grad_()
    logits = model(inputs_embeds=full, use_cache=False).logits.float()
    expected = F.cross_entropy(
        logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1), ignore_index=IGNORED
    )
    torch.autograd.backward(expected)

    undo = install_lean_loss(model)
    lean = embedded.clone().requires_grad_()
    output = model(inputs_embeds=lean, labels=labels, use_cache=False)
    torch.autograd.backward(output.loss)
    assert output.logits is None
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert lean.grad is not None
    assert full.grad is not None
    torch.testing.assert_close(lean.grad, full.grad, rtol=1e-4, atol=1e-6)
    undo()
    assert model(inputs_embeds=embedded, use_cache=False).logits is not None


@pytest.mark.usefixtures("small_chunks")
def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, 5, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, VOCABULARY, (7,), generator=generator)
    for form in (HeadForm(), HeadForm(0.5), HeadForm(2.0, 3.0)):
        total = summed(hidden, weight, targets, form)
        (gradient,) = torch.autograd.grad(total, hidden)
        z = hidden.detach() @ weight.T * form.scale
        capped = z if form.cap is None else form.cap * torch.tanh(z / form.cap)
        slope = torch.ones_like(z) if form.cap is None else 1 - torch.tanh(z / form.cap) ** 2
        onehot = F.one_hot(targets, VOCABULARY)
        by_hand = ((capped.softmax(1) - onehot) * slope * form.scale) @ weight
        torch.testing.assert_close(gradient, by_hand, rtol=1e-5, atol=1e-6)


def test_no_more_logits_than_a_chunk_are_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,048 positions of a 32k vocabulary: 268 MB of logits, of which 8 MB may be there at a time."""
    import psutil

    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 2**20)
    hidden = torch.randn(2048, 16, requires_grad=True)
    weight = torch.randn(32_768, 16)
    targets = torch.randint(0, 32_768, (2048,))
    largest = 0
    sizes: list[int] = []
    linear = F.linear

    def noted(*arguments: Any) -> Any:
        logits = linear(*arguments)
        sizes.append(logits.numel() * 4)
        return logits

    monkeypatch.setattr(F, "linear", noted)
    before = psutil.Process().memory_info().rss
    torch.autograd.backward(summed(hidden, weight, targets, HeadForm()))
    largest = psutil.Process().memory_info().rss - before
    assert max(sizes) <= 8 * 2**20
    assert len(sizes) == 32
    assert largest < 128 * 2**20


def test_a_head_that_learns_is_refused(model: Any) -> None:
    model.get_output_embeddings().requires_grad_(True)
    with pytest.raises(UnsupportedError, match="output head"):
        install_lean_loss(model)


def test_packed_rows_get_the_logits_of_rows_alone(model: Any) -> None:
    # Gemma 2 caps its attention's scores, which only the mask's way may honour
    expected = "mask" if type(model).__name__ == "Gemma2ForCausalLM" else "rows"
    assert how_rows_stay_apart(model, ROWS) == expected
    assert model.config._attn_implementation != NAME  # only while a step runs


def test_checkpointing_computes_the_same_rows_again(model: Any) -> None:
    """The backward pass of gradient checkpointing runs the attention a second time: with the same boundaries."""
    if how_rows_stay_apart(model, ROWS) != "rows":
        model.config.attn_logit_softcapping = None
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
    model.requires_grad_(False)
    ids = torch.tensor([ROWS[0].input_ids + ROWS[1].input_ids])
    places = torch.cat([torch.arange(20), torch.arange(17)])[None]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        with rows_apart(model):
            logits = model(
                inputs_embeds=embedded, position_ids=places, use_cache=False,
                **boundaries(torch.tensor([0, 20, 37])),
            ).logits  # fmt: skip
            logits[:, 25].sum().backward()
        assert embedded.grad is not None
        assert embedded.grad[:, :20].abs().max() == 0  # the second row knows nothing of the first
        gradients.append(embedded.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda options: options.pop("cu_seq_lens_q"),  # boundaries that don't arrive
        lambda options: options.update(softcap=5.0),  # what this attention can't do
    ],
    ids=["no-boundaries", "softcap"],
)
def test_attention_that_would_mix_rows_is_found_out(
    spoil: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from adapterhub.trainer import attention

    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert how_rows_stay_apart(model, ROWS) == "rows"
    real = attention.rows_attention

    def spoiled(*arguments: Any, **options: Any) -> Any:
        spoil(options)
        return real(*arguments, **options)

    monkeypatch.setattr(attention, "rows_attention", spoiled)
    assert (
        how_rows_stay_apart(model, ROWS) == "mask"
    )  # the model's own way is exact too, and slower


def test_a_model_with_a_running_state_is_found_out() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert how_rows_stay_apart(MambaForCausalLM(config), ROWS) is None


def test_a_model_whose_head_does_more_is_found_out_and_gets_logits() -> None:
    """Falcon-H1 multiplies its logits by a factor of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    for exact in (True, False):
        model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
        model.requires_grad_(False)
        if not exact:
            model.lm_head.register_forward_hook(lambda _m, _i, logits: logits * 0.05)
        assert lean_loss_is_exact(model, ROWS[0]) is exact
        assert "forward" not in vars(model)  # as it was


def test_a_window_that_only_the_mask_knows_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that are tried are longer than the window, or they would show nothing."""
    from transformers import MistralConfig, MistralForCausalLM

    from adapterhub.trainer import attention

    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=60))
    long = [Encoded(tuple(i % 90 + 3 for i in range(n)), ()) for n in (100, 95)]
    assert how_rows_stay_apart(model, long) == "rows"
    real = attention.rows_attention

    def blind(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **{**options, "sliding_window": None})

    monkeypatch.setattr(attention, "rows_attention", blind)
    assert how_rows_stay_apart(model, long) == "mask"
