"""Write-once bytes named by their sha256, and the documents (manifests, attestations) kept the same way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from adapterhub.errors import StoreDamagedError
from adapterhub.fsio import CHUNK, Staged, publish, write_file
from adapterhub.store.layout import Layout
from adapterhub.words import short


class Blobs:
    """The bytes of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def commit(self, staged: Staged) -> Path:
        """Moves a staged copy to its place, or drops it where those bytes are there already."""
        path = self._layout.blob(staged.digest)
        if path.exists() and path.stat().st_size == staged.size:
            os.utime(path)  # in use again: spared by a collection that is under way
            staged.path.unlink()
            return path
        staged.path.chmod(0o444)
        publish(staged.path, path)
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
        with path.open("rb") as file:
            found = hashlib.sha256()
            while chunk := file.read(CHUNK):
                found.update(chunk)
        if f"sha256:{found.hexdigest()}" != digest:
            raise StoreDamagedError(
                f"The bytes {short(digest)} in the store have changed.",
                why=f"{path} now hashes to {found.hexdigest()[:12]}.",
                hint="Delete that file, then add the adapter again from where it came.",
            )
        return path

    def write_document(self, path: Path, data: bytes) -> None:
        """Writes a content-addressed document; the same document again changes nothing."""
        if not path.exists():
            write_file(path, data, self._layout.tmp, mode=0o444)
