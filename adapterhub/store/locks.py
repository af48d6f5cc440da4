"""Locks between processes: shared while adding, exclusive while refs change.

`flock` is released by the kernel when its holder dies, so a killed process never leaves a locked store behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterhub.errors import StoreLockedError, UsageError
from adapterhub.fsio import is_read_only

WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.05


@contextmanager
def locked(path: Path, *, exclusive: bool, wait: float | None = None) -> Iterator[None]:
    """Holds the lock file `path`; StoreLockedError after `wait` seconds (default: `$ADAPTERHUB_LOCK_WAIT` or 30)."""
    import fcntl

    patience = _patience() if wait is None else wait
    deadline = time.monotonic() + patience
    descriptor = _open(path)
    try:
        while True:
            try:
                fcntl.flock(
                    descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
                )
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StoreLockedError(
                        f"Another adapterhub is changing the store: it holds {path}.",
                        why=f"The lock was not released within {patience:g} seconds.",
                        hint="Wait for it to finish (ps aux | grep adapterhub), then run the same command again.",
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        # Somebody else's file in a store that we may change, or a store mounted read-only: a lock needs no right to write.
        if not is_read_only(error):
            raise
        return os.open(path, os.O_RDONLY)


def _patience() -> float:
    text = os.environ.get("ADAPTERHUB_LOCK_WAIT", str(WAIT_SECONDS))
    try:
        return max(0.0, float(text))
    except ValueError:
        raise UsageError(
            f"ADAPTERHUB_LOCK_WAIT is {text!r}.",
            why="It must be a number of seconds.",
            hint="export ADAPTERHUB_LOCK_WAIT=30",
        ) from None
