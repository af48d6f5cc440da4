"""Is the written model base + delta? Its weights are read again and compared with a second computation, in float64.

A changed value must be the float64 sum rounded once to its dtype. The writer adds in float32, so where the sum lies
nearly in the middle between two values either is right: beyond half a unit in the last place no more is allowed than
float32 arithmetic may err by. Small models are read whole, of large ones a seeded sample of the rows of every tensor.

Rounding itself has a price, the *bake loss* ||round(W + ΔW) - (W + ΔW)|| / ||ΔW||: of a delta that is small beside its
weights, little survives in a narrow dtype.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapterhub.base import BaseModel, read_base
from adapterhub.errors import FormatError, NotFoundError, VerificationError
from adapterhub.export.exact import FLOAT32, Delta, Deltas, Exact, Indices, Values
from adapterhub.export.plan import ExportPlan, Target
from adapterhub.export.views import flat
from adapterhub.formats.safetensors import TORCH_NAMES, TensorFile, TensorInfo
from adapterhub.lora.parallel import for_each
from adapterhub.lora.rows import Rows, blocks
from adapterhub.words import counted, some

MOST_VALUES = 2**24
"""Changed values that are all computed again; of more, a sample of about as many. A second or two."""
MOST_BYTES = 2**26
"""Untouched bytes that are all compared; of more, a sample of about as many."""
LEAST_ROWS = 4
"""Of every changed tensor, however large the model."""
_CHUNK = 2**17
"""Values computed at a time: a megabyte of float64."""
_BLOCK = 2**16
"""Bytes of an untouched tensor that are compared together."""
_HALF = 0.5 * (1 + 1e-9)
"""Units in the last place that one rounding may cost, and a little for float64's own."""
_SEED = 0x5EED
_PRECISION = {"F32": (23, -126), "BF16": (7, -126), "F16": (10, -14)}
"""Stored bits of the fraction, and the smallest exponent of a normal number."""


@dataclass(frozen=True)
class Changed:
    """What was found in one changed tensor."""

    name: str
    rows: int
    of_rows: int
    values: int
    error: float
    """The largest distance from the float64 sum, less what float32 may err by, in units in the last place."""
    wrong: str
    """Where it is further away than rounding explains, in words; empty where nowhere."""
    lost: float
    """||round(W + ΔW) - (W + ΔW)||² over the rows compared."""
    size: float
    """||ΔW||² over the same rows."""

    @property
    def bake_loss(self) -> float:
        """0 where nothing is added."""
        return math.sqrt(self.lost / self.size) if self.size > 0 else 0.0


@dataclass(frozen=True)
class Verified:
    """The weights of a model that is what it should be."""

    dtype: str
    """Of the changed tensors; several are joined by commas."""
    independent: bool
    """Whether the deltas were computed from the adapters, and not taken from the merge."""
    changed: Sequence[Changed]
    replaced: int
    """Tensors that whole trained ones took the place of, and that hold those."""
    untouched: int
    """Tensors."""
    compared: int
    """Bytes of them that were compared."""
    of_bytes: int

    @property
    def bake_loss(self) -> float:
        """Over all tensors, each counted by its own size however many of its rows were read."""
        shares = [one.of_rows / max(1, one.rows) for one in self.changed]
        pairs = list(zip(self.changed, shares, strict=True))
        size = sum(one.size * share for one, share in pairs)
        return math.sqrt(sum(one.lost * share for one, share in pairs) / size) if size > 0 else 0.0

    @property
    def worst(self) -> Changed:
        """The tensor with the largest bake loss."""
        return max(self.changed, key=lambda one: one.bake_loss)

    def document(self) -> dict[str, Any]:
        """As it is recorded beside the model."""
        return {
            "weights": {
                "tensors": len(self.changed),
                "rows": sum(one.rows for one in self.changed),
                "of_rows": sum(one.of_rows for one in self.changed),
                "dtype": self.dtype,
                "worst_error_ulp": round(max(one.error for one in self.changed), 4),
                "deltas": "from the adapters" if self.independent else "from the merge",
            },
            "replaced": {"tensors": self.replaced},
            "untouched": {
                "tensors": self.untouched,
                "bytes": self.compared,
                "of_bytes": self.of_bytes,
            },
            "bake_loss": {
                "total": round(self.bake_loss, 6),
                "worst": round(self.worst.bake_loss, 6),
                "worst_tensor": self.worst.name,
                "tensors": {one.name: round(one.bake_loss, 6) for one in self.changed},
            },
        }


