"""Adapters that are the same twice, or nearly: same content under other metadata, or many tensors in common.

The tensors' digests are read from the weights the first time somebody asks, and kept. Two tensors are the same when
name, dtype, shape and bytes are; tensors of zeros alone are nobody's work and don't count.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.canonical import digest_of
from adapterhub.errors import AdapterHubError
from adapterhub.formats.keys import parse_key
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.fsio import in_words
from adapterhub.store.catalogue.cachefile import writing
from adapterhub.store.catalogue.indexing import ProgressFactory
from adapterhub.store.catalogue.kinship import names_of
from adapterhub.store.layout import Layout
from adapterhub.store.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

HASH_BYTES = 8
"""Of each tensor's sha256: by chance, two of a hundred million tensors agree in it with probability 0.0003."""
MOST_PARTNERS = 32
"""A tensor that very many adapters share pairs each of them with so many of the oldest, not all with all."""


@dataclass(frozen=True)
class Same:
    """Adapters of one content: the same tensors under other metadata or another layout of keys."""

    content: str
    adapters: tuple[tuple[str, tuple[str, ...]], ...]
    """Digest and names of each, oldest name first."""


@dataclass(frozen=True)
class Twin:
    """An adapter and the older one it has most in common with; the shares are of the larger of the two."""

    digest: str
    names: tuple[str, ...]
    other: str
    other_names: tuple[str, ...]
    tensors: float
    bytes: float


def same_content(db: sqlite3.Connection) -> list[Same]:
    """Every content that more than one adapter with a name has."""
    groups: dict[str, list[str]] = defaultdict(list)
    for content, digest in db.execute(_NAMED):
        groups[content].append(digest)
    return [
        Same(content, tuple((digest, names_of(db, digest)) for digest in digests))
        for content, digests in groups.items()
        if len(digests) > 1
    ]


def fill_prints(
    db: sqlite3.Connection, layout: Layout, progress: ProgressFactory
) -> list[AdapterHubError]:
    """Reads the weights whose tensors' digests aren't known yet. Returns what is wrong with those that can't be read."""
    missing = db.execute(
        """SELECT DISTINCT weights, size FROM adapters JOIN names USING (digest)
           WHERE weights NOTNULL AND weights NOT IN (SELECT weights FROM prints)"""
    ).fetchall()
    problems: list[AdapterHubError] = []
    if not missing:
        return problems
    blobs = Store(layout.home).blobs
    with progress("Reading weights (MB)", sum(size for _, size in missing) / 1e6) as bar:
        for weights, size in missing:
            try:
                with TensorFile(blobs.verified(weights), label=WEIGHTS_NAME) as file:
                    tensors, hashes = _prints(file)
            except AdapterHubError as error:
                problems.append(error)
            except OSError as error:
                problems.append(in_words(error))
            else:
                _keep(db, weights, tensors, hashes)
            bar.advance(size / 1e6)
    return problems


