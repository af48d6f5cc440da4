"""As what the base's weights are seen: as they are stored, or as the model computed with that the adapter was trained on.

QLoRA trains an adapter on a base in 4 bits. Added to the original weights it is another model than the one that was
trained: at a delta of norm 15.6 it is 8.0 away, added to the dequantised weights 0.24. So `trained` gives the weights
dequantised, all quantised linears of them, whether the adapter touches them or not. They are computed by rows from the
stored ones, as bitsandbytes does it while transformers loads; the model in 4 bits never comes to be.

`original` is what a server has that adds the adapter to the base while it runs, and what `eval` measures. It is the
default: an export then is the model that was scored and served before. Nor is what was trained better for being nearer
to the training: on a model of 135M the held-out perplexity was 3.03 in the original weights, 3.34 in the trained ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from adapterhub.base import BaseModel
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.export.quantize.fourbit import (
    BLOCK,
    KINDS,
    STRETCH,
    FourBit,
    blocks_of,
    dequantise,
    largest,
    quantise,
    settle,
)
from adapterhub.export.quantize.linears import Linear, Loading, read_loading
from adapterhub.formats.safetensors import TORCH_NAMES
from adapterhub.lora.rows import Held, Rows, whole
from adapterhub.merge.weights import BaseWeights, opened_base
from adapterhub.store import Resolved, Store
from adapterhub.tolerant import inner, mapping

ORIGINAL, TRAINED = "original", "trained"
_KEPT = 8
"""Tensors whose scales are kept: a few threads are within one each."""


@dataclass(frozen=True)
class Chosen:
    """The view of an export: `quantised` is None for the original weights.

    `trained` is what the adapters say they were trained on; None where they say nothing, or not the same. `known` are
    the labels of those that say it.
    """

    quantised: FourBit | None
    trained: FourBit | None = None
    asked: bool = True
    known: tuple[str, ...] = ()

    @property
    def remark(self) -> str | None:
        """What to say of a view that somebody may want otherwise."""
        if self.quantised is not None and self.known and self.quantised.kind != _kind(self.trained):
            return f"{' and '.join(self.known)} says something else of what it was trained on; --base-view trained goes by that"
        if self.asked or not self.known:
            return None
        if self.trained is None:
            return (
                f"{' and '.join(self.known)} was trained on the base in 4 bits; all are added to the original weights,"
                " as `eval` and `serve` have them"
            )
        return (
            f"trained on the base as {self.trained.kind}, and added to the original weights, as `eval` and `serve` have"
            " it; --base-view trained adds it to the weights it was trained on"
        )

    def record(self) -> dict[str, Any]:
        """What is attested."""
        return {
            "view": ORIGINAL if self.quantised is None else TRAINED,
            "quantization": _document(self.quantised),
            "trained_on": _document(self.trained),
        }


def choose_view(
    store: Store, parents: Sequence[Resolved], base: BaseModel, asked: str | None
) -> Chosen:
    """The view to bake into: `asked`, and where nothing is asked the original weights.

    Args:
        asked: original; trained, which needs to be known of every parent; or, for adapters that don't say it, what they
            were trained on: nf4 or fp4, or nf4-single or fp4-single without double quantisation.

    Raises UsageError for another word, IncompatibleError for `trained` where it isn't known or parents differ.
    """
    found = {parent.label: trained_on(store, parent.digest, base) for parent in parents}
    known = tuple(label for label, how in found.items() if how is not None)
    kinds = set(found.values())
    trained = kinds.pop() if len(kinds) == 1 else None
    if asked in (None, ORIGINAL):
        return Chosen(None, trained, asked is not None, known)
    if asked == TRAINED:
        if trained is None:
            raise _unknown(found)
        return Chosen(trained, trained, known=known)
    kind, _, single = asked.partition("-")
    named = KINDS.get(kind)
    if named is None or single not in ("", "single"):
        raise UsageError(
            f"'{asked}' is no view of a base.",
            why="It is original or trained; or, where the adapters don't say it, nf4, nf4-single, fp4 or fp4-single.",
            hint="Leave out --base-view for the original weights.",
        )
    return Chosen(FourBit(named, not single, stored_dtype(base)), trained, known=known)


def _kind(how: FourBit | None) -> str | None:
    return None if how is None else how.kind


def _unknown(found: Mapping[str, FourBit | None]) -> IncompatibleError:
    if len(set(found.values())) == 1:
        return IncompatibleError(
            f"It isn't known that {', '.join(found)} was trained on a quantised base.",
            why="Neither its manifest nor its training says so.",
            hint="If you know it, say which: --base-view nf4    Else: --base-view original",
        )
    return IncompatibleError(
        "The adapters were trained on different forms of the base.",
        why="; ".join(f"{label}: {_words(how)}" for label, how in found.items()) + ".",
        hint="--base-view original, or one of them: --base-view nf4",
    )


def trained_on(store: Store, digest: str, base: BaseModel) -> FourBit | None:
    """The 4 bits that an adapter was trained on, as its manifest or its training tells; None where neither does."""
    claimed = store.manifest(digest).base.trained_on or {}
    told: list[tuple[Any, Any]] = [(claimed.get("quantization"), None)]
    for attestation in store.attestations(digest):
        body = attestation.body
        if attestation.type == "provenance" and body.get("event") == "trained":
            where = inner(inner(body, "hardware"), "device").get("dtype")
            told.append((inner(body, "base").get("quantization"), where))
    for quantization, dtype in told:
        stated = mapping(quantization)
        if (kind := KINDS.get(str(stated.get("type")))) is not None:
            double = bool(stated.get("double_quantization", True))
            named = stated.get("dtype", dtype)
            known = named if named in TORCH_NAMES.values() else stored_dtype(base)
            return FourBit(kind, double, str(known))
    return None


def stored_dtype(base: BaseModel) -> str:
    """The torch name of the dtype that most of the base's values have: what it is loaded as where nothing is said."""
    counts: dict[str, int] = {}
    for info in base.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.count
    usable = {name: counts.get(name, 0) for name in ("BF16", "F16", "F32")}
    return TORCH_NAMES[max(usable, key=lambda name: usable[name])]


