"""Models in 4 bits as transformers saves them, written from the sums, so that neither they nor the whole ever lie anywhere.

A quantised weight becomes six tensors: two values to a byte, the scales of its blocks and what those need. Each is as
`save_pretrained` of the model writes it that is loaded in 4 bits from the unquantised export, to the bit. One of them is
a text whose length is known only when the weight is done. It lies at the end of its file, and the header's room is
reserved: what is left of it is filled up with spaces, which the format allows.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapterhub.export.copying import Copier, Source, write_at
from adapterhub.export.layout import WIDTHS, Piece, Shard, Stored, Summed, Tensor, path_of
from adapterhub.export.quantize.fourbit import (
    BLOCK,
    NESTED_BLOCK,
    FourBit,
    Scales,
    as_stored,
    blocks_of,
    quantise,
    settle,
)
from adapterhub.export.quantize.linears import Linear
from adapterhub.export.stream import (
    TORCH,
    Budget,
    Output,
    bytes_of,
    matrix_of,
    require_finite,
    telling,
)
from adapterhub.export.whole import Seen
from adapterhub.formats.safetensors import encode_header
from adapterhub.lora.parallel import for_each
from adapterhub.lora.rows import Factored, Held, Rows, tiles, whole

_NAMES = {torch.float32: "F32", torch.uint8: "U8"}
_DIGITS = 8
"""Characters by which a float may be longer in a text than the one the room was reserved with."""


def configuration(how: FourBit) -> dict[str, Any]:
    """The `quantization_config` of config.json."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=how.kind,
        bnb_4bit_use_double_quant=how.double,
        bnb_4bit_compute_dtype=how.torch_dtype,
    )
    found: dict[str, Any] = settings.to_dict()
    return found


def layouts_in_4bit(
    shards: Sequence[Shard], linears: Mapping[str, Linear], how: FourBit
) -> tuple[Shard, ...]:
    """The shards with six tensors in place of each of `linears`. Lengths of texts are the most they can be."""
    return tuple(_layout(shard, linears, how) for shard in shards)


def write_in_4bit(
    shards: Sequence[Shard],
    folder: Path,
    delta_of: Callable[[str], Rows],
    *,
    unquantised: Mapping[str, Shard],
    weights: Seen,
    linears: Mapping[str, Linear],
    how: FourBit,
    budget: Budget,
    finished: Callable[[Shard, Path, bool], None],
    advance: Callable[[int], None],
) -> None:
    """Writes `shards`, which `layouts_in_4bit` laid out, as new files in `folder`.

    Args:
        unquantised: by name, what they were laid out from.
        weights: the base as the export sees it.
        delta_of, finished, advance: as for `stream.write_shards`; `finished` gets the shard as it was written.

    Raises FormatError where a sum doesn't fit its dtype, OSError where the disk fails.
    """
    files = [_File(shard, folder / shard.name) for shard in shards]
    tasks = [
        _Task(file, tensor, linears.get(tensor.name))
        for file in files
        for tensor in unquantised[file.shard.name].tensors
    ]
    for task in tasks:
        task.file.left += 1
    writer = _Writer(weights, delta_of, how, finished, len(tasks))
    done = telling(lambda: writer.written, advance)
    with ExitStack() as stack:
        for file in files:
            stack.callback(file.close)
        for_each(tasks, writer.write, workers=budget.workers, done=done)


