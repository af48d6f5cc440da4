"""Ranges of bytes arrive as they were, whichever way the file systems allow; and a copy in the kernel is one."""

from __future__ import annotations

import errno
import os
import random
import struct
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import FormatError
from adapterhub.export import copying
from adapterhub.export.copying import Copier, Source
from adapterhub.fsio import CHUNK

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 4096
SIZE = 2 * CHUNK + 3 * BLOCK + 77
RANGES = {
    "one byte": (5, 9, 1),
    "no byte": (5, 9, 0),
    "whole blocks": (BLOCK, 3 * BLOCK, 5 * BLOCK),
    "equally far into a block": (BLOCK + 100, 7 * BLOCK + 100, 9 * BLOCK + 50),
    "less than a block": (BLOCK + 100, 7 * BLOCK + 100, 3000),
    "unevenly far into a block": (10, 11, 9 * BLOCK),
    "all, in several chunks": (0, 0, SIZE),
}


class Sharing:
    """A file system that shares blocks, which this machine's need not be: as strict about its arguments as Linux is."""

    def __init__(self) -> None:
        self.shared: list[tuple[int, int, int]] = []

    def ioctl(self, target: int, request: int, asked: bytes) -> int:
        assert request == 0x4020940D
        source, start, size, at = struct.unpack("qQQQ", asked)
        if start % BLOCK or at % BLOCK or size % BLOCK or not size:
            raise OSError(errno.EINVAL, "unaligned")
        os.pwrite(target, os.pread(source, size, start), at)
        self.shared.append((start, at, size))
        return 0


def refusing(number: int) -> Any:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


def copied(copier: Copier, source: Path, target: Path, start: int, at: int, size: int) -> None:
    """Copies, and requires that exactly that range has changed."""
    before = b"\xee" * (at + size + 50)
    target.write_bytes(before)
    descriptor = os.open(target, os.O_RDWR)
    with Source.opened(source) as opened:
        copier.copy(opened, start, descriptor, at, size)
    os.close(descriptor)
    data = source.read_bytes()[start : start + size]
    assert target.read_bytes() == before[:at] + data + before[at + size :]


@pytest.mark.parametrize("way", ["shared", "in the kernel", "in chunks"])
@pytest.mark.parametrize("what", RANGES)
def test_a_range_arrives_as_it_was(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, what: str
) -> None:
    start, at, size = RANGES[what]
    sharing, in_kernel = Sharing(), []
    really = os.copy_file_range

    def counted(*arguments: Any) -> int:
        in_kernel.append(arguments)
        return really(*arguments)

    monkeypatch.setattr("fcntl.ioctl", sharing.ioctl if way == "shared" else refusing(errno.ENOTTY))
    monkeypatch.setattr(
        os, "copy_file_range", refusing(errno.EXDEV) if way == "in chunks" else counted
    )
    copier = Copier()
    copied(copier, source, tmp_path / "target", start, at, size)
    if way == "shared":
        blocks = sum(size for *_, size in sharing.shared)
        expected = {
            "whole blocks": 5,
            "equally far into a block": 8,
            "all, in several chunks": 2051,
        }
        assert blocks == expected.get(what, 0) * BLOCK
    left = size - sum(size for *_, size in sharing.shared)
    assert bool(in_kernel) == (way != "in chunks" and left > 0)


def test_what_was_refused_is_not_tried_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for place, name in (("fcntl.ioctl", "share"), ("os.copy_file_range", "kernel")):

        def refuse(*_: Any, name: str = name) -> int:
            asked.append(name)
            raise OSError(errno.EOPNOTSUPP, "no")

        monkeypatch.setattr(place, refuse)
    copier = Copier()
    for _ in range(3):
        copied(copier, source, tmp_path / "target", 0, 0, SIZE)
    assert asked == ["share", "kernel"]


@pytest.mark.parametrize("place", ["fcntl.ioctl", "os.copy_file_range"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_is_no_refusal(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int
) -> None:
    if place != "fcntl.ioctl":
        monkeypatch.setattr("fcntl.ioctl", refusing(errno.ENOTTY))
    monkeypatch.setattr(place, refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        copied(Copier(), source, tmp_path / "target", 0, 0, SIZE)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_source_that_ends_early_is_told_by_its_name(
    source: Path, tmp_path: Path, in_kernel: bool
) -> None:
    with pytest.raises(FormatError, match=rf"source ends at byte {SIZE}"):
        copied(Copier(sharing=False, in_kernel=in_kernel), source, tmp_path / "target", 10, 0, SIZE)


def test_a_system_without_the_call_copies_in_chunks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.delattr(os, "posix_fadvise")
    with Source.opened(source) as opened:
        opened.announce(0, SIZE)
    copied(copying.Copier(sharing=False), source, tmp_path / "target", 3, 4, SIZE - 3)