def verify(
    plan: ExportPlan,
    deltas: Deltas,
    folder: Path,
    *,
    everything: bool = False,
    workers: int | None = None,
    advance: Callable[[], None] = lambda: None,
    seen: Callable[[str], Rows | None] = lambda _: None,
) -> Verified:
    """Reads the model in `folder` again and compares it with base and deltas.

    Args:
        everything: reads every value, however large the model.
        advance: called after every tensor (`len(sources_of(plan))` times).
        seen: gives the values of a tensor of the base, in rows as they are stored, where they aren't those stored.

    Raises VerificationError where it isn't what the plan says.
    """
    written = _read(folder)
    sources = sources_of(plan)
    _require_layout(plan, written, sources)
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(TensorFile(path))
            for path in dict.fromkeys((*plan.base.shards, *written.shards))
        }
        work = _Work(plan.base, written, files, deltas, everything, seen)
        work.plan(
            [source for name, source in sources.items() if name not in plan.targets],
            [target.source for target in plan.targets.values()],
        )

        def check(name: str) -> Changed | int | None:
            target = plan.targets.get(name)
            if target is None:
                return work.compare(name, sources[name])
            return work.compute(name, target)

        found = for_each(list(sources), check, workers=workers, done=advance)
    _require_same([name for name, one in zip(sources, found, strict=True) if one is None], plan)
    changed = [one for one in found if isinstance(one, Changed)]
    whole = plan.replaced.names.keys() - plan.targets.keys()
    _require_right([one for one in changed if one.wrong], len(changed))
    dtypes = sorted({TORCH_NAMES[written.tensors[one.name].dtype] for one in changed})
    return Verified(
        dtype=", ".join(dtypes),
        independent=deltas.independent,
        changed=changed,
        replaced=len(whole),
        untouched=len(found) - len(changed) - len(whole),
        compared=sum(one for one in found if isinstance(one, int)),
        of_bytes=work.of_bytes,
    )


def sources_of(plan: ExportPlan) -> dict[str, str]:
    """Every tensor of the model to come, and the base's tensor that it is made of."""
    return {name: plan.source_of(name) for name in plan.tensors}


