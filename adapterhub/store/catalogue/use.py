"""When adapters were last used, as far as files outside the catalogue tell.

Together with what the catalogue knows (statements about an adapter, lines of the journal, adapters made of it) this is
what "unused" means: no lease holds it, it was not given to a server, exported, merged, evaluated, checked against a base,
trained from or named since that time. Reading an adapter (`show`, `diff`, `checkout`) leaves no trace and is no use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.store.store import Store

_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")


def in_use(store: Store) -> dict[str, float]:
    """Digest -> when it was last used (seconds since 1970): leases (now and for ever), runs that name it, views for servers."""
    found: dict[str, float] = {}
    for digest, at in (*_leased(store), *_in_runs(store.runs_dir), *_viewed(store.layout.views)):
        found[digest] = max(found.get(digest, 0.0), at)
    return found


def _leased(store: Store) -> Iterator[tuple[str, float]]:
    for lease in store.leases.live():
        for digest in lease.digests:
            yield digest, math.inf


def _in_runs(runs: Path) -> Iterator[tuple[str, float]]:
    for recipe in runs.glob("*/recipe.json"):
        try:
            when, data = recipe.stat().st_mtime, recipe.read_bytes()
        except OSError:
            continue
        for digest in _DIGEST.findall(data):
            yield digest.decode(), when


def _viewed(views: Path) -> Iterator[tuple[str, float]]:
    for view in views.glob("*"):
        try:
            yield DIGEST_PREFIX + view.name, view.stat().st_mtime
        except OSError:
            continue
