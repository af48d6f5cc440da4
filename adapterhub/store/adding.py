"""How an adapter enters the store: stage and hash a copy, judge the copy, then commit in the order that survives a crash.

Blobs first, then the manifest, then attestations, and the ref last: a reader goes the other way, so whatever a ref
leads to is complete. Everything is judged on our own copy, not on the source, which may change under us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapterhub.base import BaseModel, BaseRegistry, Verdict, fits
from adapterhub.errors import FormatError, IncompatibleError
from adapterhub.formats.folders import Source, find_source
from adapterhub.formats.peft import (
    NO_BASE,
    WEIGHTS_NAME,
    AdapterFacts,
    read_facts,
    scan_values,
)
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.fsio import Staged, flush_names, stage_bytes, stage_copy
from adapterhub.manifest import (
    Attestation,
    AttestationType,
    FileEntry,
    Manifest,
    make_manifest,
)
from adapterhub.names import Name, parse_name
from adapterhub.store.blobs import Blobs, hash_file, touched
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.layout import Layout
from adapterhub.store.places import Places
from adapterhub.store.recognising import recognise, remember
from adapterhub.store.refs import Refs
from adapterhub.store.trash import Trash


@dataclass(frozen=True)
class Added:
    """The outcome of adding. `created` is False when name and adapter were there already."""

    digest: str
    name: Name
    created: bool
    manifest: Manifest
    notes: tuple[str, ...] = field(default=())
    mended: bool = False
    """Whether something of it was damaged or missing in the store, and is whole again."""


@dataclass
class Adding:
    """One addition. The caller holds the store's writing lock."""

    layout: Layout
    blobs: Blobs
    refs: Refs
    bases: BaseRegistry
    places: Places
    cache: CacheFile
    attest: Callable[[str, AttestationType, Mapping[str, Any]], Attestation]
    attestations: Callable[[str], list[Attestation]]
    known_fingerprint: Callable[[str], str | None]

    def run(
        self,
        folder: Path,
        *,
        source: Source | None,
        name: str | None,
        base: str | None,
        allow_mismatch: bool,
        move: bool,
        provenance: Mapping[str, Any] | None,
        attestations: Sequence[tuple[AttestationType, Mapping[str, Any]]],
        why: str,
        op: str,
        note: Callable[[str], None],
        verify: Callable[[str, Staged], None],
        named: bool = True,
    ) -> Added:
        """Raises FormatError, IncompatibleError, ConflictError, OutOfSpaceError; the store is then as it was."""
        source = source or find_source(folder)
        target = parse_name(name if name is not None else source.name)
        model = self.bases.open(base) if base is not None else None
        if model is None and provenance is None and not attestations:
            known = recognise(source, self.layout, self.blobs, self.cache)
            if known is not None and self._kept(known):
                return self._again(known, target, move=move, why=why or f"add {folder}", note=note)
        began = time.time()
        staged: dict[str, Staged] = {}
        try:
            for path, place in source.files.items():
                if isinstance(place, bytes):
                    staged[path] = stage_bytes(place, self.layout.tmp)
                else:
                    staged[path] = stage_copy(place, self.layout.tmp)
                verify(path, staged[path])
            facts, content, remarks = _judge(staged)
            base_known = model is not None or any(kind == "base" for kind, _ in attestations)
            remarks = [remark for remark in remarks if not (base_known and remark == NO_BASE)]
            notes = [*source.notes, *remarks]
            manifest = _manifest(facts, staged, content)
            known_base = self.known_fingerprint(manifest.digest)
            verdict = _check_fit(facts, model, known_base, allow_mismatch, folder)
            if verdict is not None and not verdict.ok:
                notes.append(f"allowed although it doesn't fit: {'; '.join(verdict.reasons)}")
            for remark in notes:
                note(remark)
            body = dict(provenance or {"event": "imported"})
            if body.get("event") in ("imported", "converted"):
                before = body.get("notes", [])
                body |= {
                    "claimed_base": facts.config.claimed_base,
                    "notes": [*before, *notes],
                }
            told = {attestation.type for attestation in self.attestations(manifest.digest)}
            statements = list(attestations)
            if provenance is not None or "provenance" not in told:
                statements.append(("provenance", body))
            if model is not None and verdict is not None:
                statements.append(("base", _base_body(model, verdict, body)))
            if named:
                with (
                    self.refs.changing() as change
                ):  # a refusal must come before anything is written
                    change.check(target, manifest.digest, move=move)
            remember(
                source, {path: copy.digest for path, copy in staged.items()}, self.cache, began
            )
            mended = sum(self.blobs.commit(copy) for copy in staged.values()) > 0
            staged.clear()  # all in place: nothing is left to clean up once the name is set
            Trash(self.layout).restore(manifest.digest)  # with all that was known about it
            mended = mended or not self.layout.manifest(manifest.digest).is_file()
            self.blobs.write_document(self.layout.manifest(manifest.digest), manifest.data)
            for kind, statement in statements:
                self.attest(manifest.digest, kind, statement)
            if body.get("event") == "imported":  # else the folder is a passing one
                self.places.remember(manifest.digest, folder)
            created = False
            if named:
                with (
                    self.refs.changing() as change
                ):  # held briefly: the copies were made without it
                    created = change.set(
                        target, manifest.digest, op=op, why=why or f"add {folder}", move=move
                    )
            return Added(
                manifest.digest, target, created, manifest, tuple(notes), mended and not created
            )
        except FormatError as error:
            error.why = error.why or "Such a file can't be used safely."
            error.hint = error.hint or f"Nothing was stored. Save or fetch {folder} again."
            raise
        finally:
            for copy in staged.values():
                copy.path.unlink(missing_ok=True)

    def _kept(self, known: Manifest) -> bool:
        """Whether all that an addition writes is there, and durably: whoever wrote it may have died before the end."""
        told = {attestation.type for attestation in self.attestations(known.digest)}
        files = [self.layout.blob(entry.digest) for entry in known.files]
        files.append(self.layout.manifest(known.digest))
        if "provenance" not in told or not all(map(touched, files)):
            return False
        flush_names(self.layout.attestations(known.digest), self.layout.store)
        return True

    def _again(
        self, known: Manifest, target: Name, *, move: bool, why: str, note: Callable[[str], None]
    ) -> Added:
        """Only the name may be new. What was remarked upon the first time is said again."""
        notes = [
            remark
            for attestation in self.attestations(known.digest)
            for remark in attestation.remarks
        ]
        for remark in notes:
            note(remark)
        with self.refs.changing() as change:
            created = change.set(target, known.digest, op="add", why=why, move=move)
        return Added(known.digest, target, created, known, tuple(notes))


