"""What is known about adapters: documents beside the manifests, named by their digests, with a log that tells of new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from adapterhub.canonical import DIGEST_PREFIX, digest_of
from adapterhub.errors import StoreDamagedError
from adapterhub.fsio import flush_names, make_directory
from adapterhub.manifest import (
    Attestation,
    AttestationType,
    make_attestation,
    parse_attestation,
)
from adapterhub.store.blobs import REPAIR, Blobs
from adapterhub.store.journal import append_lines, now
from adapterhub.store.layout import Layout
from adapterhub.store.locks import locked


class Attestations:
    """The attestations of one store."""

    def __init__(self, layout: Layout, blobs: Blobs) -> None:
        self._layout = layout
        self._blobs = blobs

    def of(self, digest: str) -> list[Attestation]:
        """What is known about an adapter, oldest first; with what a collection is just taking away."""
        folder = self._layout.attestations(digest)
        names = {
            path.name
            for place in (folder, *self._layout.all_in_trash(folder))
            for path in (place.iterdir() if place.is_dir() else ())
        }
        found = []
        for path in (folder / name for name in names):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                data = (self._layout.in_trash(path) or path).read_bytes()
            if digest_of(data) != DIGEST_PREFIX + path.name:
                raise StoreDamagedError(
                    f"The attestation {path} has changed on disk.",
                    hint=f"Set it aside, or replace it where another copy is found: {REPAIR}",
                )
            found.append(parse_attestation(data))
        return sorted(found, key=lambda attestation: (attestation.created, attestation.digest))

    def add(self, digest: str, kind: AttestationType, body: Mapping[str, Any]) -> Attestation:
        """Records something; the same statement again changes nothing, unless another evaluation of the same came in between.

        The caller holds the store's shared lock.
        """
        said = _readable(body)
        make_directory(self._layout.attested.parent)
        with locked(self._layout.attested, exclusive=True):
            same = [known for known in self.of(digest) if known.type == kind]
            for known in reversed(same):
                if known.document["body"] == said:
                    self._flush(digest)  # whoever wrote it may have died before doing so
                    return known
                if kind == "eval" and _matter(known.body) == _matter(said):
                    break  # something else was found since: what holds now is said again
            attestation = make_attestation(digest, kind, said, now("microseconds"))
            self._write(attestation)
        return attestation

    def _flush(self, digest: str) -> None:
        folder = self._layout.attestations(digest)
        if folder.is_dir():
            flush_names(folder, self._layout.store)

    def _write(self, attestation: Attestation) -> None:
        # The line comes first: one without a file costs the catalogue a look, a file without one would be missed.
        line = {
            "time": attestation.created,
            "subject": attestation.subject,
            "digest": attestation.digest,
            "type": attestation.type,
        }
        append_lines(self._layout.attested, json.dumps(line).encode() + b"\n")
        hexadecimal = attestation.digest.removeprefix(DIGEST_PREFIX)
        path = self._layout.attestations(attestation.subject) / hexadecimal
        self._blobs.write_document(path, attestation.data)


def _matter(body: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """What an evaluation is about; the newest about it is what holds."""
    data = body.get("data")
    digest = data.get("digest") if isinstance(data, Mapping) else None
    return body.get("event"), body.get("suite"), digest


def _readable(value: Any) -> Any:
    """`value` in UTF-8: what is said may quote the name of a file, which on Linux may be any bytes."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value
