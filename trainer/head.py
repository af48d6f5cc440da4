"""The loss without the logits: the output head and its cross entropy, a chunk of trained positions at a time.

A plain trainer projects every position to the whole vocabulary and keeps the result for the backward pass: 1 GB in float32
for 2,000 tokens of a 128k vocabulary. Here only the positions whose next token is trained are projected, CHUNK_BYTES at
a time, and each chunk's gradient is taken at once, because the head itself is frozen: what is kept is one row of the
hidden size a position. Loss and gradient are those of the full computation, to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from adapterhub.data import IGNORED
from adapterhub.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.data import Encoded

CHUNK_BYTES = 64 * 2**20
"""Logits in memory at any moment, in float32."""


@dataclass(frozen=True)
class HeadForm:
    """What a model does to its logits behind the head: z -> cap * tanh(scale * z / cap); `cap` None: no tanh."""

    scale: float = 1.0
    cap: float | None = None


def head_form(config: Any) -> HeadForm:
    """The form in a model's configuration: Cohere multiplies, Granite divides, Gemma 2 caps."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)
    return HeadForm(scale / divisor, float(cap) if cap else None)


class LinearCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of softmax(form(hidden W' + b)), for a frozen W.

    Args:
        hidden: (N, H) in any floating dtype.
        weight: (V, H), frozen; bias: (V,) or None, frozen.
        targets: (N,) token ids.
        form: what happens to the logits before the softmax.

    Returns a float32 scalar, in nats. The gradient of `hidden` is computed in the forward pass, chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        form: HeadForm,
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if wanted else None
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        for start in range(0, hidden.shape[0], rows):
            part = hidden[start : start + rows]  # (n, H)
            aim = targets[start : start + rows, None]  # (n, 1)
            logits = F.linear(part, weight, bias).float()  # (n, V)
            if form.scale != 1.0:
                logits *= form.scale
            if form.cap is not None:
                logits.div_(form.cap).tanh_()
                slope = 1 - logits.square() if wanted else None
                logits *= form.cap
            else:
                slope = None
            chosen = logits.gather(1, aim)
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - chosen).sum()
            if gradient is None:
                continue
            # d nll / d logits = softmax - onehot, then back through the cap and the scale
            logits.sub_(norm).exp_()
            logits.scatter_add_(1, aim, torch.full_like(chosen, -1.0))
            if slope is not None:
                logits *= slope
            if form.scale != 1.0:
                logits *= form.scale
            torch.mm(logits.to(hidden.dtype), weight, out=gradient[start : start + rows])
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        gradient = ctx.gradient
        ctx.gradient = None  # it may be large, and is used once
        return gradient.mul_(grads[0].to(gradient.dtype)), None, None, None, None


def lean_loss(
    hidden: torch.Tensor, labels: torch.Tensor, head: torch.nn.Module, form: HeadForm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss (float32, nats) and the number of trained positions, from the last hidden states.

    Args:
        hidden: (B, T, H), what the decoder gives the head.
        labels: (B, T) token ids, IGNORED where not trained; position t predicts label t+1.
        head: the frozen output projection.
    """
    targets = labels[:, 1:]  # (B, T-1)
    keep = targets != IGNORED
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    apply: Any = LinearCrossEntropy.apply  # torch leaves it untyped
    return apply(hidden[:, :-1][keep], weight, bias, targets[keep], form), keep.sum()


def _as_forward(
    module: torch.nn.Module, compute: Callable[[], tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `compute` returns, called as `module`'s forward: FSDP gathers a module's weights when it is called, only then."""
    own = vars(module).get("forward")
    module.forward = compute
    try:
        result: tuple[torch.Tensor, torch.Tensor] = module()
        return result
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def lean_loss_is_exact(model: Any, row: Encoded) -> bool:
    """Whether the lean loss of `model` is that of its own logits: measured on the first tokens of a row.

    It isn't for models that do something of their own behind the decoder. What can't be computed at all isn't exact.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([row.input_ids[:64]], device=device)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        expected = F.cross_entropy(logits, ids[0, 1:])
        undo = install_lean_loss(model)
        try:
            found = model(input_ids=ids, labels=ids, use_cache=False).loss
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
            return False
        finally:
            undo()
    tolerance = 1e-3 if logits.dtype == model.dtype else 3e-2
    return bool((found - expected).abs() <= tolerance * expected.abs())


def install_lean_loss(model: Any) -> Callable[[], None]:
    """Teaches a causal language model of transformers to answer `labels` with the lean loss and no logits.

    A call without labels is as before. With labels, and `num_items_in_batch` as Trainer passes it (else the batch's own
    count), the output's `loss` is the mean, in the output class that PEFT and Trainer expect. Returns how to undo it.
    Raises UnsupportedError when the head would have to be trained.
    """
    from transformers.modeling_outputs import CausalLMOutput

    head = model.get_output_embeddings()
    if head is None or any(p.requires_grad for p in head.parameters()):
        raise UnsupportedError(
            "The output head can't be trained here.",
            why="The loss is taken from its frozen weights.",
            hint="Leave lm_head out of target_modules.",
        )
    decoder, form, full = model.get_decoder(), head_form(model.config), model.forward

    @wraps(full)  # whoever asks what forward takes gets the model's own answer
    def forward(
        *args: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return full(*args, **inputs)
        hidden = decoder(*args, **inputs).last_hidden_state
        total, count = _as_forward(head, lambda: lean_loss(hidden, labels, head, form))
        divisor = count if num_items_in_batch is None else num_items_in_batch
        mean: Any = total / torch.as_tensor(divisor).clamp(min=1)
        return CausalLMOutput(loss=mean)

    def undo() -> None:
        del model.forward

    model.forward = forward
    return undo
