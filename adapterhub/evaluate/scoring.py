"""The number itself: summed negative log-likelihood of the marked tokens, padding and batching without influence.

Only the positions whose next token is marked are projected to the vocabulary; on a small model with a large vocabulary
that is most of the work and nearly all of the memory.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from adapterhub.data.masking import IGNORED, Encoded
from adapterhub.errors import AdapterHubError

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 2048
"""Tokens in one forward pass, padding included: about 0.4 GB of activations for a 135M-parameter model in float32."""
_PADDING = 0.1
"""Of them, at most such a share."""


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
    """The sum of `score_rows` over `rows`."""
    return total(score_rows(model, rows, batch_tokens=batch_tokens, on_rows=on_rows))


def total(scores: Sequence[Score]) -> Score:
    """The score of all rows together."""
    return Score(
        math.fsum(one.nll for one in scores),
        sum(one.tokens for one in scores),
        sum(one.rows for one in scores),
    )


def score_rows(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int = BATCH_TOKENS,
    on_rows: Callable[[int], None] | None = None,
    known: Mapping[int, Score] = MappingProxyType({}),
    on_scores: Callable[[Mapping[int, Score]], None] = lambda _: None,
) -> list[Score]:
    """Scores each of `rows` under `model` as it is (its mode is not changed; dropout must be off), in their order.

    Rows of similar length go together, padded on the right under an attention mask, so a row's number does not depend
    on its neighbours. `on_rows` is called after each batch with the number of rows in it.

    Args:
        known: scores by the place of the row, of an earlier call; batches that it has whole aren't computed again.
        on_scores: called after each batch with its scores.

    Raises AdapterHubError when the model's output is not finite.
    """
    import torch

    device = next(model.parameters()).device
    found = dict(known)
    # A model that is cut over processes keeps what it gathers here for the training that goes on, so no inference_mode.
    with torch.no_grad():
        for places in _batches(rows, batch_tokens):
            if not all(place in found for place in places):
                inputs = _pad([rows[place] for place in places], device)
                batch = _nlls(model, inputs, inputs.pop("labels"))
                if not all(math.isfinite(nll) for nll, _ in batch):
                    raise not_finite()
                scored = zip(places, batch, strict=True)
                new = {place: Score(nll, tokens, 1) for place, (nll, tokens) in scored}
                on_scores(new)
                found |= new
            if on_rows:
                on_rows(len(places))
    return [found[place] for place in range(len(rows))]


def not_finite() -> AdapterHubError:
    """What is raised where likelihoods are no numbers."""
    return AdapterHubError(
        "The model's log-likelihood is not a number.",
        why="Its weights, or the adapter's, hold or produce infinite values.",
    )


def _nlls(
    model: torch.nn.Module, inputs: dict[str, Any], labels: torch.Tensor
) -> list[tuple[float, int]]:
    """For each row of the batch the summed negative log-likelihood of its marked tokens, and their number."""
    import torch
    import torch.nn.functional as F

    logits, targets, owners = _predicted(model, inputs, labels)
    each = F.cross_entropy(logits.float(), targets, reduction="none").double()
    sums = torch.zeros(len(labels), dtype=torch.float64, device=each.device)
    sums.index_add_(0, owners, each)
    counts = torch.bincount(owners, minlength=len(labels))
    return list(zip(sums.tolist(), counts.tolist(), strict=True))


def summed_nll(
    model: torch.nn.Module, inputs: dict[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood (a differentiable float32 scalar) of the marked tokens, and their number.

    Args:
        model: a causal language model of transformers, with or without adapters.
        inputs: what its forward takes, without labels: `input_ids` (B, T) and a mask or position ids.
        labels: (B, T) token ids, IGNORED where not marked.
    """
    import torch.nn.functional as F

    logits, targets, _ = _predicted(model, inputs, labels)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)


def _predicted(
    model: torch.nn.Module, inputs: dict[str, Any], labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the N marked tokens: the logits (N, V) that predict them, the tokens (N,), and the row (N,) each is in."""
    targets = labels[:, 1:]  # (B, T-1): position t predicts token t+1
    wanted = (targets != IGNORED).any(dim=0).nonzero().flatten()  # (P,) positions any row needs
    if _keeps_logits(model):
        logits = model(**inputs, logits_to_keep=wanted, use_cache=False).logits  # (B, P, V)
    else:
        logits = model(**inputs, use_cache=False).logits[:, wanted]
    marked = targets[:, wanted]  # (B, P)
    keep = marked != IGNORED
    return logits[keep], marked[keep], keep.nonzero()[:, 0]


def _keeps_logits(model: torch.nn.Module) -> bool:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _batches(rows: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    """Places of rows in order of length, in batches of at most `batch_tokens` padded tokens (a longer row goes alone).

    Padding is computed like any token, so rows whose lengths differ much aren't put together.
    """
    batch: list[int] = []
    tokens = 0
    for place in sorted(range(len(rows)), key=lambda place: len(rows[place].input_ids)):
        length = len(rows[place].input_ids)
        padded = length * (len(batch) + 1)
        wasted = padded - (tokens + length)
        if batch and (padded > batch_tokens or wasted > _PADDING * padded):
            yield batch
            batch, tokens = [], 0
        batch.append(place)
        tokens += length
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
