"""A store looked at from outside, with none of the product's code: what files it has, and whether they hang together."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Listing = dict[str, str]
"""Relative path -> mode and sha256 of every file (or the target of a link)."""


def listing(home: Path) -> Listing:
    """Every file below `home`/store. Folders that hold nothing don't count; what lies in tmp/ does."""
    store, found = home / "store", {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = f"{stat.S_IMODE(path.stat().st_mode):o} {sha256(path.read_bytes())}"
    return found


def left_over(folder: Path) -> list[str]:
    """Temporary files and folders below `folder`."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.tmp")}
    found |= {path.relative_to(folder).as_posix() for path in folder.glob("store/tmp/*")}
    return sorted(found)


@contextmanager
def unchanged(home: Path) -> Iterator[None]:
    """Fails unless every file of the store is afterwards as it was, and no temporary one is left."""
    before = listing(home)
    yield
    after = listing(home)
    changed = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    assert changed == [], f"the store has changed: {changed}"
    assert left_over(home) == [], f"left over: {left_over(home)}"


def refs(home: Path) -> dict[str, str]:
    """namespace/name/tag -> what the ref's file says."""
    root = home / "store" / "refs"
    return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.glob("*/*/*"))}


def journal(home: Path) -> list[dict[str, str | None]]:
    """Every whole line of the journal that tells of a change. What is left of a line that a crash tore is none."""
    path = home / "store" / "log" / "refs.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"}")]
    return [line for line in found if line["op"] not in ("done", "cancel")]


def problems(home: Path) -> list[str]:
    """What is wrong: refs that lead nowhere, documents and blobs (in the trash too) that aren't what their names say."""
    store, found = home / "store", []
    for name, text in refs(home).items():
        prefix, _, digits = text.strip().partition(":")
        if prefix != "sha256" or len(digits) != 64 or text != f"sha256:{digits}\n":
            found.append(f"ref {name} says {text!r}")
            continue
        path = at(store / "manifests", digits)
        if not path.is_file():
            found.append(f"ref {name} leads to no manifest")
            continue
        document = path.read_bytes()
        if sha256(document) != digits:
            found.append(f"ref {name} leads to a damaged manifest")
            continue
        for entry in json.loads(document)["files"]:
            blob = at(store / "blobs", entry["digest"].removeprefix("sha256:"))
            if not blob.is_file():
                found.append(f"{name} lacks {entry['path']}")
            elif blob.stat().st_size != entry["size"]:
                found.append(f"{entry['path']} of {name} has another size")
    places = ("", "trash/*/")
    shelved = [
        path
        for place in places
        for shelf in ("blobs", "manifests")
        for path in store.glob(f"{place}{shelf}/sha256/*/*")
    ]
    found += [
        f"{path} is on the wrong shelf" for path in shelved if path.parent.name != path.name[:2]
    ]
    told = [path for place in places for path in store.glob(f"{place}attestations/*/*")]
    named = [*shelved, *told]
    found += [
        f"{path} isn't what its name says"
        for path in named
        if path.name != sha256(path.read_bytes())
    ]
    return found


def at(shelf: Path, digits: str) -> Path:
    """Where the bytes named `digits` lie on a shelf (blobs or manifests)."""
    return shelf / "sha256" / digits[:2] / digits


def sha256(data: bytes) -> str:
    """The hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