@dataclass
class _Work:
    """Two models that are open, and how much of them is read."""

    base: BaseModel
    written: BaseModel
    files: Mapping[Path, TensorFile]
    deltas: Deltas
    everything: bool
    seen: Callable[[str], Rows | None]
    of_bytes: int = 0
    _share_of_bytes: float = 1.0
    _share_of_values: float = 1.0

    def plan(self, untouched: Iterable[str], changed: Iterable[str]) -> None:
        """Decides how much is read, from the base's tensors that both are made of."""
        infos = [self.base.tensors[source] for source in untouched]
        self.of_bytes = sum(info.end - info.start for info in infos)
        values = sum(self.base.tensors[source].count for source in changed)
        self._share_of_bytes = self._share(MOST_BYTES, self.of_bytes)
        self._share_of_values = self._share(MOST_VALUES, values)

    def _share(self, most: int, total: int) -> float:
        return 1.0 if self.everything or total <= most else most / total

    def compare(self, name: str, source: str) -> int | None:
        """How many bytes were compared; None where one differs."""
        one, other = self.base.tensors[source], self.written.tensors[name]
        before, after = self.files[one.path].raw(source), self.files[other.path].raw(name)
        rows = self.seen(name)
        size, compared = len(after), 0
        blocks = -(-size // _BLOCK)
        for block in _sample(name, blocks, self._share_of_bytes, least=2):
            part = slice(int(block) * _BLOCK, min(size, (int(block) + 1) * _BLOCK))
            wanted = bytes(before[part]) if rows is None else _bytes_of(rows, part, other.dtype)
            if wanted != bytes(after[part]):
                return None
            compared += part.stop - part.start
        return compared

    def compute(self, name: str, target: Target) -> Changed:
        delta = self.deltas.of(target.module)
        written = self.written.tensors[name]
        info = replace(self.base.tensors[target.source], shape=written.shape)
        outputs = delta.by_outputs or not target.transposed
        axis = 0 if outputs != target.transposed else 1  # along which the stored tensor is read
        count = info.shape[axis]
        found = _Found(written.dtype)
        rows = self.seen(name)
        compared = 0
        for indices in _chunks(name, delta, info, axis, self._share_of_values):
            base = self._take(info, axis, indices) if rows is None else _taken(rows, axis, indices)
            exact = delta.at(indices, base, outputs=outputs)
            found.add(indices, base, exact, self._take(written, axis, indices))
            compared += len(indices)
        return Changed(
            name=name,
            rows=compared,
            of_rows=count,
            values=compared * (info.count // count),
            error=found.error,
            wrong=found.words("row" if axis == 0 else "column"),
            lost=found.lost,
            size=found.size,
        )

    def _take(self, info: TensorInfo, axis: int, indices: Indices) -> Values:
        """Rows or columns of a stored matrix, (selected, others)."""
        height, width = info.shape
        if axis == 0:
            places = indices[:, None] * width + np.arange(width)
        else:
            places = indices[:, None] + np.arange(height) * width
        values: Values = self.files[info.path].take(info.name, places).astype(np.float64)
        return values


@dataclass
class _Found:
    """What the chunks of one tensor add up to."""

    dtype: str
    lost: float = 0.0
    size: float = 0.0
    error: float = 0.0
    at: tuple[int, int] = (0, 0)
    there: float = 0.0
    wanted: float = 0.0

    def add(self, indices: Indices, base: Values, exact: Exact, written: Values) -> None:
        wanted = base + exact.values
        slack = exact.slack
        if self.dtype != "F32":  # the sum itself is rounded to float32 first
            slack = slack + FLOAT32 * np.abs(wanted)
        distance = np.abs(written - wanted)
        unit = units(np.abs(wanted) + slack, self.dtype)
        self.lost += float(np.square(distance).sum())
        self.size += float(np.square(exact.values).sum())
        excess = (distance - slack) / unit
        place = int(np.argmax(excess))  # NaN is the largest
        worst = float(excess.flat[place])
        if not worst <= self.error:
            row, column = divmod(place, base.shape[1])
            self.error, self.at = worst, (int(indices[row]), column)
            self.there, self.wanted = float(written.flat[place]), float(wanted.flat[place])

    def words(self, along: str) -> str:
        if self.error <= _HALF:
            return ""
        across = "column" if along == "row" else "row"
        return (
            f"{along} {self.at[0]}, {across} {self.at[1]} holds {self.there:.9g} and must be {self.wanted:.9g}"
            f" rounded to {TORCH_NAMES[self.dtype]}, {self.error:.3g} units in the last place away"
        )


def units(magnitudes: Values, dtype: str) -> Values:
    """The distance between neighbours of `dtype` at these magnitudes (Goldberg 1991, section 1.2: one ulp)."""
    bits, least = _PRECISION[dtype]
    exponents = np.where(magnitudes > 0, np.frexp(magnitudes)[1] - 1, least)
    found: Values = np.ldexp(1.0, np.maximum(exponents, least) - bits)
    return found


def _bytes_of(rows: Rows, part: slice, dtype: str) -> bytes:
    """The bytes in `part` of a tensor stored as `dtype`, from its values."""
    wanted: torch.dtype = getattr(torch, TORCH_NAMES[dtype])
    values = flat(rows, part.start // wanted.itemsize, part.stop // wanted.itemsize, wanted)
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _taken(rows: Rows, axis: int, indices: Indices) -> Values:
    """Rows or columns of a matrix, (selected, others)."""
    if axis == 1:
        tiles = [tile.cpu().numpy()[:, indices] for _, tile in blocks(rows)]
        columns: Values = np.concatenate(tiles).T.astype(np.float64)
        return columns
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    found = torch.empty(len(indices), rows.shape[1], device=rows.device)
    at = 0
    for run in runs:
        rows.fill(int(run[0]), int(run[-1]) + 1, found[at : at + len(run)])
        at += len(run)
    values: Values = found.cpu().numpy().astype(np.float64)
    return values


def _chunks(
    name: str, delta: Delta, info: TensorInfo, axis: int, share: float
) -> Iterator[Indices]:
    """The rows or columns to compute, a megabyte at a time."""
    count = info.shape[axis]
    stretches = delta.stretches(count)
    if stretches is not None:
        for place in _sample(name, len(stretches), share, least=1):
            yield np.arange(*stretches[int(place)])
        return
    chosen = _sample(name, count, share, least=LEAST_ROWS)
    step = max(1, _CHUNK // max(1, info.count // max(1, count)))
    for first in range(0, len(chosen), step):
        yield chosen[first : first + step]


def _sample(name: str, count: int, share: float, *, least: int) -> Indices:
    """About `share` of the places 0 to count - 1 in order, the first and the last among them; the same every time."""
    wanted = max(least, math.ceil(share * count))
    if wanted >= count:
        return np.arange(count)
    random = np.random.default_rng([_SEED, zlib.crc32(name.encode())])
    found = random.choice(count, wanted, replace=False)
    return np.unique(np.append(found, [0, count - 1]) if wanted > 1 else found)


def _read(folder: Path) -> BaseModel:
    """The written model as a loader finds it: by its index, with every header checked."""
    try:
        return read_base(folder)
    except (FormatError, NotFoundError) as error:
        raise VerificationError(
            "The exported model can't be read again.", why=str(error), hint=_HINT
        ) from error


_HINT = "Nothing was kept. Export again; if it comes out the same, the disk or adapterhub is at fault: please report it."


def _require_layout(plan: ExportPlan, written: BaseModel, sources: Mapping[str, str]) -> None:
    """VerificationError where tensors are missing or too many, or have other shapes or dtypes than the base's."""
    missing = sorted(sources.keys() - written.tensors.keys())
    surplus = sorted(written.tensors.keys() - sources.keys())
    other = [
        name
        for name in sorted(sources.keys() & written.tensors.keys())
        if _kind(written.tensors[name]) != _kind(plan.tensors[name])
    ]
    wrong = {"missing": missing, "too many": surplus, "of another shape or dtype": other}
    words = [
        f"{some(names)} {'is' if len(names) == 1 else 'are'} {how}"
        for how, names in wrong.items()
        if names
    ]
    if plan.untied and written.tied:
        words.append("its configuration ties the head to the embedding again")
    if words:
        raise VerificationError(
            "The exported model doesn't have the tensors it should have.",
            why="; ".join(words) + ".",
            hint=_HINT,
        )


def _kind(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
    return info.dtype, info.shape


def _require_same(differ: Sequence[str], plan: ExportPlan) -> None:
    if differ:
        raise VerificationError(
            f"{counted(len(differ), 'tensor')} of the exported model should be the base's own, and differ.",
            why=f"They are {some(differ)}; the base is {plan.base.label}.",
            hint=_HINT,
        )


def _require_right(wrong: Sequence[Changed], total: int) -> None:
    if wrong:
        first = wrong[0]
        raise VerificationError(
            f"{len(wrong)} of {total} changed tensors of the exported model are not base + adapter.",
            why=f"{first.name}: {first.wrong}."
            + (f" Also wrong: {some([one.name for one in wrong[1:]])}." if wrong[1:] else ""),
            hint=_HINT,
        )
