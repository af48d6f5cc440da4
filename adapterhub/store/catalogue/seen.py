"""Files whose sha256 is known, by what the system says of them: device, inode, size and both times to the nanosecond.

A file is only remembered once it has rested: within the grain of the clock a second change would leave the same times.
Losing this costs the time to hash again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from adapterhub.store.catalogue.cachefile import CacheFile

REST_SECONDS = 2.0
"""How long a file must not have changed: the coarsest clock of a file system that is still in use (FAT, some NFS)."""


def digest_of_file(cache: CacheFile, path: Path) -> str | None:
    """The digest recorded for exactly this file in exactly this state, else None."""
    row = _row(cache, path)
    return None if row is None else row[0]


def remember_file(cache: CacheFile, path: Path, digest: str, *, began: float | None = None) -> None:
    """Records the digest, unless the file changed a moment ago.

    Args:
        began: when hashing began (time.time()); what changed later than that was perhaps not hashed, and isn't recorded.
    """
    _record(cache, path, digest, None, began)


def verified_at(cache: CacheFile, path: Path, digest: str) -> float | None:
    """When the bytes of this file, as it is now, were last found to have this digest (seconds since 1970)."""
    row = _row(cache, path)
    return row[1] if row is not None and row[0] == digest else None


def mark_verified(
    cache: CacheFile, path: Path, digest: str, *, began: float | None = None, own: bool = False
) -> None:
    """Records that the bytes were just hashed and have this digest.

    Args:
        began: as for `remember_file`.
        own: a write-once file of the store that was hashed while it was written: it needs no rest.
    """
    _record(cache, path, digest, time.time() if began is None else began, began, rest=not own)


def _row(cache: CacheFile, path: Path) -> tuple[str, float | None] | None:
    try:
        file, state = _key(path.stat())
    except OSError:
        return None

    def find(db: sqlite3.Connection) -> tuple[str, float | None] | None:
        found: tuple[str, float | None] | None = db.execute(
            "SELECT digest, verified FROM seen WHERE file = ? AND state = ?", (file, state)
        ).fetchone()
        return found

    return cache.run(find)


def _record(
    cache: CacheFile,
    path: Path,
    digest: str,
    verified: float | None,
    began: float | None,
    *,
    rest: bool = True,
) -> None:
    try:
        found = path.stat()
    except OSError:
        return
    changed = max(found.st_mtime, found.st_ctime)
    if rest and changed + REST_SECONDS > (time.time() if began is None else began):
        return
    file, state = _key(found)
    cache.run(
        lambda db: db.execute(
            """INSERT INTO seen VALUES (?, ?, ?, ?) ON CONFLICT (file) DO UPDATE SET
               verified = CASE WHEN state = excluded.state AND digest = excluded.digest
                               THEN coalesce(excluded.verified, verified) ELSE excluded.verified END,
               state = excluded.state, digest = excluded.digest""",
            (file, state, digest, verified),
        )
    )


def _key(found: os.stat_result) -> tuple[str, str]:
    """The file's identity and its state, as texts: inodes may be larger than SQLite's integers."""
    return (
        f"{found.st_dev}:{found.st_ino}",
        f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}",
    )
