"""Adding the same files again, at once: they are recognised by what the system says of them, without being read.

That is worth it only where nothing is taken on trust that could have changed: every file must be the one that was hashed
before (see `seen`), and every blob in the store must be as it was when its bytes were last hashed.
"""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import AdapterHubError
from adapterhub.formats.folders import Source
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.manifest import Manifest, parse_manifest
from adapterhub.store.blobs import Blobs
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.seen import digest_of_file, remember_file
from adapterhub.store.layout import Layout


def recognise(source: Source, layout: Layout, blobs: Blobs, cache: CacheFile) -> Manifest | None:
    """The manifest of exactly these files, if it is in the store with all its bytes and nobody has touched anything."""
    digests: dict[str, str] = {}
    for path, place in source.files.items():
        digest = digest_of_file(cache, place) if isinstance(place, Path) else None
        if digest is None:
            return None
        digests[path] = digest
    for manifest in _with_file(digests.get(WEIGHTS_NAME, ""), layout):
        if {entry.path: entry.digest for entry in manifest.files} == digests and all(
            blobs.intact(digest) for digest in digests.values()
        ):
            return manifest
    return None


def remember(source: Source, digests: dict[str, str], cache: CacheFile, began: float) -> None:
    """Notes what was hashed on the way in; `began` is when reading began."""
    for path, place in source.files.items():
        if isinstance(place, Path):
            remember_file(cache, place, digests[path], began=began)


def _with_file(digest: str, layout: Layout) -> list[Manifest]:
    """The manifests that name a file with this digest, those that can be read."""
    rows = Catalogue(layout).ask(
        lambda db: db.execute(
            "SELECT adapters.digest FROM files JOIN adapters ON adapters.id = files.adapter WHERE files.digest = ?",
            (digest,),
        ).fetchall()
    )
    found = []
    for (adapter,) in rows:
        try:
            manifest = parse_manifest(layout.manifest(adapter).read_bytes())
        except (OSError, AdapterHubError):
            continue
        if manifest.digest == adapter:  # else it is damaged, and adding it whole mends it
            found.append(manifest)
    return found
