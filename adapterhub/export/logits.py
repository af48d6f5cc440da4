"""Does the exported model speak as the evaluated one? Its logits beside those of base + adapter attached by PEFT.

All are compared with PEFT's in float32, on the same tokens: the exported model in its own dtype, and in float32
arithmetic, where only the rounding of its weights is left; the adapter attached unmerged in the base's dtype, which is
what that dtype costs anyway; and the bare base, which is what the adapter does. PEFT reads the adapter's files by
itself, so this is also a check of how they were understood.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base import BaseModel
from adapterhub.errors import AdapterHubError, VerificationError
from adapterhub.evaluate.models import (
    hush_optional_kernels,
    load_model,
    load_tokenizer,
    quiet_libraries,
)
from adapterhub.free_memory import free_on_host
from adapterhub.lora.adapter import Adapter
from adapterhub.lora.rows import Rows, whole
from adapterhub.words import human_size

if TYPE_CHECKING:
    import torch

SMALL = 10**9
"""Parameters of a base up to which logits are compared unless somebody asks for it."""
PROMPTS = (
    "What is the capital of Japan, and how many people live there?",
    "Write a polite answer to a customer whose parcel arrived two days late and was damaged.",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3, 4]))\n",
    "The boiling point of water falls with altitude, because the pressure of the air falls. On a mountain of 3,000 m",
)
MOST_TOKENS = 64
"""Of each prompt."""
_RANDOM_TOKENS = (4, 32)
"""Sequences and their length, where the base has no tokenizer."""
_SEED = 0x5EED
_ORDER = 1e-4
"""Relative to the logits' own size: what the order of float32 sums may change."""
_BYTES_A_PARAMETER = 4 + 2
"""A float32 model, and the stored one that it is read from."""

_LOGITS = 3
"""Sets of logits, (positions, vocabulary) float32, that are held at a time."""
_ROWS = 16
"""Positions compared at a time, in float64."""


@dataclass(frozen=True)
class Distance:
    """How far some logits are from those of the float32 model with the adapter attached."""

    worst: float
    """The largest difference of two logits."""
    rms: float
    kl: float
    """Mean over the positions of KL(reference || this), in nats."""
    same_argmax: float
    """The share of positions where both would say the same token next."""


@dataclass(frozen=True)
class _Text:
    """What all models read. Sequences are filled up at their ends, where no earlier position looks."""

    tokens: torch.Tensor
    """(sequences, longest)."""
    lengths: Sequence[int]
    what: str


class CannotCompareError(Exception):
    """Why logits aren't compared, as a sentence."""


