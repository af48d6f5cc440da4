"""What transformers says to the same tokens, with PEFT's adapter attached: an opinion that vLLM had no part in.

It computes in float32 on the CPU, with the base's weights rounded to the dtype that is served, and takes the adapters one
after the other. That needs the whole base in memory, so it is done for small ones, and said where it isn't.
"""

from __future__ import annotations

import gc
import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel, read_base
from adapterhub.errors import AdapterHubError
from adapterhub.evaluate.models import attached, hush_optional_kernels, load_model
from adapterhub.export.logits import CannotCompareError, parameters
from adapterhub.free_memory import free_on_host
from adapterhub.serve.verify.asking import Seen
from adapterhub.serve.verify.effect import Difference, Tolerance, difference, nearest
from adapterhub.serve.verify.probes import Tokens
from adapterhub.words import human_size

SECONDS = 60.0
"""What the comparison may take, as estimated, unless somebody asks for it."""
_PATIENCE = 2
"""Times SECONDS, after which a comparison that has begun is given up."""
_FLOPS = 1e10
"""Of a slow machine, in float32."""
_BYTES_A_PARAMETER = 4 + 2
"""A float32 model, and the stored one that it is read from."""
_SHARE = 0.5
"""Of the free memory: the server is there too, and grows."""


@dataclass(frozen=True)
class Agreement:
    """An adapter's log-probabilities beside transformers'. `expected`: its effect by transformers; `arrives`: the share of it seen."""

    off: Difference
    limit: float
    expected: Difference
    arrives: float
    verdict: str
    """Empty where they agree, else what it looks like."""
    cause: str = ""

    @property
    def told(self) -> bool:
        """Whether the effect is large enough that its loss would have been seen."""
        return self.expected.rms > 2 * self.limit


def expected(
    base: Path,
    folders: Mapping[str, Path | None],
    prompts: Sequence[Tokens],
    tokens: Sequence[Sequence[int]],
    dtype: str,
    *,
    always: bool,
    stop: threading.Event,
) -> dict[str, list[Seen]]:
    """By name, how likely `tokens` are after `prompts`, each with its own.

    Blocks for as long as it computes, or until `stop` is set. Raises CannotCompareError, with why, where it isn't to be had:
    unless `always`, a machine that turns out slower than estimated is given up, too.
    """
    deadline = math.inf if always else time.monotonic() + _PATIENCE * SECONDS

    def require_time() -> None:
        if stop.is_set() or time.monotonic() > deadline:
            raise CannotCompareError(
                f"it took more than the {_PATIENCE * SECONDS:g} seconds it may take here"
            )

    _require_possible(base, len(folders), sum(map(len, prompts)), always=always)
    hush_optional_kernels()
    try:
        with warnings.catch_warnings(action="ignore"):
            model = load_model(base, dtype, "cpu").float()
            found = {}
            for name, folder in folders.items():
                with attached(model, folder) as whole:
                    found[name] = _values(whole, prompts, tokens, require_time)
    except CannotCompareError:
        raise
    except Exception as error:  # each architecture fails in its own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CannotCompareError(f"transformers can't compute it: {reason}") from error
    finally:
        gc.collect()  # a model's modules refer to each other
    return found


def _require_possible(folder: Path, names: int, tokens: int, *, always: bool) -> None:
    for library in ("torch", "transformers", "peft"):
        if find_spec(library) is None:
            raise CannotCompareError(f'{library} isn\'t installed: pip install "adapterhub[train]"')
    try:
        base = read_base(folder)
    except AdapterHubError as error:
        raise CannotCompareError(f"the base can't be read here: {error.what}") from error
    if base.config.get("quantization_config"):
        raise CannotCompareError("the base is quantized, and every engine rounds it in its own way")
    if not always:
        _require_affordable(base, names, tokens)


def _require_affordable(base: BaseModel, names: int, tokens: int) -> None:
    count = parameters(base)
    need, free = _BYTES_A_PARAMETER * count, free_on_host()
    if free is not None and need > _SHARE * free:
        raise CannotCompareError(
            f"it takes {human_size(need)} of memory beside the server's, and {human_size(free)} are free"
        )
    seconds = 2 * count * tokens * names / _FLOPS
    if seconds > SECONDS:
        raise CannotCompareError(f"it would take about {seconds / 60:.0f} minutes on this machine")


def _values(
    model: Any,
    prompts: Sequence[Tokens],
    tokens: Sequence[Sequence[int]],
    require_time: Callable[[], None],
) -> list[Seen]:
    import torch

    found: list[Seen] = []
    with torch.inference_mode():
        for prompt, wanted in zip(prompts, tokens, strict=True):
            require_time()
            row = model(input_ids=torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
            found.append(dict(zip(wanted, row[list(wanted)].tolist(), strict=True)))
    if not all(math.isfinite(value) for seen in found for value in seen.values()):
        raise ValueError("it gives log-probabilities that are NaN or infinite")
    return found


def limit_of(base: Difference, tolerance: Tolerance) -> float:
    """How far from transformers an adapter may be: a little over twice what the plain base is, this dtype's noise here."""
    return max(tolerance.reference, 2.5 * base.rms)


def compare(
    name: str,
    said: Sequence[Seen],
    references: Mapping[str, Sequence[Seen]],
    base: str,
    tolerance: Tolerance,
    said_by_base: Sequence[Seen],
) -> Agreement:
    """Judges what the server said as `name` by what transformers says, of it and of the others (for who it might be)."""
    own, plain = references[name], references[base]
    limit = limit_of(distance(said_by_base, plain), tolerance)
    off = distance(said, own)
    effect = difference(own, plain)
    arrives = _arrives(said, said_by_base, own, plain)
    verdict = cause = ""
    if off.rms > limit:
        like = nearest(
            said,
            _shown(own, said),
            {other: _shown(seen, said) for other, seen in references.items() if other != name},
        )
        if like and like[1].rms <= limit and like[0] == base:
            verdict = "it answers as the plain base does"
            cause = "the server found none of its modules; its keys match nothing there"
        elif like and like[1].rms <= limit:
            verdict = f"it answers as '{like[0]}' does"
            cause = "the two names are crossed, or one stands for both"
        elif 0.05 < arrives < 0.95:
            verdict = f"{arrives:.0%} of its effect arrives"
            cause = "part of its modules or layers are missing, or it is scaled otherwise"
        else:
            verdict = "it answers as none of the adapters here does"
            cause = "the server holds other weights under this name, or another base"
    return Agreement(off, limit, effect, arrives, verdict, cause)


def distance(said: Sequence[Seen], reference: Sequence[Seen]) -> Difference:
    """How far what the server showed is from what transformers says of the same tokens."""
    return difference(said, _shown(reference, said))


def _shown(reference: Sequence[Seen], said: Sequence[Seen]) -> list[Seen]:
    """Of the reference, the tokens that the server showed."""
    return [
        {token: whole[token] for token in shown}
        for whole, shown in zip(reference, said, strict=True)
    ]


def _arrives(
    said: Sequence[Seen],
    said_by_base: Sequence[Seen],
    own: Sequence[Seen],
    plain: Sequence[Seen],
) -> float:
    """The share of the expected effect that is seen: the slope of the seen one over it, by least squares."""
    pairs = [
        (mine[token] - base[token], value - bare[token])
        for seen, bare, mine, base in zip(said, said_by_base, own, plain, strict=True)
        for token, value in seen.items()
        if token in bare
    ]
    size = sum(wanted * wanted for wanted, _ in pairs)
    return sum(wanted * found for wanted, found in pairs) / size if size else 1.0
