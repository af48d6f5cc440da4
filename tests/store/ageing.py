"""A store made older than it is, and what lies on its shelves; with none of the product's code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from tests.store.watching import at, refs

DAY = 86400.0
_FILLED = "%Y%m%d-%H%M%S"


def age(home: Path, seconds: float) -> dict[str, str]:
    """All that is in the store was written, and all that its journal tells of happened, so much earlier.

    Returns the new names of the trash folders, which begin with a time, by the old ones.
    """
    store, renamed = home / "store", {}
    for folder in sorted(store.glob("trash/[0-9]*")):
        filled = datetime.strptime(folder.name[:15], _FILLED) - timedelta(seconds=seconds)  # noqa: DTZ007
        renamed[folder.name] = filled.strftime(_FILLED) + folder.name[15:]
        folder.rename(folder.with_name(renamed[folder.name]))
    for path in [store, *store.rglob("*")]:
        found = path.lstat()
        times = (found.st_atime - seconds, found.st_mtime - seconds)
        os.utime(path, times, follow_symlinks=False)
    journal = store / "log" / "refs.jsonl"
    if journal.exists():
        lines = journal.read_bytes().split(b"\n")
        journal.write_bytes(b"\n".join(_earlier(line, seconds, renamed) for line in lines))
    return renamed


def _earlier(line: bytes, seconds: float, renamed: Mapping[str, str]) -> bytes:
    try:
        change = json.loads(line)
    except ValueError:  # torn, or behind the last
        return line
    earlier = datetime.fromisoformat(change["time"]) - timedelta(seconds=seconds)
    verb, blank, trash = change.get("about", "").partition(" ")
    about = verb + blank + renamed.get(trash, trash)
    return json.dumps({**change, "time": earlier.isoformat(), "about": about}).encode()


def meaning(home: Path, name: str) -> str:
    """The hexadecimal digest a name has; `name` as namespace/name/tag or just name."""
    return refs(home)[name if "/" in name else f"_/{name}/latest"].strip().removeprefix("sha256:")


def manifest(home: Path, digits: str) -> Path:
    """Where an adapter's manifest lies."""
    return at(home / "store" / "manifests", digits)


def blobs(home: Path, digits: str) -> dict[str, Path]:
    """An adapter's files: their paths in it, and where their bytes lie."""
    entries = json.loads(manifest(home, digits).read_bytes())["files"]
    return {
        entry["path"]: at(home / "store" / "blobs", entry["digest"].removeprefix("sha256:"))
        for entry in entries
    }


def weights(home: Path, name: str) -> Path:
    """The blob of an adapter's tensors."""
    return blobs(home, meaning(home, name))["adapter_model.safetensors"]


def shelved(home: Path, shelf: str) -> set[str]:
    """The hexadecimal digests of what is on a shelf: blobs or manifests."""
    return {path.name for path in (home / "store" / shelf).glob("sha256/*/*")}


def everything(home: Path) -> set[str]:
    """Blobs, manifests, attestations and views of the store, by their relative paths."""
    store = home / "store"
    found: Iterator[Path] = (
        path
        for pattern in (
            "blobs/sha256/*/*",
            "manifests/sha256/*/*",
            "attestations/*/*",
            "views/*/*",
        )
        for path in store.glob(pattern)
    )
    return {path.relative_to(store).as_posix() for path in found}


def write(path: Path, data: bytes) -> None:
    """Changes a file that nobody should change."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)


def flip(path: Path, place: int = -1) -> None:
    """Changes one bit of it."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    write(path, bytes(data))