def manifest_of(path: Path) -> Manifest:
    """The manifest the adapter at `path` would get, judged where it lies. Errors as `Adding.run`."""
    with TemporaryDirectory(prefix="adapterhub-") as area:  # for what is made of a header
        copies = {
            name: stage_bytes(place, Path(area))
            if isinstance(place, bytes)
            else Staged(place, hash_file(place), place.stat().st_size)
            for name, place in find_source(path).files.items()
        }
        facts, content, _ = _judge(copies)
    return _manifest(facts, copies, content)


def _judge(staged: Mapping[str, Staged]) -> tuple[AdapterFacts, str, list[str]]:
    with TensorFile(staged[WEIGHTS_NAME].path, label=WEIGHTS_NAME) as weights:
        facts = read_facts(staged[CONFIG_NAME].path, weights)
        content, value_notes = scan_values(facts, weights)
    remarks = [*facts.notes, *value_notes]
    for beyond, cannot in (
        (facts.beyond_lora(dora=True, whole=True), "but can't be merged or exported"),
        (facts.beyond_lora(dora=True, whole=True), "and can be merged, but not exported"),
    ):
        if beyond:
            remarks.append(f"it is kept whole, {cannot}, because it has {'; '.join(beyond)}")
            break
    return facts, content, remarks


def _check_fit(
    facts: AdapterFacts, model: BaseModel | None, known: str | None, allow: bool, folder: Path
) -> Verdict | None:
    if model is None:
        return None
    verdict = fits(facts, model, known_fingerprint=known)
    if not verdict.ok and not allow:
        raise IncompatibleError(
            f"{folder} doesn't fit the base {model.label}.",
            why="; ".join(verdict.reasons),
            hint="Choose the right base with --base, or say --allow-mismatch if you are sure (it will be recorded).",
        )
    return verdict


def _manifest(facts: AdapterFacts, staged: Mapping[str, Staged], content: str) -> Manifest:
    files = [FileEntry(path, copy.digest, copy.size) for path, copy in staged.items()]
    return make_manifest(
        kind=facts.kind, base=facts.config.base, lora=facts.lora(), files=files, content=content
    )


def _base_body(model: BaseModel, verdict: Verdict, provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "repo": model.repo,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "how": "checked" if provenance.get("event") == "imported" else str(provenance.get("event")),
        "modules_found": verdict.modules_found,
        "modules_total": verdict.modules_total,
        "allowed_mismatch": [] if verdict.ok else list(verdict.reasons),
    }