def compare(
    base: BaseModel,
    adapters: Sequence[tuple[Adapter, Path, float]],
    folder: Path,
    seen: Callable[[str], Rows | None] = lambda _: None,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """The distances of exported, attached and bare base, as JSON; or `{"skipped": why}`.

    Args:
        adapters: each with its PEFT folder and its weight in the sum that was exported.
        seen: the values of a tensor of the base, in rows as they are stored, where they aren't those stored.
        vocabulary: of the exported model, where it isn't the base's.

    Raises VerificationError where the exported model is further away than its dtype explains, or can't be loaded.
    """
    try:
        return _compare(
            base, adapters, folder, partial(_as_seen, base, seen, vocabulary), vocabulary
        )
    except CannotCompareError as why:
        return {"skipped": str(why)}


def _compare(
    base: BaseModel,
    adapters: Sequence[tuple[Adapter, Path, float]],
    folder: Path,
    as_seen: Callable[[Any], Any],
    vocabulary: int | None,
) -> dict[str, Any]:
    import torch

    _require_possible(base, adapters)
    hush_optional_kernels()
    dtype = base.main_dtype
    text = _text(base, vocabulary)
    with torch.inference_mode():
        with _attached(as_seen(_loaded(base.path, "float32")), adapters) as model:
            reference = _logits(model, text)
            with model.disable_adapter():
                bare = distance(_logits(model, text), reference)
        del model
        unmerged = Distance(0.0, 0.0, 0.0, 1.0)
        if dtype != "float32":
            gc.collect()  # a model's modules refer to each other
            with _attached(as_seen(_loaded(base.path, dtype)), adapters) as model:
                unmerged = distance(_logits(model, text), reference)
            del model
        gc.collect()
        rounding = distance(_logits(_exported(folder, "float32"), text), reference)
        exported = rounding
        if dtype != "float32":
            gc.collect()
            exported = distance(_logits(_exported(folder, dtype), text), reference)
    # Rounding touches some weights once; bfloat16 arithmetic touches every activation, and is 3 to 8 times as loud.
    allowed = unmerged.rms + _ORDER * float(reference.square().mean().sqrt())
    if not rounding.rms <= allowed:
        raise VerificationError(
            "The exported model doesn't speak as the base with the adapter attached.",
            why=f"Its logits are {rounding.rms:.3g} off (root mean square; worst {rounding.worst:.3g}), where rounding to"
            f" {dtype} explains {allowed:.3g}; the adapter moves them by {bare.rms:.3g}.",
            hint="Nothing was kept. adapterhub and PEFT read this adapter differently: please report it.",
        )
    return {
        "on": text.what,
        "tokens": sum(text.lengths),
        "dtype": dtype,
        "exported": _rounded(exported),
        "attached": _rounded(unmerged),
        "rounding": _rounded(rounding),
        "base": _rounded(bare),
        "share_lost": float(f"{rounding.rms / bare.rms:.4g}") if bare.rms > 0 else 0.0,
    }


def distance(found: torch.Tensor, reference: torch.Tensor) -> Distance:
    """Of logits (positions, vocabulary)."""
    worst, squares, kl, same = 0.0, 0.0, 0.0, 0
    for first in range(0, len(found), _ROWS):
        one, other = (some[first : first + _ROWS].double() for some in (found, reference))
        apart = one - other
        worst = max(worst, float(apart.abs().max()))
        squares += float(apart.square().sum())
        logs, wanted = one.log_softmax(-1), other.log_softmax(-1)
        kl += float((wanted.exp() * (wanted - logs)).sum())
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
    positions = len(found)
    return Distance(worst, (squares / found.numel()) ** 0.5, kl / positions, same / positions)


def _require_possible(base: BaseModel, adapters: Sequence[tuple[Adapter, Path, float]]) -> None:
    for library in ("transformers", "peft"):
        if find_spec(library) is None:
            raise CannotCompareError(f'{library} isn\'t installed: pip install "adapterhub[train]"')
    for adapter, _, weight in adapters:
        if adapter.facts.kind == "dora" and (len(adapters) > 1 or weight != 1.0):
            raise CannotCompareError(
                f"PEFT can't attach {adapter.label}, a DoRA adapter, in a weighted sum"
            )
    need = _BYTES_A_PARAMETER * parameters(base) + _LOGITS * 4 * MOST_TOKENS * len(PROMPTS) * (
        base.tensors[base.embedding].shape[0] if base.embedding else 0
    )
    free = free_on_host()
    if free is not None and need > free:
        raise CannotCompareError(
            f"it takes {human_size(need)} of memory, and {human_size(free)} are free"
        )


def parameters(base: BaseModel) -> int:
    """Values of all its tensors."""
    return sum(info.count for info in base.tensors.values())


def _text(base: BaseModel, vocabulary: int | None) -> _Text:
    """Prompts in tokens that base and exported model both know."""
    import torch

    size = base.tensors[base.embedding].shape[0] if base.embedding else 100
    size = size if vocabulary is None else min(size, vocabulary)
    try:
        with quiet_libraries():
            tokenizer = load_tokenizer(base.path)
        said = [tokenizer(prompt)["input_ids"][:MOST_TOKENS] for prompt in PROMPTS]
    except AdapterHubError:
        said = []
    rows = [torch.tensor([token for token in one if token < size]) for one in said]
    # Of a folder without a tokenizer transformers may make one that knows no word.
    if not rows or not all(len(row) for row in rows):
        random = torch.Generator().manual_seed(_SEED)
        count, length = _RANDOM_TOKENS
        tokens = torch.randint(size, (count, length), generator=random)
        return _Text(tokens, [length] * count, "random sequences")
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return _Text(tokens, [len(row) for row in rows], f"{len(rows)} prompts")


def _loaded(folder: Path, dtype: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return load_model(folder, dtype, "cpu")
    except Exception as error:  # each architecture fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CannotCompareError(f"transformers can't load it: {reason}") from error


def _as_seen(
    base: BaseModel, seen: Callable[[str], Rows | None], vocabulary: int | None, model: Any
) -> Any:
    """`model` with the values that the export sees, and room for its vocabulary."""
    parameters = dict(model.named_parameters())
    for name in base.tensors:
        rows = seen(name)
        if rows is None:
            continue
        if name not in parameters:
            raise CannotCompareError(f"transformers has another name for {name}")
        parameters[name].data.copy_(whole(rows).reshape(parameters[name].shape))
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    return model


def _exported(folder: Path, dtype: str) -> Any:
    try:
        return _loaded(folder, dtype)
    except CannotCompareError as error:
        raise VerificationError(
            "The exported model can't be loaded, and its base can.",
            why=str(error),
            hint="Nothing was kept. Please report it.",
        ) from error


@contextmanager
def _attached(model: Any, adapters: Sequence[tuple[Adapter, Path, float]]) -> Iterator[Any]:
    """`model` with all adapters active, each times its weight, as PEFT adds them up in its forward pass."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"adapter{place}" for place in range(len(adapters))]
    with warnings.catch_warnings(record=True) as said, quiet_libraries():
        warnings.simplefilter("always")
        wrapped: Any = PeftModel.from_pretrained(model, adapters[0][1], adapter_name=names[0])
        for name, (_, folder, _) in zip(names[1:], adapters[1:], strict=True):
            wrapped.load_adapter(str(folder), adapter_name=name)
    if any("missing adapter keys" in str(one.message) for one in said):
        raise CannotCompareError("PEFT doesn't find all tensors of the adapter by their names")
    wrapped.base_model.set_adapter(names)
    for layer in wrapped.modules():
        if isinstance(layer, LoraLayer):
            for name, (_, _, weight) in zip(names, adapters, strict=True):
                if name in layer.scaling:
                    layer.scaling[name] *= weight
    yield wrapped.eval()


def _logits(model: Any, text: _Text) -> torch.Tensor:
    """(positions of all sequences, vocabulary), float32."""
    import torch

    found = model(input_ids=text.tokens).logits
    rows = zip(found, text.lengths, strict=True)
    return torch.cat([row[:length].float() for row, length in rows])


def _rounded(found: Distance) -> dict[str, float]:
    return {key: float(f"{value:.4g}") for key, value in asdict(found).items()}