def near_twins(db: sqlite3.Connection, least: float) -> list[Twin]:
    """For each adapter the older one that shares most with it, where that is at least the share `least` (0 to 1).

    Of several adapters with one content only the oldest is looked at. What two have in common counts by tensors and by
    bytes; one of the two shares has to be large enough.
    """
    import numpy as np

    digests = _oldest(db)
    prints = [_Print.read(db, digest) for digest in digests]
    if len(prints) < 2:
        return []
    keys = np.concatenate([one.keys for one in prints])
    owners = np.repeat(np.arange(len(prints)), [len(one.keys) for one in prints])
    sizes = np.concatenate([one.sizes for one in prints])
    order = np.argsort(keys, kind="stable")  # stable: the owners of one key stay in order of age
    keys, owners, sizes = keys[order], owners[order], sizes[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.concatenate([starts[1:], [len(keys)]])
    bundles: dict[bytes, list[int]] = defaultdict(lambda: [0, 0])
    for first, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        bundle = bundles[owners[first:end].tobytes()]
        bundle[0] += 1
        bundle[1] += int(sizes[first])
    shared: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for packed, (count, length) in bundles.items():
        group = np.frombuffer(packed, owners.dtype).tolist()
        for place, one in enumerate(group):
            for other in group[: min(place, MOST_PARTNERS)]:
                pair = shared[one].setdefault(other, [0, 0])
                pair[0] += count
                pair[1] += length
    found = []
    for one, partners in sorted(shared.items()):
        other = max(partners, key=lambda candidate: (partners[candidate], -candidate))
        tensors, size = _shares(prints[one], prints[other])
        if max(tensors, size) >= least:
            mine, theirs = digests[one], digests[other]
            found.append(
                Twin(mine, names_of(db, mine), theirs, names_of(db, theirs), tensors, size)
            )
    return found


# Adapters with names by content, the one whose name is oldest first.
_NAMED = """SELECT content, digest FROM adapters JOIN names USING (digest) WHERE kind NOTNULL
            GROUP BY digest ORDER BY min(names.added), digest"""


@dataclass(frozen=True)
class _Print:
    """The tensors of one adapter: a key of 64 bits for each, and its bytes. Zeros are left out."""

    keys: npt.NDArray[Any]
    sizes: npt.NDArray[Any]

    @classmethod
    def read(cls, db: sqlite3.Connection, digest: str) -> _Print:
        import numpy as np

        tensors, hashes = db.execute(
            """SELECT tensors, hashes FROM adapters JOIN prints USING (weights) JOIN layouts l ON l.id = layout
               WHERE digest = ?""",
            (digest,),
        ).fetchone()
        names = [(json.dumps(row[:3]), row[3]) for row in json.loads(tensors)]
        salts = [hashlib.sha256(name.encode()).digest()[:HASH_BYTES] for name, _ in names]
        values = np.frombuffer(hashes, "<u8")
        sizes = np.array([size for _, size in names], np.int64)
        keep = values != 0
        keys = values ^ np.frombuffer(b"".join(salts), "<u8")
        return cls(keys[keep], sizes[keep])


def _shares(one: _Print, other: _Print) -> tuple[float, float]:
    import numpy as np

    both = np.isin(one.keys, other.keys)
    tensors = int(both.sum()) / max(len(one.keys), len(other.keys))
    size = int(one.sizes[both].sum()) / max(int(one.sizes.sum()), int(other.sizes.sum()), 1)
    return tensors, size


def _oldest(db: sqlite3.Connection) -> list[str]:
    """One adapter for every content whose tensors are known, oldest first."""
    known = {
        digest
        for (digest,) in db.execute("SELECT digest FROM adapters JOIN prints USING (weights)")
    }
    first: dict[str, str] = {}
    for content, digest in db.execute(_NAMED):
        if digest in known:
            first.setdefault(content, digest)
    return list(first.values())


def _prints(file: TensorFile) -> tuple[list[list[Any]], bytes]:
    """Canonical name, dtype, shape and size in bytes of every tensor, and the hashes in the same order."""
    rows = []
    for name, info in file.infos.items():
        raw = file.raw(name)
        zero = not any(
            raw[first : first + 4096].tobytes().strip(b"\0") for first in range(0, len(raw), 4096)
        )
        hashed = bytes(HASH_BYTES) if zero else hashlib.sha256(raw).digest()[:HASH_BYTES]
        rows.append((parse_key(name).canonical, info.dtype, list(info.shape), len(raw), hashed))
    rows.sort()
    return [list(row[:4]) for row in rows], b"".join(row[4] for row in rows)


def _keep(db: sqlite3.Connection, weights: str, tensors: list[list[Any]], hashes: bytes) -> None:
    text = json.dumps(tensors)
    signature = digest_of(text.encode())
    with writing(db):
        db.execute(
            "INSERT OR IGNORE INTO layouts (signature, tensors) VALUES (?, ?)", (signature, text)
        )
        db.execute(
            "INSERT OR REPLACE INTO prints SELECT ?, id, ? FROM layouts WHERE signature = ?",
            (weights, hashes, signature),
        )