class _File(Output):
    """A shard whose texts come last, and with them its header. Where every other tensor goes is known from the start."""

    def __init__(self, shard: Shard, path: Path) -> None:
        super().__init__(shard, path)
        self.places = {piece.name: piece for piece in shard.pieces}
        self.texts: dict[str, bytes] = {}

    def _begin(self, descriptor: int) -> None:
        """The header is written by `finish`."""

    def put(self, name: str, data: memoryview) -> None:
        write_at(self.descriptor, data, self.places[name].start)

    def finish(self) -> Shard:
        """Writes texts and header, flushes, and says what the file is."""
        rows, pieces = [], []
        end = len(self.shard.header)
        for tensor in self.shard.tensors:
            text = self.texts.get(tensor.name)
            size, shape = tensor.size, tensor.shape
            if text is not None:
                write_at(self.descriptor, memoryview(text), end)
                size, shape = len(text), (len(text),)
            rows.append((tensor.name, tensor.dtype, shape, size))
            if size:
                pieces.append(Piece(tensor.name, tensor.dtype, end, size, tensor.parts[0]))
            end += size
        header = encode_header(rows, {"format": "pt"})[8:]
        room = len(self.shard.header) - 8
        header = room.to_bytes(8, "little") + header + b" " * (room - len(header))
        write_at(self.descriptor, memoryview(header), 0)
        os.fsync(self.descriptor)
        self.close()
        return Shard(self.shard.name, header, self.shard.tensors, tuple(pieces))


@dataclass(frozen=True)
class _Task:
    file: _File
    tensor: Tensor
    linear: Linear | None


@dataclass
class _Writer:
    """Does tensors, in any thread."""

    weights: Seen
    delta_of: Callable[[str], Rows]
    how: FourBit
    finished: Callable[[Shard, Path, bool], None]
    waiting: int
    """Tensors that nobody has begun."""
    written: int = 0
    copier: Copier = field(default_factory=Copier)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def write(self, task: _Task) -> None:
        with self._counting:
            self.waiting -= 1
        count = self._plain(task) if task.linear is None else self._quantised(task, task.linear)
        with self._counting:
            self.written += count
        if task.file.is_last():
            shard = task.file.finish()
            self.finished(shard, task.file.path, self.waiting > 0)

    def _plain(self, task: _Task) -> int:
        """A tensor that isn't quantised, part by part. Bytes written."""
        start = task.file.places[task.tensor.name].start if task.tensor.size else 0
        at = start
        for part in task.tensor.parts:
            if isinstance(part, Stored):
                with Source.opened(part.path) as source:
                    self.copier.copy(source, part.start, task.file.descriptor, at, part.size)
                at += part.size
                continue
            for values in self._sums(part, task.tensor):
                write_at(task.file.descriptor, bytes_of(values), at)
                at += values.numel() * values.itemsize
        return at - start

    def _quantised(self, task: _Task, linear: Linear) -> int:
        name, how = task.tensor.name, self.how
        stretches: Iterator[torch.Tensor] = (
            part for origin in task.tensor.parts for part in self._values(origin, task)
        )
        if (
            linear.transposed
        ):  # its blocks run along the other side; only models as small as GPT-2 have it
            dense = torch.cat(list(stretches)).view(task.tensor.shape)
            stretches = iter([dense.T.contiguous().flatten()])
        at = task.file.places[name].start
        found = []
        for values in _whole_blocks(stretches):
            packed, absmax = quantise(values.to(how.torch_dtype), how.kind)
            write_at(task.file.descriptor, bytes_of(packed.flatten()), at)
            at += packed.numel()
            found.append(absmax)
        scales = settle(found, how)
        for suffix, tensor in as_stored(scales, _shape(task.tensor, linear), how).items():
            data = bytes_of(tensor.contiguous().flatten())
            if suffix.startswith("quant_state."):
                task.file.texts[f"{name}.{suffix}"] = bytes(data)
            else:
                task.file.put(f"{name}.{suffix}", data)
        return at - task.file.places[name].start

    def _values(self, origin: Stored | Summed, task: _Task) -> Iterator[torch.Tensor]:
        if isinstance(origin, Stored):
            info = self.weights.view.model.tensors[task.tensor.name]
            origin = Summed(info, None)
        return self._sums(origin, task.tensor)

    def _sums(self, origin: Summed, tensor: Tensor) -> Iterator[torch.Tensor]:
        """The flat values of a part, tile by tile, rounded once: the same as in an unquantised export."""
        shape = matrix_of(origin)
        base = self.weights.rows(origin.info.name)
        delta = None if origin.module is None else self.delta_of(origin.module)
        if delta is not None and origin.transposed:
            delta = _across(delta)
        tall = next(tiles(shape), (0, 0))[1]
        sums, room = torch.empty(tall, shape[1]), torch.empty(tall, shape[1])
        for first, last in tiles(shape):
            total = sums[: last - first]
            base.fill(first, last, total)
            if delta is not None:
                delta.fill(first, last, room[: last - first])
                total += room[: last - first]
            rounded = total.to(TORCH[tensor.dtype])
            require_finite(rounded, tensor.name, tensor.dtype)
            yield rounded.flatten()


