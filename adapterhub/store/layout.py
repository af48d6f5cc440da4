"""Where everything lies in a store. Plain files are the truth; these are their places.

store/format-version  id  lock  tmp/
  blobs/sha256/ab/<hex>       write-once bytes
  manifests/sha256/ab/<hex>   canonical JSON; the digest is the adapter's identity
  attestations/<subject>/<hex>
  refs/<namespace>/<name>/<tag>   one line: sha256:...   (namespace "_" where none was given)
  log/refs.jsonl              every change of a ref
  log/attestations.jsonl      every attestation, in the order they were made
  leases/<id>.json            what servers, merges and exports are using
  views/<digest>/             an adapter as a PEFT folder for servers; never edited
  trash/<id>/                 what a collection took away, under the same paths
  quarantine/<id>/            what a repair set aside, under the same paths
runs/<id>/   bases/<key>.json   config.toml   places.jsonl
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import UnsupportedError
from adapterhub.fsio import typed_path
from adapterhub.names import Name

FORMAT_VERSION = "1"
NO_NAMESPACE = "_"
"""Not a legal namespace, so it can't collide with one."""


def default_home() -> Path:
    """`$ADAPTERHUB_HOME`, else the platform's folder for user data."""
    chosen = os.environ.get("ADAPTERHUB_HOME")
    if chosen:
        return typed_path(chosen)
    import platformdirs

    return Path(platformdirs.user_data_dir("adapterhub", appauthor=False))


def check_format(layout: Layout) -> None:
    """UnsupportedError where the store is of a format this version can't read. An absent store is of none."""
    try:
        found = layout.version.read_text("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return
    if found != FORMAT_VERSION:
        raise UnsupportedError(
            f"The store at {layout.home} has format {found[:20]!r}.",
            why=f"This version of adapterhub reads format {FORMAT_VERSION}.",
            hint="Upgrade adapterhub, or choose another store with ADAPTERHUB_HOME.",
        )


@dataclass(frozen=True)
class Layout:
    """The paths of a store below `home`."""

    home: Path

    @property
    def store(self) -> Path:
        return self.home / "store"

    @property
    def version(self) -> Path:
        return self.store / "format-version"

    @property
    def id(self) -> Path:
        return self.store / "id"

    @property
    def lock(self) -> Path:
        return self.store / "lock"

    @property
    def tmp(self) -> Path:
        return self.store / "tmp"

    @property
    def refs(self) -> Path:
        return self.store / "refs"

    @property
    def journal(self) -> Path:
        return self.store / "log" / "refs.jsonl"

    @property
    def attested(self) -> Path:
        return self.store / "log" / "attestations.jsonl"

    @property
    def leases(self) -> Path:
        return self.store / "leases"

    @property
    def trash(self) -> Path:
        return self.store / "trash"

    @property
    def quarantine(self) -> Path:
        return self.store / "quarantine"

    @property
    def views(self) -> Path:
        return self.store / "views"

    @property
    def places(self) -> Path:
        return self.home / "places.jsonl"

    @property
    def settings(self) -> Path:
        return self.home / "config.toml"

    @property
    def blobs(self) -> Path:
        return self.store / "blobs" / "sha256"

    @property
    def told(self) -> Path:
        """What the attestations tell: a folder for every adapter."""
        return self.store / "attestations"

    @property
    def manifests(self) -> Path:
        return self.store / "manifests" / "sha256"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def bases(self) -> Path:
        return self.home / "bases"

    def blob(self, digest: str) -> Path:
        return _sharded(self.blobs, digest)

    def manifest(self, digest: str) -> Path:
        return _sharded(self.manifests, digest)

    def attestations(self, subject: str) -> Path:
        return self.told / subject.removeprefix(DIGEST_PREFIX)

    def view(self, digest: str) -> Path:
        return self.views / digest.removeprefix(DIGEST_PREFIX)

    def in_trash(self, path: Path) -> Path | None:
        """Where the file that belongs at `path` lies in the trash, if it does; the newest where there are several."""
        return next(iter(self.all_in_trash(path)), None)

    def all_in_trash(self, path: Path) -> list[Path]:
        """Every place in the trash of what belongs at `path`, the newest first."""
        relative = path.relative_to(self.store)
        folders = sorted(self.trash.iterdir(), reverse=True) if self.trash.is_dir() else []
        return [folder / relative for folder in folders if (folder / relative).exists()]

    def ref(self, name: Name) -> Path:
        return self.refs / (name.namespace or NO_NAMESPACE) / name.name / name.tag


def _sharded(root: Path, digest: str) -> Path:
    hexadecimal = digest.removeprefix(DIGEST_PREFIX)
    return root / hexadecimal[:2] / hexadecimal
