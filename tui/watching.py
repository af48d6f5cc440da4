"""Stamps: what one `stat` tells of a file, by which a screen sees that another process has written it."""

from __future__ import annotations

from pathlib import Path

from adapterhub.store import Store

Stamp = tuple[int, int, int] | None
"""Which file is there, how long and of when; None where there is none."""


def names_stamp(store: Store) -> Stamp:
    """Changes whenever a name does."""
    return stamp_of(store.layout.journal)


def knowledge_stamp(store: Store, digest: str) -> Stamp:
    """Changes whenever something more is known about the adapter `digest`."""
    return stamp_of(store.layout.attestations(digest))


def stamp_of(path: Path) -> Stamp:
    """What `path` is now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)
