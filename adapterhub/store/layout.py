"""Where everything lies in a store. Plain files are the truth; these are their places.

store/format-version  id  lock  tmp/
  blobs/sha256/ab/<hex>       write-once bytes
  manifests/sha256/ab/<hex>   canonical JSON; the digest is the adapter's identity
  attestations/<subject>/<hex>
  refs/<namespace>/<name>/<tag>   one line: sha256:...   (namespace "_" where none was given)
  log/refs.jsonl              every change of a ref
  views/<digest>/             an adapter as a PEFT folder for servers; never edited
runs/<id>/   bases/<key>.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.names import Name

FORMAT_VERSION = "1"
NO_NAMESPACE = "_"
"""Not a legal namespace, so it can't collide with one."""


def default_home() -> Path:
    """`$ADAPTERHUB_HOME`, else the platform's folder for user data."""
    chosen = os.environ.get("ADAPTERHUB_HOME")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("adapterhub", appauthor=False))


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
    def manifests(self) -> Path:
        return self.store / "manifests" / "sha256"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def bases(self) -> Path:
        return self.home / "bases"

    def blob(self, digest: str) -> Path:
        return _sharded(self.store / "blobs" / "sha256", digest)

    def manifest(self, digest: str) -> Path:
        return _sharded(self.manifests, digest)

    def attestations(self, subject: str) -> Path:
        return self.store / "attestations" / subject.removeprefix(DIGEST_PREFIX)

    def view(self, digest: str) -> Path:
        return self.store / "views" / digest.removeprefix(DIGEST_PREFIX)

    def ref(self, name: Name) -> Path:
        return self.refs / (name.namespace or NO_NAMESPACE) / name.name / name.tag


def _sharded(root: Path, digest: str) -> Path:
    hexadecimal = digest.removeprefix(DIGEST_PREFIX)
    return root / hexadecimal[:2] / hexadecimal