def _across(delta: Rows) -> Rows:
    """A delta (out, in) for a weight stored (in, out). One that isn't in factors is held whole."""
    if isinstance(delta, Factored):
        return delta.across
    return Held(whole(delta).T.contiguous())


def _whole_blocks(stretches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same flat values, cut so that only the last stretch ends within a block."""
    left: torch.Tensor | None = None
    for values in stretches:
        joined = values if left is None else torch.cat([left, values])
        end = joined.numel() // BLOCK * BLOCK
        left = joined[end:].clone()
        if end:
            yield joined[:end]
    if left is not None and left.numel():
        yield left


def _layout(shard: Shard, linears: Mapping[str, Linear], how: FourBit) -> Shard:
    tensors: list[Tensor] = []
    for tensor in shard.tensors:
        linear = linears.get(tensor.name)
        tensors += [tensor] if linear is None else _six(tensor, linear, how)
    # The widest first, so that each lies at a multiple of its width; texts, whose length isn't known yet, last.
    tensors.sort(key=lambda t: (_is_text(t), -WIDTHS.get(t.dtype, 1), t.name))
    rows = [(tensor.name, tensor.dtype, tensor.shape, tensor.size) for tensor in tensors]
    header = encode_header(rows, {"format": "pt"})
    pieces, position = [], len(header)
    for tensor in tensors:
        if tensor.size:
            part = tensor.parts[0]
            pieces.append(Piece(tensor.name, tensor.dtype, position, tensor.size, part))
        position += tensor.size
    return Shard(shard.name, header, tuple(tensors), tuple(pieces))


def _six(tensor: Tensor, linear: Linear, how: FourBit) -> Iterator[Tensor]:
    count = math.prod(tensor.shape)
    blocks = blocks_of(count)
    yield _made(tensor, "", "U8", (math.ceil(count / 2), 1), math.ceil(count / 2))
    one = settle([torch.zeros(1)], how)
    if one.offset is not None:
        one = Scales(one.absmax, one.nested, torch.tensor(-1.1754943508222875e-38))
    for suffix, like in as_stored(one, _shape(tensor, linear), how).items():
        if suffix.startswith("quant_state."):
            shape: tuple[int, ...] = (like.numel() + _DIGITS,)
        else:
            counts = {"absmax": blocks, "nested_absmax": math.ceil(blocks / NESTED_BLOCK)}
            shape = (counts.get(suffix, like.numel()),)
        size = math.prod(shape) * like.itemsize
        yield _made(tensor, f".{suffix}", _NAMES[like.dtype], shape, size)


def _made(tensor: Tensor, suffix: str, dtype: str, shape: tuple[int, ...], size: int) -> Tensor:
    path = path_of(tensor.parts[0])
    return Tensor(f"{tensor.name}{suffix}", dtype, shape, (Stored(path, 0, size),))


def _is_text(tensor: Tensor) -> bool:
    return ".quant_state." in tensor.name


def _shape(tensor: Tensor, linear: Linear) -> tuple[int, ...]:
    return tensor.shape[::-1] if linear.transposed else tensor.shape
