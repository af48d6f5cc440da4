"""Writers that are wrong on purpose. Each breaks one rule of the write protocol, to show that a sweep can fail."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterhub import fsio
from adapterhub.store.blobs import Blobs
from adapterhub.store.refs import Transaction


def no_fsync_of_files() -> None:
    """A name is given to bytes that are not on the disk yet."""
    _skip_fsync(stat.S_ISREG)


def no_fsync_of_folders() -> None:
    """The bytes are on the disk, their names perhaps not."""
    _skip_fsync(stat.S_ISDIR)


def ref_before_manifest() -> None:
    """A name leads to what is only about to be written."""
    held_back: list[Callable[[], None]] = []
    write, commit = Blobs.write_document, Transaction.commit

    def later(self: Blobs, path: Path, data: bytes) -> None:
        held_back.append(lambda: write(self, path, data))

    def early(self: Transaction, *arguments: Any, **named: Any) -> None:
        commit(self, *arguments, **named)
        while held_back:
            held_back.pop(0)()

    Blobs.write_document = later  # type: ignore[method-assign]
    Transaction.commit = early  # type: ignore[method-assign]


def written_in_place() -> None:
    """No temporary file: until the last byte is there, the name leads to some of them."""
    original = fsio.write_file

    def write_file(path: Path, data: bytes, area: Path, mode: int = 0o644) -> None:
        fsio.make_directory(path.parent)
        with path.open("wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fsio.fsync_directory(path.parent)

    for name, module in list(sys.modules.items()):
        if name.startswith("adapterhub") and getattr(module, "write_file", None) is original:
            module.write_file = write_file  # type: ignore[attr-defined]


WRONG: dict[str, Callable[[], None]] = {
    "no fsync of files": no_fsync_of_files,
    "no fsync of folders": no_fsync_of_folders,
    "ref before manifest": ref_before_manifest,
    "written in place": written_in_place,
}


def _skip_fsync(applies: Callable[[int], bool]) -> None:
    fsync = os.fsync

    def some(descriptor: int) -> None:
        if not applies(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    os.fsync = some  # type: ignore[assignment]  # the product passes descriptors only