@contextmanager
def opened_view(chosen: Chosen, base: BaseModel, device: torch.device) -> Iterator[BaseView]:
    """The base's weights as `chosen` sees them, while the block runs.

    UnsupportedError for a base that is quantised itself, or whose linears transformers puts together from others;
    MissingDependencyError where bitsandbytes is needed and isn't there.
    """
    with opened_base(base, device) as weights:
        if chosen.quantised is None:
            yield BaseView(weights.model, weights.files, device)
        else:
            loading = read_loading(base)
            yield TrainedView(weights.model, weights.files, device, chosen.quantised, loading)


class BaseView(BaseWeights):
    """A base's weights as they are stored."""

    def changes(self, name: str) -> bool:
        """Whether this tensor is seen with other values than are stored."""
        return False

    def seen(self, name: str) -> Rows | None:
        """The values of a tensor in rows as they are stored; None where they are those stored."""
        return self.rows(name) if self.changes(name) else None


@dataclass(frozen=True)
class TrainedView(BaseView):
    """A base's weights as a model in 4 bits computes with them."""

    how: FourBit
    loading: Loading
    _scales: _Kept = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scales", _Kept())

    def changes(self, name: str) -> bool:
        return name in self.loading.linears or self._narrowed(name)

    def rows(self, name: str, *, transposed: bool = False) -> Rows:
        linear = self.loading.linears.get(name)
        if linear is None:
            stored = super().rows(name, transposed=transposed)
            return _Rounded(stored, self.how.torch_dtype) if self._narrowed(name) else stored
        seen = _Dequantised(super().rows(name, transposed=linear.transposed), self, linear)
        if transposed == linear.transposed:
            return seen
        # Conv1D, whose blocks run along what is stored as columns. Only GPT-2 and its like have it, where the largest
        # weight is 40 MB as float32.
        return Held(whole(seen).T.contiguous())

    def scales(self, linear: Linear, stored: Rows) -> torch.Tensor:
        """The float32 scales of a tensor as they are read back, (values / 64,)."""
        return self._scales.of(linear.tensor, lambda: self._read_scales(stored))

    def _read_scales(self, stored: Rows) -> torch.Tensor:
        count = stored.shape[0] * stored.shape[1]
        found = [
            largest(
                flat(stored, first, min(count, first + STRETCH), self.how.torch_dtype),
                self.how.kind,
            )
            for first in range(0, count, STRETCH)
        ]
        return settle(found, self.how).read_back()

    def _narrowed(self, name: str) -> bool:
        info = self.model.tensors[name]
        if info.dtype == "F32":
            narrow = self.how.dtype != "float32"
        else:  # of two formats of 16 bits neither holds the other
            narrow = info.dtype in ("F16", "BF16") and self.how.dtype not in (
                "float32",
                TORCH_NAMES[info.dtype],
            )
        return narrow and not self.loading.wide.intersection(name.split("."))


