"""Write-once bytes named by their sha256, and the documents (manifests, attestations) kept the same way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import StoreDamagedError
from adapterhub.fsio import CHUNK, Staged, fsync_directory, publish, write_file
from adapterhub.store.layout import Layout
from adapterhub.words import short


class Blobs:
    """The bytes of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def commit(self, staged: Staged) -> Path:
        """Moves a staged copy to its place, or drops it where those bytes are there already."""
        path = self._layout.blob(staged.digest)
        if path.is_file() and _hash(path) == staged.digest:
            os.utime(path)  # in use again: spared by a collection that is under way
            fsync_directory(path.parent)  # whoever put it there may have died before doing so
            staged.path.unlink()
            return path
        publish(staged.path, path)  # also over damaged bytes: adding an adapter again mends it
        return path

    def path(self, digest: str) -> Path:
        """Where the bytes lie; StoreDamagedError when they are gone."""
        path = self._layout.blob(digest)
        if not path.is_file():
            raise StoreDamagedError(
                f"The store lacks the bytes {short(digest)}.",
                why=f"{path} is gone, though a manifest names it.",
                hint="Add the adapter again from where it came: adapterhub add FOLDER",
            )
        return path

    def verified(self, digest: str) -> Path:
        """As `path`, after hashing the bytes again: what is merged, exported or served is what was added."""
        path = self.path(digest)
        found = _hash(path)
        if found != digest:
            raise StoreDamagedError(
                f"The bytes {short(digest)} in the store have changed.",
                why=f"{path} now hashes to {short(found)}.",
                hint="Add the adapter again from where it came; that mends it: adapterhub add FOLDER",
            )
        return path

    def write_document(self, path: Path, data: bytes) -> None:
        """Writes a content-addressed document; the same document again changes nothing, and mends a damaged one."""
        if not path.is_file() or path.read_bytes() != data:
            write_file(path, data, self._layout.tmp, mode=0o444)
        else:
            fsync_directory(path.parent)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return DIGEST_PREFIX + found.hexdigest()
