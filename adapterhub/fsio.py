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
from typing import BinaryIO

from adapterhub.errors import AdapterHubError, ConflictError, OutOfSpaceError

CHUNK = 4 * 2**20


@dataclass(frozen=True)
class Staged:
    """A copy in the temporary area: its path, `sha256:` digest and size."""

    path: Path
    digest: str
    size: int


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_OURS = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_read_only(error: OSError) -> bool:
    """Whether the system refused a change here as such: a read-only mount, or somebody else's folder."""
    return error.errno in _NOT_OURS


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


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there that we may look at.

    Where `Path.is_dir` raises, as for a name longer than any can be or behind a closed door, there is none for us.
    """
    return os.path.isdir(path)


def typed_path(text: str) -> Path:
    """The path that somebody typed: `~` and `~user` are homes. Those of nobody stay as they are."""
    return Path(os.path.expanduser(text))


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


def flush_names(folder: Path, top: Path) -> None:
    """Makes the entries of `folder` durable, and those that lead there from `top`: whoever made them may have died before."""
    while True:
        fsync_directory(folder)
        if folder == top:
            return
        folder = folder.parent


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
    """Copies `source` into `area` and hashes the copy, which is read-only and flushed, and has the length announced.

    Raises OSError when the source changes its length meanwhile; nothing is left behind on any failure.
    """
    target = area / temporary_name()
    try:
        with disk_errors(area), source.open("rb") as reader, target.open("x+b") as writer:
            announced = os.fstat(reader.fileno()).st_size
            _copy(reader.fileno(), writer.fileno())
            writer.seek(0)  # what is hashed is what is kept
            digest = "sha256:" + hashlib.file_digest(writer, "sha256").hexdigest()
            size = writer.tell()
            if size != announced:
                raise OSError(
                    f"{source} changed while it was read: {announced} bytes announced, {size} read"
                )
            os.fchmod(writer.fileno(), 0o444)
            os.fsync(writer.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Staged(target, digest, size)


def _copy(reader: int, writer: int) -> None:
    """Copies to the end: inside the kernel where it can do that, which also shares blocks where the file system can."""
    try:
        while os.copy_file_range(reader, writer, 16 * CHUNK):
            pass
    except (
        AttributeError,
        OSError,
    ) as error:  # macOS has no such call; some file systems refuse it
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        while chunk := os.read(reader, CHUNK):
            view = memoryview(chunk)
            while view:
                view = view[os.write(writer, view) :]


def stage_bytes(data: bytes, area: Path) -> Staged:
    """As `stage_copy`, for a file that is made of what was found elsewhere."""
    target = area / temporary_name()
    write_file(target, data, area, mode=0o444)
    return Staged(target, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))


def open_shared(path: Path) -> BinaryIO:
    """Opens a file for reading and appending; a new one gets the mode the umask leaves, so that a group can share it."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


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
        flush_names(path.parent, Path(os.path.commonpath([temporary, path])))


def clone_or_copy(source: Path, target: Path) -> None:
    """A private copy of `source`: shares blocks where the file system can (reflink), never the inode."""
    with disk_errors(target), source.open("rb") as reader, target.open("xb") as writer:
        _copy(reader.fileno(), writer.fileno())


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
    if folder.exists() and not folder.is_dir():
        raise ConflictError(f"{folder} is a file.", hint="Name a folder.")
    if folder.exists() and not overwrite and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConflictError(f"{folder} exists and is not empty.", hint=hint)


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder that appears under its final name whole, or not at all.

    Yields a temporary sibling to fill; on success it is renamed to `target`. An existing `target` (allowed only with
    `overwrite`, or empty) is set aside first, and removed once the new one is in place. On any failure or Ctrl-C the
    new one is removed and the old one is back.
    """
    target = place_of(target, overwrite=overwrite)
    make_directory(target.parent)
    building = target.parent / temporary_name(f".{target.name}")
    try:
        building.mkdir()
        yield building
        put_in_place(building, target, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def place_of(target: Path, *, overwrite: bool) -> Path:
    """Where a new folder called `target` lies. An empty folder behind a link is filled; with `overwrite` the link itself
    is replaced, not what it leads to."""
    return target.absolute() if overwrite else target.resolve()


def put_in_place(building: Path, target: Path, *, overwrite: bool) -> None:
    """Renames a filled folder to its final name, durably. What was there is back on any failure, else removed."""
    old = target.parent / temporary_name(f".{target.name}.old")
    try:
        for root, _, files in os.walk(building):
            for name in files:
                flush(Path(root) / name)
            fsync_directory(Path(root))
        if overwrite and os.path.lexists(target):
            os.rename(target, old)
        os.rename(building, target)  # replaces an empty folder, and fails on any other
        fsync_directory(target.parent)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(target):
            os.rename(old, target)
        remove(old)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Removes a folder, a file or a link, never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Makes the bytes of a file durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
