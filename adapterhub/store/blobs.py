"""Write-once bytes named by their sha256, and the documents (manifests, attestations) kept the same way."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import StoreDamagedError
from adapterhub.fsio import CHUNK, Staged, flush_names, publish, write_file
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.seen import mark_verified, verified_at
from adapterhub.store.layout import Layout
from adapterhub.words import short

_YOUNG_SECONDS = 3600.0
"""What was written within this time needs no new mark."""
REPAIR = "adapterhub fsck --repair"


class Blobs:
    """The bytes of one store."""

    def __init__(self, layout: Layout, cache: CacheFile) -> None:
        self._layout = layout
        self._cache = cache

    def commit(self, staged: Staged) -> bool:
        """Moves a staged copy to its place, or drops it where those bytes are there already; whether it was moved."""
        path = self._layout.blob(staged.digest)
        if self.intact(staged.digest) and touched(path):
            staged.path.unlink()
            return False
        publish(staged.path, path)  # also over damaged bytes: adding an adapter again mends it
        mark_verified(self._cache, path, staged.digest, own=True)
        return True

    def intact(self, digest: str) -> bool:
        """Whether those bytes are in their place. They are hashed, unless they were before and nobody has written since."""
        path = self._layout.blob(digest)
        if not path.is_file():
            return False
        if verified_at(self._cache, path, digest) is not None:
            return True
        began = time.time()
        if hash_file(path) != digest:
            return False
        mark_verified(self._cache, path, digest, began=began)
        return True

    def path(self, digest: str) -> Path:
        """Where the bytes lie; StoreDamagedError when they are gone."""
        path = self._layout.blob(digest)
        if path.is_file():
            return path
        kept = self._layout.in_trash(path)  # a collection may have taken it since its name was read
        if kept is not None:
            return kept
        raise StoreDamagedError(
            f"The store lacks the bytes {short(digest)}.",
            why=f"{path} is gone, though a manifest names it.",
            hint=f"Mend it from another copy, or add the adapter again from where it came: {REPAIR}",
        )

    def verified(self, digest: str) -> Path:
        """As `path`, after hashing the bytes again: what is merged, exported or served is what was added."""
        try:
            path = self.path(digest)
            found = hash_file(path)
        except FileNotFoundError:  # a collection took it in between: now it is in the trash
            path = self.path(digest)
            found = hash_file(path)
        if found != digest:
            raise StoreDamagedError(
                f"The bytes {short(digest)} in the store have changed.",
                why=f"{path} now hashes to {short(found)}.",
                hint=f"Mend it from another copy, or add the adapter again from where it came: {REPAIR} --read-data",
            )
        return path

    def write_document(self, path: Path, data: bytes) -> None:
        """Writes a content-addressed document; the same document again changes nothing, and mends a damaged one."""
        if not (path.is_file() and path.read_bytes() == data and touched(path)):
            write_file(path, data, self._layout.tmp, mode=0o444)


def touched(path: Path) -> bool:
    """Marks a file as in use again, so that a collection under way spares it; False where it is somebody else's."""
    if time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
        try:
            os.utime(path)
        except PermissionError:
            return False
    flush_names(path.parent, path.parents[3])  # whoever put it there may have died before doing so
    return True


def hash_file(path: Path) -> str:
    """`sha256:` of a file's bytes."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return DIGEST_PREFIX + found.hexdigest()
