"""The folder beside the target in which an export is built, and what of it a later one can go on with.

    .NAME.partial/model/       the new folder, until it is renamed whole
    .NAME.partial/state.json   what is exported, and the finished shards: sizes and digests, each noted once it is durable
    .NAME.partial/lock         held by the export that writes here

Its name says whose it is, so a killed export leaves one such folder, which the next export into that target goes on
with (`--resume`) or replaces.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from adapterhub.canonical import DIGEST_PREFIX, read_object
from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
    FormatError,
    OutOfSpaceError,
    StoreLockedError,
)
from adapterhub.fsio import (
    disk_errors,
    fsync_directory,
    is_read_only,
    make_directory,
    place_of,
    put_in_place,
    remove,
    write_file,
)
from adapterhub.parallel import for_each
from adapterhub.store.locks import locked
from adapterhub.words import counted

SCHEMA = "adapterhub.partial-export/1"
_STATE, _LOCK, _MODEL = "state.json", "lock", "model"


def partial_path(folder: Path, *, overwrite: bool) -> Path:
    """Where an export into `folder` is built."""
    target = place_of(folder, overwrite=overwrite)
    return target.parent / f".{target.name}.partial"


def occupied(path: Path) -> int:
    """Bytes of disk that a folder takes; 0 where there is none."""
    return sum(
        (Path(root) / name).lstat().st_blocks * 512
        for root, _, files in os.walk(path)
        for name in files
    )


def finished_shards(path: Path) -> int:
    """How many shards of an unfinished export `--resume` could keep; 0 where there is none."""
    state = _state(path)
    return len(state["shards"]) if state else 0


@dataclass
class Partial:
    """A locked partial folder. `model` is what is filled; `kept` are the shards there from before, with their sizes."""

    path: Path
    exported: Mapping[str, Any]
    kept: dict[str, int]
    _done: dict[str, dict[str, Any]]
    _changing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def model(self) -> Path:
        return self.path / _MODEL

    def note(self, name: str, size: int, digest: str) -> None:
        """Records a shard that is whole and flushed. Any thread may."""
        with self._changing:
            self._done[name] = {"size": size, "sha256": digest}
            self._record()

    def salvage(self) -> bool:
        """Leaves the recorded shards alone in the folder; whether there are any.

        Recorded again, since a disk may have been too full for that: now there is room.
        """
        if not self._done or not self.model.is_dir():
            return False
        _only(self.model, self._done)
        try:
            self._record()
        except OSError:
            self._done.clear()
        return bool(self._done)

    def _record(self) -> None:
        fsync_directory(self.model)
        document = {"schema": SCHEMA, "export": self.exported, "shards": self._done}
        text = json.dumps(document, indent=2, sort_keys=True) + "\n"
        write_file(self.path / _STATE, text.encode(), self.path)

    @property
    def done(self) -> Collection[str]:
        """The shards that are recorded."""
        return self._done.keys()


def digest_of_file(path: Path) -> str:
    """`sha256:<hex>` of what a file holds now."""
    with path.open("rb") as file:
        return DIGEST_PREFIX + hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def building(
    folder: Path,
    exported: Mapping[str, Any],
    *,
    shards: int,
    overwrite: bool,
    resume: bool,
    workers: int | None,
    warn: Callable[[str], None],
) -> Iterator[Partial]:
    """A partial folder to fill; when the block ends its model appears as `folder`, whole.

    Where the block fails, finished shards stay, and `warn` (or the interrupt itself) says how to go on; without any,
    nothing stays.

    Args:
        exported: what is exported, as JSON can say it; an equal one may go on with what this one leaves.
        shards: how many there will be.
        resume: keeps the shards of an earlier export of the same that are still what was noted. ConflictError where
            it was of something else. Without it, such shards go, with a remark.

    Raises ConflictError while another export writes there.
    """
    path, target = partial_path(folder, overwrite=overwrite), place_of(folder, overwrite=overwrite)
    with disk_errors(folder), _only_one(path, folder):
        found = _resumed(path, folder, exported, resume, workers, warn)
        partial = Partial(path, exported, {n: int(e["size"]) for n, e in found.items()}, found)
        try:
            for leftover in path.iterdir():
                if leftover.name not in (_LOCK, _MODEL, _STATE):
                    remove(leftover)
            _only(partial.model, found)
            with disk_errors(folder):
                yield partial
                put_in_place(partial.model, target, overwrite=overwrite)
        except BaseException as error:
            if not partial.salvage():
                raise
            how = f"{len(partial.done)} of {counted(shards, 'shard')} are kept in {path}"
            again = "run the same command again with --resume"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"{how}. To go on, {again}.") from None
            if isinstance(error, OutOfSpaceError):
                raise OutOfSpaceError(
                    error.what, why=f"{how}.", hint=f"Make room (df -h), then {again}."
                ) from error
            warn(f"{how}; to go on, {again}")
            raise
        finally:
            if not partial.done or not partial.model.is_dir():
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _only_one(path: Path, folder: Path) -> Iterator[None]:
    """Holds the lock of a partial folder, which is made; ConflictError where another export has it."""
    try:
        make_directory(path)
        lock = locked(path / _LOCK, exclusive=True, wait=0)
        lock.__enter__()
    except (StoreLockedError, FileNotFoundError):  # just now it was there: the other one has ended
        raise ConflictError(
            f"Another export is writing {folder}.",
            why=f"It holds {path / _LOCK}.",
            hint="Wait for it to end, or choose another folder: -o DIR",
        ) from None
    except OSError as error:
        with suppress(OSError):
            path.rmdir()  # made just now, or it isn't empty
        if not is_read_only(error):
            raise
        raise AdapterHubError(
            f"{folder} can't be written: {(error.strerror or str(error)).lower()}.",
            why=f"The system refused to change {error.filename or path}.",
            hint="Choose another folder: -o DIR",
        ) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _resumed(
    path: Path,
    folder: Path,
    exported: Mapping[str, Any],
    resume: bool,
    workers: int | None,
    warn: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The shards to keep, by name, as they were noted."""
    state = _state(path)
    if state is None:
        if resume:
            warn(
                f"no finished shard of {folder} is here to go on with: this starts at the beginning"
            )
        return {}
    noted: dict[str, dict[str, Any]] = state["shards"]
    if not resume:
        warn(f"{counted(len(noted), 'finished shard')} in {path} are replaced; --resume keeps them")
        (path / _STATE).unlink()
        return {}
    if state["export"] != exported:
        keys = {*state["export"], *exported}
        differ = sorted(k for k in keys if state["export"].get(k) != exported.get(k))
        raise ConflictError(
            f"{path} is part of another export.",
            why=f"It differs in: {', '.join(differ)}.",
            hint=f"Leave out --resume, which replaces it, or remove it: rm -r {quote(str(path))}",
        )
    names = list(noted)
    sound = for_each(
        names,
        lambda name: _is_sound(path / _MODEL / name, noted[name]),
        workers=workers,
        done=lambda: None,
    )
    for name, well in zip(names, sound, strict=True):
        if not well:
            warn(f"{name} in {path} is no longer what was noted: it is written again")
            del noted[name]
    return noted


def _state(path: Path) -> dict[str, Any] | None:
    """What the state file says; None where there is none, or where it can't be trusted."""
    try:
        state = read_object(path / _STATE, str(path / _STATE))
    except (FileNotFoundError, FormatError):
        return None
    shards = state.get("shards")
    sound = (
        state.get("schema") == SCHEMA
        and isinstance(state.get("export"), dict)
        and isinstance(shards, dict)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and "/" not in name
            for name, entry in shards.items()
        )
    )
    return state if sound and shards else None


def _is_sound(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return path.stat().st_size == entry["size"] and digest_of_file(path) == entry.get("sha256")
    except FileNotFoundError:
        return False


def _only(model: Path, names: Collection[str]) -> None:
    """Leaves nothing but `names` in the folder, which is made where it is missing."""
    make_directory(model)
    for path in model.iterdir():
        if path.name not in names:
            remove(path)
