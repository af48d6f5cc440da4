"""Bytes from file to file without a way through the program: shared blocks, a copy in the kernel, or chunks.

Every call names its offsets, so that several threads may use one descriptor.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.errors import FormatError
from adapterhub.fsio import CHUNK

_FICLONERANGE = 0x4020940D  # linux/fs.h; its argument is struct file_clone_range
_REFUSED = {
    errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ETXTBSY, errno.EBADF
}  # fmt: skip
"""This way isn't open here; a full disk or a broken one is something else."""


@dataclass(frozen=True)
class Source:
    """A file that is read at any offset."""

    path: Path
    descriptor: int

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Source]:
        """Read-only, until the block ends."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield cls(path, descriptor)
        finally:
            os.close(descriptor)

    def read_into(self, room: memoryview, start: int) -> None:
        """Fills `room` from byte `start` on. FormatError where the file ends before."""
        while room:
            count = os.preadv(self.descriptor, [room], start)
            if not count:
                raise self.ended(start)
            room, start = room[count:], start + count

    def announce(self, start: int, size: int) -> None:
        """Lets the system begin to read these bytes."""
        if hasattr(os, "posix_fadvise"):  # macOS has none
            os.posix_fadvise(self.descriptor, start, size, os.POSIX_FADV_WILLNEED)

    def ended(self, at: int) -> FormatError:
        return FormatError(
            f"{self.path} ends at byte {at}, within a tensor.",
            why="It was cut short since it was opened.",
            hint="Fetch the model again; nothing of this shard is kept.",
        )


def write_at(descriptor: int, data: memoryview, start: int) -> None:
    """Writes all of `data` at byte `start`."""
    while data:
        count = os.pwrite(descriptor, data, start)
        data, start = data[count:], start + count


@dataclass
class Copier:
    """Copies ranges by the best way that is open. One that was refused isn't tried again."""

    sharing: bool = True
    in_kernel: bool = field(default_factory=lambda: hasattr(os, "copy_file_range"))

    def copy(self, source: Source, start: int, target: int, at: int, size: int) -> None:
        """Bytes [start, start + size) of `source` to byte `at` of the descriptor `target`.

        FormatError where the source ends before, OSError where the disk fails or is full.
        """
        shared = self._share(source, start, target, at, size) if self.sharing else (0, 0)
        before, behind = shared
        for first, last in ((0, before), (behind, size)):
            self._copy(source, start + first, target, at + first, last - first)

    def _share(
        self, source: Source, start: int, target: int, at: int, size: int
    ) -> tuple[int, int]:
        """Shares the whole disk blocks of a range; [first, last) of it, (0, 0) where nothing is shared."""
        block = os.fstat(target).st_blksize
        first = -at % block
        last = first + (size - first) // block * block
        if (start - at) % block or last <= first:
            return 0, 0
        import fcntl

        asked = struct.pack("qQQQ", source.descriptor, start + first, last - first, at + first)
        try:
            fcntl.ioctl(target, _FICLONERANGE, asked)
        except OSError as error:
            _pass_if_refused(error)
            self.sharing = False
            return 0, 0
        return first, last

    def _copy(self, source: Source, start: int, target: int, at: int, size: int) -> None:
        end = start + size
        while self.in_kernel and start < end:
            try:
                count = os.copy_file_range(source.descriptor, target, end - start, start, at)
            except OSError as error:
                _pass_if_refused(error)
                self.in_kernel = False
                break
            if (
                not count
            ):  # the file ends here; or its system can't do this, and says so in this way
                break
            start, at = start + count, at + count
        room = memoryview(bytearray(min(CHUNK, end - start)))
        while start < end:
            chunk = room[: end - start]
            source.read_into(chunk, start)
            write_at(target, chunk, at)
            start, at = start + len(chunk), at + len(chunk)


def _pass_if_refused(error: Any) -> None:
    if error.errno not in _REFUSED:
        raise error
