"""The trash: what a collection took away, under the same relative paths, until its time is over.

`<id>` begins with the time it was filled. `contents.json` in it is written first and stays, so that what was taken back
can be taken away again.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from adapterhub.canonical import digest_of
from adapterhub.errors import AdapterHubError, NotFoundError, StoreDamagedError
from adapterhub.fsio import flush_names, fsync_directory, make_directory, write_file
from adapterhub.manifest import Manifest, is_safe_relative_path, parse_manifest
from adapterhub.store.layout import Layout
from adapterhub.words import short

_CONTENTS = "contents.json"
_STAMP = "%Y%m%d-%H%M%S"
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]+\Z")


class Trash:
    """The trash of one store. Whoever changes it holds the store's lock."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def ids(self) -> list[str]:
        """All trash folders, oldest first. What a collection didn't make is none."""
        folder = self._layout.trash
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if _is_id(name))

    def age(self, trash: str, now: float) -> float:
        """Seconds since it was filled."""
        return now - _filled(trash)

    def new(self, paths: Iterable[Path], now: float) -> str:
        """Makes a folder for these files of the store, and writes down what it will hold. Moves nothing yet."""
        stamp = datetime.fromtimestamp(now, UTC).strftime(_STAMP)
        trash = f"{stamp}-{secrets.token_hex(3)}"
        names = [path.relative_to(self._layout.store).as_posix() for path in paths]
        write_file(
            self._layout.trash / trash / _CONTENTS, json.dumps(names).encode(), self._layout.tmp
        )
        return trash

    def contents(self, trash: str) -> list[Path]:
        """Where everything in it belongs. NotFoundError when it was deleted for good, StoreDamagedError for no such list."""
        path = self._layout.trash / trash / _CONTENTS
        try:
            names = msgspec.json.decode(path.read_bytes(), type=list[str])
        except FileNotFoundError:
            raise NotFoundError(
                f"The trash {trash} is no longer there.",
                why="Its time was over, and a later collection deleted it for good.",
            ) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            names = [""]
        if not all(map(is_safe_relative_path, names)):
            raise StoreDamagedError(
                f"The contents of the trash {trash} can't be read.",
                why=f"{path} is no list of files of the store.",
                hint=f"What is in {path.parent} lies there under the store's own paths.",
            )
        return [self._layout.store / name for name in names]

    def take(self, trash: str, paths: Sequence[Path]) -> None:
        """Moves files and folders of the store into the trash; those that are there already stay."""
        # Manifests first, and gone for good before what they name: what has a manifest is whole at every moment.
        for group in self._manifests_and_others(paths):
            self._move((path, self._inside(trash, path)) for path in group)

    def give_back(self, trash: str, paths: Sequence[Path]) -> None:
        """Moves them to where they were. What has come into the store again meanwhile stays as it is."""
        for group in reversed(self._manifests_and_others(paths)):
            self._move((self._inside(trash, path), path) for path in group)

    def _manifests_and_others(self, paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
        manifests = [path for path in paths if path.is_relative_to(self._layout.manifests)]
        others = [path for path in paths if not path.is_relative_to(self._layout.manifests)]
        return manifests, others

    def require(self, digest: str) -> None:
        """Makes sure that the adapter is in the store, from the trash if need be; NotFoundError where it is in neither."""
        if not self.restore(digest):
            raise NotFoundError(
                f"The adapter @{short(digest)} is no longer in the store.",
                why="Neither the store nor the trash has its manifest.",
                hint="Add it again from where it came: adapterhub add FOLDER",
            )

    def restore(self, digest: str) -> bool:
        """Gives back what the trash has of one adapter: its manifest, blobs and attestations. False when it is in neither.

        NotFoundError where only a part of it is left.
        """
        manifest = self._layout.manifest(digest)
        there = manifest.exists()
        kept = manifest if there else self._layout.in_trash(manifest)
        found = _intact(kept, digest) if kept is not None else None
        if found is None:  # a damaged one in the store is not ours to judge
            return there
        blobs = [self._layout.blob(entry.digest) for entry in found.files]
        lost = [path for path in blobs if not path.exists() and not self._layout.in_trash(path)]
        if lost and not there:
            raise NotFoundError(
                f"The adapter @{short(digest)} can't be restored whole.",
                why=f"{lost[0]} is neither in the store nor in the trash.",
                hint="Add it again from where it came.",
            )
        attestations = self._layout.attestations(digest)
        told = [
            attestations / path.name
            for folder in self._layout.all_in_trash(attestations)
            for path in folder.iterdir()
        ]
        for path in [*blobs, *told, manifest]:  # the manifest last: then it is whole
            source = None if path.exists() else self._layout.in_trash(path)
            if source is not None:
                self._move([(source, path)])
        return True

    def delete(self, trash: str) -> None:
        """Deletes it for good; first the list of its contents, so that nobody takes half of it for the whole."""
        folder = self._layout.trash / trash
        (folder / _CONTENTS).unlink(missing_ok=True)
        fsync_directory(folder)
        shutil.rmtree(folder)
        fsync_directory(self._layout.trash)

    def size(self, trash: str) -> int:
        """Bytes in it."""
        folder = self._layout.trash / trash
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def _inside(self, trash: str, path: Path) -> Path:
        return self._layout.trash / trash / path.relative_to(self._layout.store)

    def _move(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        targets: set[Path] = set()
        sources: set[Path] = set()
        for source, target in pairs:
            if target.exists():
                targets.add(target.parent)  # whoever moved it may have died before that was durable
                continue
            if not source.exists():
                continue
            make_directory(target.parent)
            with suppress(FileNotFoundError):  # another process gives the same adapter back
                source.rename(target)
            targets.add(target.parent)
            sources.add(source.parent)
        for folder in sorted(targets):  # first where things have come to, then whence they are gone
            flush_names(folder, self._layout.store)
        for folder in sorted(sources):
            fsync_directory(folder)


def _filled(trash: str) -> float:
    """When the trash folder with this id was filled (seconds since 1970); ValueError where that is no time."""
    return datetime.strptime(trash[:15], _STAMP).replace(tzinfo=UTC).timestamp()


def _is_id(name: str) -> bool:
    try:
        _filled(name)
    except ValueError:
        return False
    return bool(_ID.match(name))


def _intact(path: Path, digest: str) -> Manifest | None:
    try:
        data = path.read_bytes()
        return parse_manifest(data) if digest_of(data) == digest else None
    except (FileNotFoundError, AdapterHubError):
        return None