class _Dequantised:
    """A linear's weight (out, in) after 4 bits."""

    def __init__(self, stored: Rows, view: TrainedView, linear: Linear) -> None:
        self._stored, self._view, self._linear = stored, view, linear
        self.shape, self.device = stored.shape, stored.device

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        how, width = self._view.how, self.shape[1]
        begin = first * width // BLOCK * BLOCK
        end = min(self.shape[0] * width, blocks_of(last * width) * BLOCK)
        codes, scales = quantise(flat(self._stored, begin, end, how.torch_dtype), how.kind)
        if how.double:
            of_all = self._view.scales(self._linear, self._stored)
            scales = of_all[begin // BLOCK : blocks_of(end)]
        values = dequantise(codes, scales, end - begin, how)
        out.copy_(values[first * width - begin : last * width - begin].view(out.shape))


class _Rounded:
    """Weights cast to another dtype while they are loaded."""

    def __init__(self, stored: Rows, dtype: torch.dtype) -> None:
        self._stored, self._dtype = stored, dtype
        self.shape, self.device = stored.shape, stored.device

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self._stored.fill(first, last, out)
        out.copy_(out.to(self._dtype))


def flat(rows: Rows, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
    """Values [first, last) of a matrix read row by row, in `dtype`; the rows they lie in are read."""
    width = rows.shape[1]
    top, bottom = first // width, -(-last // width)
    room = torch.empty(bottom - top, width, device=rows.device)
    rows.fill(top, bottom, room)
    return room.flatten()[first - top * width : last - top * width].to(dtype)


class _Kept:
    """The scales of the tensors that were asked for last. Threads that ask for the same wait for the one that computes."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._computing: dict[str, threading.Lock] = {}
        self._changing = threading.Lock()

    def of(self, name: str, compute: Any) -> torch.Tensor:
        with self._changing:
            turn = self._computing.setdefault(name, threading.Lock())
        with turn:
            with self._changing:
                if name in self._found:
                    self._found.move_to_end(name)
                    return self._found[name]
            scales: torch.Tensor = compute()
            with self._changing:
                self._found[name] = scales
                if len(self._found) > _KEPT:
                    self._computing.pop(self._found.popitem(last=False)[0], None)
            return scales


def _document(how: FourBit | None) -> dict[str, Any] | None:
    if how is None:
        return None
    return {
        "method": "bitsandbytes",
        "type": how.kind,
        "bits": 4,
        "double_quantization": how.double,
        "dtype": how.dtype,
    }


def _words(how: FourBit | None) -> str:
    if how is None:
        return "no quantised one is known"
    return (
        f"{how.kind}{' with double quantisation' if how.double else ''}, read back in {how.dtype}"
    )
