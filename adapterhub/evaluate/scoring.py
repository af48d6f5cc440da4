"""The number itself: summed negative log-likelihood of the marked tokens, padding and batching without influence.

Only the positions whose next token is marked are projected to the vocabulary; on a small model with a large vocabulary
that is most of the work and nearly all of the memory.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.data.masking import IGNORED, Encoded
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 2048
"""Tokens in one forward pass, padding included: about 0.4 GB of activations for a 135M-parameter model in float32."""


@dataclass(frozen=True)
class Score:
    """Summed negative log-likelihood in nats over `tokens` marked positions of `rows` rows."""

    nll: float
    tokens: int
    rows: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def measures(self) -> dict[str, float]:
        """What it says, by name."""
        return {"loss": self.loss, "perplexity": self.perplexity}


def score(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_rows: Callable[[int], None] | None = None,
) -> Score:
    """Scores `rows` under `model` as it is (its mode is not changed; dropout must be off).

    Rows of similar length go together, padded on the right under an attention mask, so a row's number does not depend
    on its neighbours. `on_rows` is called after each batch with the number of rows in it.
    Raises AdapterHubError when the model's output is not finite.
    """
    import torch

    device = next(model.parameters()).device
    nll, tokens = 0.0, 0
    # A model that is cut over processes keeps what it gathers here for the training that goes on, so no inference_mode.
    with torch.no_grad():
        for batch in _batches(rows, batch_tokens):
            inputs = _pad(batch, device)
            labels = inputs.pop("labels")
            total, count = summed_nll(model, inputs, labels)
            nll += float(total)
            tokens += count
            if on_rows:
                on_rows(len(batch))
    if not math.isfinite(nll):
        raise AdapterHubError(
            "The model's log-likelihood is not a number.",
            why="Its weights, or the adapter's, hold or produce infinite values.",
        )
    return Score(nll, tokens, len(rows))


def summed_nll(
    model: torch.nn.Module, inputs: dict[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood (a differentiable float32 scalar) of the marked tokens, and their number.

    Args:
        model: a causal language model of transformers, with or without adapters.
        inputs: what its forward takes, without labels: `input_ids` (B, T) and a mask or position ids.
        labels: (B, T) token ids, IGNORED where not marked.
    """
    import torch
    import torch.nn.functional as F

    targets = labels[:, 1:]  # (B, T-1): position t predicts token t+1
    wanted = (targets != IGNORED).any(dim=0).nonzero().flatten()  # (P,) positions any row needs
    if _keeps_logits(model):
        logits = model(**inputs, logits_to_keep=wanted, use_cache=False).logits  # (B, P, V)
    else:
        logits = model(**inputs, use_cache=False).logits[:, wanted]
    marked = targets[:, wanted]  # (B, P)
    keep = marked != IGNORED
    total = F.cross_entropy(logits[keep].float(), marked[keep], reduction="sum")
    return total, int(torch.count_nonzero(keep))


def _keeps_logits(model: torch.nn.Module) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _batches(rows: Sequence[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    """Rows in order of length, in batches of at most `batch_tokens` padded tokens (a longer row goes alone)."""
    batch: list[Encoded] = []
    for row in sorted(rows, key=lambda r: len(r.input_ids)):
        if batch and len(row.input_ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pad(batch: Sequence[Encoded], device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each (B, T), padded on the right."""
    import torch

    longest = max(len(row.input_ids) for row in batch)
    ids = torch.zeros((len(batch), longest), dtype=torch.long)  # masked out, so any token will do
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for i, row in enumerate(batch):
        length = len(row.input_ids)
        ids[i, :length] = torch.tensor(row.input_ids)
        mask[i, :length] = 1
        labels[i, :length] = torch.tensor(row.labels)
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask.to(device),
        "labels": labels.to(device),
    }
