"""Shards written piece by piece by several threads: while some compute, others read, copy, write or wait for the disk.

A changed tensor goes through in blocks of rows: read, widened to float32, its delta added, rounded once, written.
Within a block the unit of arithmetic is the tile of `adapterhub.lora.rows`, whose height depends on the tensor alone, so
the result has the same bits for any number of threads and any budget.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from adapterhub.errors import FormatError
from adapterhub.export.copying import Copier, Source, write_at
from adapterhub.export.layout import WIDTHS, Piece, Shard, Stored, Summed, path_of
from adapterhub.lora.parallel import for_each
from adapterhub.lora.rows import Factored, Rows, tiles
from adapterhub.merge.weights import matrix_shape

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_STEP = 32 * 2**20
"""Bytes of one task: after it progress is told and Ctrl-C is heard."""
_BLOCK = 2**20
"""Bytes read at a time: what a core's cache holds is still there when it is written."""
_LANES = 2
"""Shards written at a time. Threads that write into one file wait for each other in the kernel, and burn time."""
_WAITING = 2
"""Threads beyond those that compute, for what waits for the disk."""
_STRIP = 64 * 2**20
"""Bytes of a dense delta held for a transposed weight."""


@dataclass(frozen=True)
class Budget:
    """Bytes of buffers that all threads may have together. One tile in one thread is the least that can be."""

    memory: int
    workers: int

    def threads(self, pieces: Sequence[Piece]) -> int:
        """How many threads have room for a tile."""
        most = max((_need(piece) for piece in pieces), default=1)
        return max(1, min(self.workers + _WAITING, self.memory // most))


def write_shards(
    shards: Sequence[Shard],
    folder: Path,
    delta_of: Callable[[str], Rows],
    *,
    budget: Budget,
    finished: Callable[[Shard, Path, bool], None],
    advance: Callable[[int], None],
    seen: Callable[[str], Rows | None] = lambda _: None,
) -> None:
    """Writes `shards` as new files in `folder`.

    Args:
        seen: gives the values of a tensor of the base, in rows as they are stored, where they aren't those stored.
        delta_of: gives the delta of a module, as (out, in) rows.
        finished: called with a shard that is whole, flushed, and in its place, from any thread; and whether other work
            is still waiting to begin.
        advance: called with the bytes written since the last call, from this thread.

    Raises FormatError where a sum doesn't fit its dtype or a base shard ends early, OSError where the disk fails.
    """
    files = [Output(shard, folder / shard.name) for shard in shards]
    tasks = _in_lanes([list(_tasks(file, delta_of)) for file in files])
    threads = budget.threads([task.piece for task in tasks])
    paths = {path_of(piece.origin) for shard in shards for piece in shard.pieces}
    with ExitStack() as stack:
        sources = {path: stack.enter_context(Source.opened(path)) for path in paths}
        for file in files:
            stack.callback(file.close)
        writer = _Writer(sources, budget, threads, finished, len(tasks), seen)
        done = telling(lambda: writer.written, advance)
        for_each(tasks, writer.write, workers=threads, done=done)


def telling(written: Callable[[], int], advance: Callable[[int], None]) -> Callable[[], None]:
    """What tells `advance` of the bytes written since it was called last."""
    told = 0

    def tell() -> None:
        nonlocal told
        now = written()
        advance(now - told)
        told = now

    return tell


class Output:
    """A shard on its way to the disk; opened by the first task, closed after the last."""

    def __init__(self, shard: Shard, path: Path) -> None:
        self.shard, self.path = shard, path
        self.left = 0
        """Tasks that aren't done."""
        self._descriptor: int | None = None
        self._changing = threading.Lock()

    @property
    def descriptor(self) -> int:
        with self._changing:
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                self._descriptor = os.open(self.path, flags, 0o666)
                self._begin(self._descriptor)
            return self._descriptor

    def _begin(self, descriptor: int) -> None:
        write_at(descriptor, memoryview(self.shard.header), 0)

    def is_last(self) -> bool:
        """Counts one task as done; whether it was the last."""
        with self._changing:
            self.left -= 1
            return self.left == 0

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _Delta:
    """The delta of one tensor. Factors are shared by all tasks of it; anything else belongs to the first that comes."""

    def __init__(self, opener: Callable[[], Rows]) -> None:
        self._opener = opener
        self._opening = threading.Lock()
        self._shared: Rows | None = None
        self._taken = False
        self.tasks = 0

    def take(self, transposed: bool) -> tuple[Rows | None, bool]:
        """(delta, whether it is for all rows of the tensor and not for this task's); None where another does all."""
        with self._opening:
            self.tasks -= 1
            if self._taken:
                shared, self._shared = self._shared, self._shared if self.tasks else None
                return shared, False
            self._taken = True
            delta = self._opener()
            if not isinstance(delta, Factored):
                return delta, True
            if transposed:
                delta = delta.across
            self._shared = delta if self.tasks else None
            return delta, False


@dataclass(frozen=True)
class _Task:
    """A part of a piece: bytes [first, last) of stored ones, rows of others."""

    file: Output
    piece: Piece
    first: int
    last: int
    delta: _Delta | None = None


def _tasks(file: Output, delta_of: Callable[[str], Rows]) -> Iterator[_Task]:
    for piece in file.shard.pieces:
        origin = piece.origin
        if isinstance(origin, Stored):
            parts, delta = list(_steps(piece.size, _STEP)), None
        else:
            height, width = matrix_of(origin)
            ends = list(tiles((height, width)))
            each = max(1, _STEP // (_rows(ends[0]) * width * WIDTHS[piece.dtype]))
            parts = [(ends[a][0], ends[b - 1][1]) for a, b in _steps(len(ends), each)]
            module = origin.module
            delta = None if module is None else _Delta(_opener(delta_of, module))
        if delta is not None:
            delta.tasks = len(parts)
        file.left += len(parts)
        for first, last in parts:
            yield _Task(file, piece, first, last, delta)
    if not file.shard.pieces:
        file.left = 1
        yield _Task(file, Piece("", "F32", 0, 0, Stored(file.path, 0, 0)), 0, 0)


def _opener(delta_of: Callable[[str], Rows], module: str) -> Callable[[], Rows]:
    return lambda: delta_of(module)


def _in_lanes(files: Sequence[Sequence[_Task]]) -> list[_Task]:
    """All tasks, in the order in which they are begun: _LANES shards side by side."""
    return [
        task
        for first in range(0, len(files), _LANES)
        for row in zip_longest(*files[first : first + _LANES])
        for task in row
        if task is not None
    ]


class _Room(threading.local):
    """The buffers of one thread, used again and again."""

    def __init__(self) -> None:
        self._held: dict[str, torch.Tensor] = {}

    def take(self, use: str, count: int, dtype: torch.dtype, device: Any = "cpu") -> torch.Tensor:
        """Room for so many values, flat, with anything in it."""
        held = self._held.get(use)
        size = count * dtype.itemsize
        if held is None or held.numel() < size or held.device != torch.device(device):
            self._held[use] = held = torch.empty(size, dtype=torch.uint8, device=device)
        return held[:size].view(dtype)


@dataclass
class _Writer:
    """Does tasks, in any thread."""

    sources: dict[Path, Source]
    budget: Budget
    threads: int
    finished: Callable[[Shard, Path, bool], None]
    waiting: int
    """Tasks that nobody has begun."""
    seen: Callable[[str], Rows | None]
    written: int = 0
    copier: Copier = field(default_factory=Copier)
    _room: _Room = field(default_factory=_Room)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._turns = threading.BoundedSemaphore(self.budget.workers)  # for the cores

    def write(self, task: _Task) -> None:
        with self._counting:
            self.waiting -= 1
        count = self._do(task)
        with self._counting:
            self.written += count
        if task.file.is_last():
            os.fsync(task.file.descriptor)
            task.file.close()
            with self._turns:
                self.finished(task.file.shard, task.file.path, self.waiting > 0)
            with self._counting:
                self.written += len(task.file.shard.header)

    def _do(self, task: _Task) -> int:
        """Bytes written."""
        target, piece = task.file.descriptor, task.piece
        if isinstance(piece.origin, Stored):
            size = task.last - task.first
            if size:
                source, start = self.sources[piece.origin.path], piece.origin.start + task.first
                source.announce(start, size)
                self.copier.copy(source, start, target, piece.start + task.first, size)
            return size
        if task.delta is None:
            return self._rows(task, None, task.first, task.last)
        with self._turns:
            delta, whole = task.delta.take(piece.origin.transposed)
        if delta is None:
            return 0
        if whole and piece.origin.transposed:
            self._strips(task, delta)
            return piece.size
        first, last = (0, matrix_of(piece.origin)[0]) if whole else (task.first, task.last)
        return self._rows(task, delta, first, last)

    def _rows(self, task: _Task, delta: Rows | None, first: int, last: int) -> int:
        """Rows [first, last), which begin and end with tiles."""
        piece, origin = task.piece, task.piece.origin
        assert isinstance(origin, Summed)
        height, width = matrix_of(origin)
        source, target = self.sources[origin.info.path], task.file.descriptor
        read, wrote = WIDTHS[origin.info.dtype], WIDTHS[piece.dtype]
        base = self.seen(origin.info.name)
        if base is None:
            source.announce(origin.info.start + first * width * read, (last - first) * width * read)
        tall = _rows(next(tiles((height, width))))
        block = tall * self._tiles_at_once(piece)
        raw = self._room.take("read", block * width, TORCH[origin.info.dtype])
        out = raw if read == wrote and origin.info.dtype == piece.dtype else (
            self._room.take("write", block * width, TORCH[piece.dtype])
        )  # fmt: skip
        wide = self._room.take("wide", tall * width, torch.float32).view(tall, width)
        room = self._room.take("delta", tall * width, torch.float32).view(tall, width)
        for begin in range(first, last, block):
            count = (min(last, begin + block) - begin) * width
            if base is None:
                source.read_into(bytes_of(raw[:count]), origin.info.start + begin * width * read)
            with self._turns:
                for a, b in _steps(count // width, tall):
                    tile, sums = slice(a * width, b * width), wide[: b - a]
                    if base is None:
                        sums.copy_(raw[tile].view(b - a, width))  # accumulate in float32 ...
                    else:
                        self._fill(base, begin + a, begin + b, sums)
                    if delta is not None:
                        self._fill(delta, begin + a, begin + b, room[: b - a])
                        sums.add_(room[: b - a])
                    out[tile].view(b - a, width).copy_(sums)  # ... and round once
                    require_finite(out[tile], piece.name, piece.dtype)
            write_at(target, bytes_of(out[:count]), piece.start + begin * width * wrote)
        return (last - first) * width * wrote

    def _strips(self, task: _Task, delta: Rows) -> None:
        """A weight stored (in, out) by strips of columns: as many rows of the delta as fit are held, and added across.

        Both files are mapped: their pages are the system's to keep or drop, and the tensor is never held.
        """
        piece, origin = task.piece, task.piece.origin
        assert isinstance(origin, Summed)
        height, width = matrix_of(origin)  # (in, out)
        _allocate(task.file.descriptor, task.file.shard.size)
        read, wrote = TORCH[origin.info.dtype], TORCH[piece.dtype]
        stored = mmap.mmap(self.sources[origin.info.path].descriptor, 0, access=mmap.ACCESS_COPY)
        written = mmap.mmap(task.file.descriptor, 0, access=mmap.ACCESS_WRITE)
        before = _matrix(stored, origin.info.start, read, height, width)
        base = self.seen(origin.info.name)
        after = _matrix(written, piece.start, wrote, height, width)
        share = min(_STRIP, self.budget.memory // self.threads // 2)
        ends = list(tiles(delta.shape))
        each = max(1, share // (_rows(ends[0]) * height * 4))
        tall = min(height, max(1, _BLOCK // (4 * _rows(ends[0]) * each)))
        for a, b in _steps(len(ends), each):
            left, right = ends[a][0], ends[b - 1][1]
            held = self._room.take("strip", (right - left) * height, torch.float32)
            held = held.view(right - left, height)
            with self._turns:
                for first, last in ends[a:b]:
                    self._fill(delta, first, last, held[first - left : last - left])
                for top, bottom in _steps(height, tall):
                    if base is None:
                        sums = before[top:bottom, left:right].float()
                    else:
                        room = self._room.take("wide", (bottom - top) * width, torch.float32)
                        self._fill(base, top, bottom, room.view(-1, width))
                        sums = room.view(-1, width)[:, left:right].clone()
                    sums += held[:, top:bottom].T
                    rounded = sums.to(after.dtype)
                    require_finite(rounded, piece.name, piece.dtype)
                    after[top:bottom, left:right] = rounded

    def _fill(self, delta: Rows, first: int, last: int, out: torch.Tensor) -> None:
        if delta.device.type == "cpu":
            delta.fill(first, last, out)
            return
        there = self._room.take("device", out.numel(), torch.float32, delta.device).view(out.shape)
        delta.fill(first, last, there)
        out.copy_(there)

    def _tiles_at_once(self, piece: Piece) -> int:
        share = min(_BLOCK, (self.budget.memory // self.threads - _need(piece)) // 2)
        return max(1, share // _tile_bytes(piece))


def matrix_of(origin: Summed) -> tuple[int, int]:
    """A tensor as rows."""
    return matrix_shape(origin.info.shape)


def _need(piece: Piece) -> int:
    """Bytes of buffers that one tile takes: read, written, widened, and its delta."""
    if isinstance(piece.origin, Stored):
        return 1
    height, width = matrix_of(piece.origin)
    values = _rows(next(tiles((height, width)))) * width
    return values * (4 + 4) + 2 * _tile_bytes(piece)


def _tile_bytes(piece: Piece) -> int:
    assert isinstance(piece.origin, Summed)
    height, width = matrix_of(piece.origin)
    widest = max(WIDTHS[piece.dtype], WIDTHS[piece.origin.info.dtype])
    return _rows(next(tiles((height, width)))) * width * widest


def require_finite(rounded: torch.Tensor, name: str, dtype: str) -> None:
    """FormatError where a value of a merged weight is none."""
    if not rounded.numel():
        return
    low, high = torch.aminmax(rounded)  # which pass NaN on
    if not (math.isfinite(low) and math.isfinite(high)):
        raise FormatError(
            f"The merged weight {name} doesn't fit into {dtype}.",
            why="It overflows, or the base itself holds NaN or infinity.",
            hint="Export into a float32 or bfloat16 copy of the base.",
        )


def _matrix(
    mapped: mmap.mmap, start: int, dtype: torch.dtype, height: int, width: int
) -> torch.Tensor:
    flat = torch.frombuffer(mapped, dtype=dtype, count=height * width, offset=start)
    return flat.view(height, width)


def _allocate(descriptor: int, size: int) -> None:
    """Gives a file that will be mapped its whole length and space: a full disk then is an error, not a signal."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(descriptor, 0, size)
    elif os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)


def bytes_of(values: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, where they lie."""
    return values.view(torch.uint8).numpy().data


def _rows(tile: tuple[int, int]) -> int:
    return tile[1] - tile[0]


def _steps(total: int, each: int) -> Iterator[tuple[int, int]]:
    """[first, last) of every stretch of `each`."""
    for first in range(0, total, each):
        yield first, min(total, first + each)
