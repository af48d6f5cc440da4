"""Durable file operations: the only place that knows how a file comes into being without ever being half there.

Everything is written to a process-unique temporary file on the same file system, flushed to the disk, renamed, and the
directory flushed too: after a power cut a name holds the old bytes or the new ones, never some of each.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError, ConflictError, OutOfSpaceError

CHUNK = 4 * 2**20


@dataclass(frozen=True)
class Staged:
    """A copy in the temporary area: its path, `sha256:` digest and size."""

    path: Path
    digest: str
    size: int


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turns "disk full" and "quota exceeded" into OutOfSpaceError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(where) from error
        raise


def no_space(where: object) -> OutOfSpaceError:
    return OutOfSpaceError(
        f"There is no space left for {where}.",
        why="No name was changed, and the temporary files are gone.",
        hint="Make room (df -h), then run the same command again.",
    )


def in_words(error: OSError) -> AdapterHubError:
    """What the operating system refused, as an error for people."""
    where = error.filename or "the output"
    if error.errno in _FULL:
        return no_space(where)
    if error.errno == errno.EROFS:
        return AdapterHubError(
            f"{where} is on a read-only file system.",
            why="Nothing was changed.",
            hint="Choose another store with ADAPTERHUB_HOME, or mount it writable.",
        )
    said = (error.strerror or str(error)).lower()
    return AdapterHubError(
        f"{where} can't be used: {said}.",
        why="The operating system says so.",
        hint="With --debug it says where.",
    )


def temporary_name(stem: str = "") -> str:
    """A name no other process uses."""
    return f"{stem}.{os.getpid()}.{secrets.token_hex(6)}.tmp"


def fsync_directory(path: Path) -> None:
    """Makes the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """`mkdir -p`, with every new entry made durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        with suppress(FileExistsError):
            directory.mkdir()
        fsync_directory(directory.parent)


def stage_copy(source: Path, area: Path) -> Staged:
    """Copies `source` into `area`, hashing on the way; the copy is read-only, flushed, and its length checked.

    Raises OSError when the source changes its length meanwhile; nothing is left behind on any failure.
    """
    target = area / temporary_name()
    try:
        with disk_errors(area), source.open("rb") as reader, target.open("xb") as writer:
            sha, size = hashlib.sha256(), 0
            announced = os.fstat(reader.fileno()).st_size
            while chunk := reader.read(CHUNK):
                sha.update(chunk)
                writer.write(chunk)
                size += len(chunk)
            if size != announced:
                raise OSError(
                    f"{source} changed while it was read: {announced} bytes announced, {size} read"
                )
            writer.flush()
            os.fchmod(writer.fileno(), 0o444)
            os.fsync(writer.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Staged(target, "sha256:" + sha.hexdigest(), size)


def write_file(path: Path, data: bytes, area: Path, mode: int = 0o644) -> None:
    """Writes `path` atomically and durably through a temporary file in `area` (same file system)."""
    temporary = area / temporary_name()
    try:
        with disk_errors(path), temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Gives a flushed temporary file its name, durably."""
    with disk_errors(path):
        make_directory(path.parent)
        os.replace(temporary, path)
        fsync_directory(path.parent)


def clone_or_copy(source: Path, target: Path) -> None:
    """A private copy of `source`: shares blocks where the file system can (reflink), never the inode."""
    with disk_errors(target), source.open("rb") as reader, target.open("xb") as writer:
        if not _reflink(reader.fileno(), writer.fileno()):
            shutil.copyfileobj(reader, writer, CHUNK)


def _reflink(source: int, target: int) -> bool:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return False
    ficlone = 0x40049409  # linux/fs.h
    try:
        fcntl.ioctl(target, ficlone, source)
    except OSError:
        return False
    return True


def require_free(folder: Path, overwrite: bool, *, keep: Sequence[Path], hint: str) -> None:
    """ConflictError where writing `folder` would destroy something: an existing folder, or (even with `overwrite`)
    one that holds any of `keep`."""
    resolved = folder.resolve()
    for precious in keep:
        if precious.resolve().is_relative_to(resolved) or resolved.is_relative_to(
            precious.resolve()
        ):
            raise ConflictError(
                f"{folder} can't be written: {precious} lies there.", hint="Choose another folder."
            )
    if resolved == Path.cwd().resolve():
        raise ConflictError(f"{resolved} is the current folder.", hint="Name a new one.")
    if folder.is_symlink() and not folder.exists():
        raise ConflictError(
            f"{folder} is a link that leads nowhere.", hint="Choose another folder."
        )
    if folder.exists() and not overwrite and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConflictError(f"{folder} exists and is not empty.", hint=hint)


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears under its final name whole, or not at all.

    Yields a temporary sibling to fill; on success it is renamed to `target`. An existing `target` (allowed only with
    `overwrite`, or empty) is set aside first, and removed once the new one is in place. On any failure or Ctrl-C the
    new one is removed and the old one is back.
    """
    # An empty folder behind a link is filled; with `overwrite` the link itself is replaced, not what it leads to.
    target = target.absolute() if overwrite else target.resolve()
    make_directory(target.parent)
    building = target.parent / temporary_name(f".{target.name}")
    old = target.parent / temporary_name(f".{target.name}.old")
    try:
        building.mkdir()
        yield building
        for root, _, files in os.walk(building):
            for name in files:
                _flush(Path(root) / name)
            fsync_directory(Path(root))
        if overwrite and os.path.lexists(target):
            os.rename(target, old)
        os.rename(building, target)  # replaces an empty folder, and fails on any other
        fsync_directory(target.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        if os.path.lexists(old) and not os.path.lexists(target):
            os.rename(old, target)
        _remove(old)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    """Removes a folder, a file or a link, never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
