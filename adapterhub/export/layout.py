"""What the written shards look like: their headers, and for every run of their bytes where it comes from.

A shard keeps the names, the order and the metadata of its base shard. Where nothing is added or reshaped its header is the
base's own, byte for byte; otherwise it is filled up so that data lies as far into a disk block as before, and a file
system that can share blocks still can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.errors import FormatError
from adapterhub.export.plan import ExportPlan
from adapterhub.formats.safetensors import TensorFile, TensorInfo, encode_header

DISK_BLOCK = 4096
"""Bytes; what file systems share blocks by."""
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a value, of the dtypes that can be computed with."""


@dataclass(frozen=True)
class Stored:
    """Bytes [start, start + size) of a file, as they are."""

    path: Path
    start: int
    size: int


@dataclass(frozen=True)
class Summed:
    """A stored tensor, widened to float32, with the delta of `module` added; rounded to the dtype it is written in.

    Without a module nothing is added: the values are only rounded. `transposed` where the tensor is stored (in, out).
    """

    info: TensorInfo
    module: str | None
    transposed: bool = False


Origin = Stored | Summed


def path_of(origin: Origin) -> Path:
    """The file that is read."""
    return origin.path if isinstance(origin, Stored) else origin.info.path


@dataclass(frozen=True)
class Tensor:
    """A tensor of the result: the parts it is made of follow each other, each of whole rows."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Origin, ...]

    @property
    def size(self) -> int:
        return sum(_size(part, self.dtype) for part in self.parts)


@dataclass(frozen=True)
class Piece:
    """Bytes [start, start + size) of a shard, which hold `dtype` values and come from `origin`."""

    name: str
    dtype: str
    start: int
    size: int
    origin: Origin


@dataclass(frozen=True)
class Shard:
    """A file of the result."""

    name: str
    header: bytes
    tensors: tuple[Tensor, ...]
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(piece.size for piece in self.pieces)


def layouts(
    plan: ExportPlan, changes: Callable[[str], bool] = lambda _: False
) -> tuple[Shard, ...]:
    """The shards of the result, one for each of the base's. FormatError where the base's files aren't sound.

    `changes` says which tensors of the base come out with other values than are stored, though nothing is added.
    """
    found = []
    for path in plan.base.shards:
        with TensorFile(path) as source:
            mine = [info for info in plan.tensors.values() if info.path == path]
            # A head that is new follows what the base has.
            mine.sort(key=lambda info: (info.name not in source.infos, info.start, info.end))
            tensors = [_from_base(plan, info, changes) for info in mine]
            found.append(lay_out(path.name, tensors, source))
    return tuple(found)


def lay_out(name: str, tensors: Sequence[Tensor], like: TensorFile) -> Shard:
    """A shard of these tensors, in this order, with the metadata of `like`."""
    for tensor in tensors:
        count = math.prod(tensor.shape)
        if tensor.dtype in WIDTHS and tensor.size != count * WIDTHS[tensor.dtype]:
            raise ValueError(f"the parts of {tensor.name} don't add up to {list(tensor.shape)}")
    header = _header(tensors, like)
    pieces, position = [], len(header)
    for tensor in tensors:
        for part in tensor.parts:
            size = _size(part, tensor.dtype)
            if size:
                pieces.append(Piece(tensor.name, tensor.dtype, position, size, part))
            position += size
    return Shard(name, header, tuple(tensors), tuple(_joined(pieces)))


def weight_map(shards: Iterable[Shard]) -> dict[str, str]:
    """Tensor -> the shard that holds it, as an index tells it."""
    return {tensor.name: shard.name for shard in shards for tensor in shard.tensors}


def require_true_index(index: Mapping[str, str], plan: ExportPlan) -> None:
    """FormatError where the base's index looks for a tensor in the wrong shard: a loader would not find it."""
    for name, info in plan.base.tensors.items():
        if index.get(name) != info.path.name:
            raise FormatError(
                f"The index of {plan.base.label} is wrong.",
                why=f"It looks for {name} in {index.get(name)}; the tensor is in {info.path.name}.",
                hint="Fetch the model again.",
            )


def _from_base(plan: ExportPlan, info: TensorInfo, changes: Callable[[str], bool]) -> Tensor:
    target = plan.targets.get(info.name)
    if target is None and changes(info.name):
        origin: Origin = Summed(info, None)
    elif target is None:
        origin = Stored(info.path, info.start, info.end - info.start)
    else:
        origin = Summed(info, target.module, target.transposed)
    return Tensor(info.name, info.dtype, info.shape, (origin,))


def _size(part: Origin, dtype: str) -> int:
    return part.size if isinstance(part, Stored) else part.info.count * WIDTHS[dtype]


def _header(tensors: Sequence[Tensor], like: TensorFile) -> bytes:
    """The base's own where it fits, else a new one, filled up with spaces, which the format allows."""
    stored = sorted(like.infos.values(), key=lambda info: (info.start, info.end))
    origin = stored[0].start if stored else like.path.stat().st_size
    if [(t.name, t.dtype, t.shape, t.size) for t in tensors] == [
        (info.name, info.dtype, info.shape, info.end - info.start) for info in stored
    ]:
        with like.path.open("rb") as file:
            return file.read(origin)
    rows = [(tensor.name, tensor.dtype, tensor.shape, tensor.size) for tensor in tensors]
    header = encode_header(rows, like.metadata)
    text = header[8:] + b" " * ((origin - len(header)) % DISK_BLOCK)
    return len(text).to_bytes(8, "little") + text


def _joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The same bytes in fewer pieces: stored ones that follow each other on both sides are one."""
    last: Piece | None = None
    for piece in pieces:
        if last is not None and _follows(last, piece):
            assert isinstance(last.origin, Stored)
            size = last.size + piece.size
            last = replace(last, size=size, origin=replace(last.origin, size=size))
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _follows(one: Piece, other: Piece) -> bool:
    return (
        isinstance(one.origin, Stored)
        and isinstance(other.origin, Stored)
        and one.origin.path == other.origin.path
        and one.origin.start + one.size == other.origin.start
    )
