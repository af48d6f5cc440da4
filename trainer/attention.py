"""Attention that keeps packed rows apart by never looking across: each row's queries meet that row's keys alone.

The usual way is one mask over the whole packed sequence, which costs the square of its length and, on a CPU, half as
much time again as the model's matrices. Here the rows' boundaries (`cu_seq_lens_q`, which trl's collator gives to every layer)
cut the sequence, and each piece is plain causal attention. It replaces "sdpa" while a training step runs and only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from adapterhub.data import Encoded

NAME = "adapterhub_rows"
Apart = Literal["rows", "mask"]
"""How rows that follow each other are kept apart: attended to one by one, or by the model's own mask (or kernel)."""
_BEYOND = ("softcap", "s_aux", "position_bias")
"""What some models do inside attention and this can't."""
TOLERANCE = 1e-3
"""Largest relative difference of logits between rows alone and packed that rounding explains, in float32."""


def rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: `query` (1, heads, T, d), `key` and `value` (1, kv_heads, T, d) -> (1, T, heads, d).

    `cu_seq_lens_q` holds the boundaries of the rows, 0 and T among them. A sliding window narrower than a row is kept.
    Raises ValueError for what it can't do (`how_rows_stay_apart` asks before any training).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    beyond = [name for name in _BEYOND if options.get(name) is not None]
    if beyond or attention_mask is not None:
        raise ValueError(f"attention row by row can't do {', '.join(beyond) or 'masks'}")
    bounds = options.pop("cu_seq_lens_q").tolist()
    window = options.get("sliding_window")
    pieces = []
    for start, end in pairwise(bounds):
        part = slice(start, end)
        mask = (
            _window(end - start, window, query.device) if window and end - start > window else None
        )
        piece, _ = sdpa_attention_forward(
            module,
            query[:, :, part],
            key[:, :, part],
            value[:, :, part],
            mask,
            is_causal=mask is None,
            **{k: v for k, v in options.items() if k in ("dropout", "scaling")},
        )
        pieces.append(piece)
    return torch.cat(pieces, dim=1), None


def _window(length: int, window: int, device: torch.device) -> torch.Tensor:
    """(1, 1, T, T), True where a query may look: at itself and the `window` - 1 positions before."""
    place = torch.arange(length, device=device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window))[None, None]


@contextmanager
def rows_apart(model: Any) -> Iterator[None]:
    """While the block runs (forward *and* backward: checkpointing computes twice), `model` attends row by row."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    # The mask interface doesn't know the name, so that transformers builds no mask.
    ALL_ATTENTION_FUNCTIONS.register(NAME, rows_attention)
    configs = _configs(model)
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _configs(model: Any) -> list[Any]:
    """Every configuration object that a module of `model` asks for its attention."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return [c for c in found.values() if hasattr(c, "_attn_implementation")]


def how_rows_stay_apart(model: Any, rows: Sequence[Encoded]) -> Apart | None:
    """How `model` gives two rows packed together the logits it gives each alone: measured, not assumed.

    Row by row where that works, else by the mask that transformers makes from the positions. None: not at all, as with
    models whose layers carry a state along the sequence.
    """
    device = next(model.parameters()).device
    length = _telling_length(model.config)
    chosen = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)[:2]
    pair = [torch.tensor([row.input_ids[:length]], device=device) for row in chosen]
    if len(pair) < 2:
        pair *= 2
    cumulative = torch.tensor([0, pair[0].shape[1], pair[0].shape[1] + pair[1].shape[1]])
    inputs = {
        "input_ids": torch.cat(pair, dim=1),
        "position_ids": torch.cat(
            [torch.arange(ids.shape[1], device=device)[None] for ids in pair], dim=1
        ),
        "use_cache": False,
        **boundaries(cumulative),
    }
    with torch.no_grad():
        alone = torch.cat([model(input_ids=ids, use_cache=False).logits for ids in pair], dim=1)
        own = model.config._attn_implementation.startswith("flash")  # knows boundaries, and faster
        ways: tuple[Apart, ...] = ("mask",) if own else ("rows", "mask")
        for how in ways:
            if _same(model, inputs, alone, how):
                return how
    return None


def _telling_length(config: Any) -> int:
    """Tokens of a row that show what a model does: more than any window or chunk it looks through, where rows are so long."""
    text = config.get_text_config()
    spans = [getattr(text, key, None) for key in ("sliding_window", "attention_chunk_size")]
    return max([48, *(span + 32 for span in spans if isinstance(span, int))])


def _same(model: Any, inputs: dict[str, Any], alone: torch.Tensor, how: Apart) -> bool:
    try:
        with rows_apart(model) if how == "rows" else nullcontext():
            packed = model(**inputs).logits
    except (RuntimeError, ValueError, TypeError, KeyError):
        return False
    tolerance = TOLERANCE if alone.dtype == torch.float32 else 50 * TOLERANCE
    return bool((packed - alone).float().abs().max() <= tolerance * alone.float().abs().max())


def boundaries(cumulative: torch.Tensor) -> dict[str, Any]:
    """The rows' boundaries as transformers passes them to every layer; `cumulative` (rows + 1,) begins with 0."""
    bounds = cumulative.to(torch.int32)
    longest = int(bounds.diff().max())
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
