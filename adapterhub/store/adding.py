"""How an adapter enters the store: stage and hash a copy, judge the copy, then commit in the order that survives a crash.

Blobs first, then the manifest, then attestations, and the ref last: a reader goes the other way, so whatever a ref
leads to is complete. Everything is judged on our own copy, not on the source, which may change under us.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel, BaseRegistry, Verdict, fits
from adapterhub.errors import FormatError, IncompatibleError
from adapterhub.formats.peft import (
    NO_BASE,
    WEIGHTS_NAME,
    AdapterFacts,
    find_peft,
    read_facts,
    scan_values,
)
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.fsio import Staged, stage_copy
from adapterhub.manifest import (
    Attestation,
    AttestationType,
    FileEntry,
    Manifest,
    is_safe_relative_path,
    make_manifest,
)
from adapterhub.names import Name, parse_name, slug
from adapterhub.store.blobs import Blobs
from adapterhub.store.layout import Layout
from adapterhub.store.refs import Refs
from adapterhub.words import some

_SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})
_CHECKPOINT = re.compile(r"checkpoint-\d+\Z")


@dataclass(frozen=True)
class Added:
    """The outcome of adding. `created` is False when name and adapter were there already."""

    digest: str
    name: Name
    created: bool
    manifest: Manifest
    notes: tuple[str, ...] = field(default=())


@dataclass
class Adding:
    """One addition. The caller holds the store's writing lock."""

    layout: Layout
    blobs: Blobs
    refs: Refs
    bases: BaseRegistry
    attest: Callable[[str, AttestationType, Mapping[str, Any]], Attestation]
    attestations: Callable[[str], list[Attestation]]
    known_fingerprint: Callable[[str], str | None]

    def run(
        self,
        folder: Path,
        *,
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
    ) -> Added:
        """Raises FormatError, IncompatibleError, ConflictError, OutOfSpaceError; the store is then as it was."""
        found = find_peft(folder)
        target = parse_name(name) if name is not None else Name("", slug(folder.resolve().name))
        model = self.bases.open(base) if base is not None else None
        staged: dict[str, Staged] = {}
        try:
            sources, notes = _files(found.config.parent)
            for path, source in sources.items():
                staged[path] = stage_copy(source, self.layout.tmp)
                verify(path, staged[path])
            facts, content, remarks = _judge(staged)
            base_known = model is not None or any(kind == "base" for kind, _ in attestations)
            notes += [remark for remark in remarks if not (base_known and remark == NO_BASE)]
            manifest = _manifest(facts, staged, content)
            known_base = self.known_fingerprint(manifest.digest)
            verdict = _check_fit(facts, model, known_base, allow_mismatch, folder)
            for remark in notes:
                note(remark)
            body = dict(
                provenance
                or {"event": "imported", "claimed_base": facts.config.claimed_base, "notes": notes}
            )
            told = {attestation.type for attestation in self.attestations(manifest.digest)}
            statements = list(attestations)
            if provenance is not None or "provenance" not in told:
                statements.append(("provenance", body))
            if model is not None and verdict is not None:
                statements.append(("base", _base_body(model, verdict, body)))
            with self.refs.changing() as change:
                change.check(
                    target, manifest.digest, move=move
                )  # a refusal must come before anything is written
                for copy in staged.values():
                    self.blobs.commit(copy)
                staged.clear()  # all in place: nothing is left to clean up once the name is set
                self.blobs.write_document(self.layout.manifest(manifest.digest), manifest.data)
                for kind, statement in statements:
                    self.attest(manifest.digest, kind, statement)
                created = change.set(
                    target, manifest.digest, op=op, why=why or f"add {folder}", move=move
                )
            return Added(manifest.digest, target, created, manifest, tuple(notes))
        except FormatError as error:
            error.why = error.why or "Such a file can't be used safely."
            error.hint = error.hint or f"Nothing was stored. Save or fetch {folder} again."
            raise
        finally:
            for copy in staged.values():
                copy.path.unlink(missing_ok=True)


def _files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Every regular file of the adapter by its relative POSIX path, and remarks on what was left out."""
    root = folder.resolve()
    # The Hub's cache is a folder of links into blobs/ beside snapshots/; any other link that leaves is refused.
    allowed = [root] + ([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])
    files: dict[str, Path] = {}
    notes: list[str] = []
    checkpoints: list[str] = []

    def walk(directory: Path) -> None:
        for path in sorted(directory.iterdir()):
            relative = path.relative_to(root).as_posix()
            if path.is_dir() and not path.is_symlink():
                if path.name in _SKIPPED_FOLDERS:
                    continue
                if _CHECKPOINT.match(path.name) and (path / CONFIG_NAME).is_file():
                    checkpoints.append(path.name)
                    continue
                walk(path)
            elif path.is_file():
                if not any(path.resolve().is_relative_to(place) for place in allowed):
                    raise FormatError(
                        f"{relative} is a link that leads out of {folder}.",
                        why="It is not part of the adapter.",
                    )
                if not is_safe_relative_path(relative):
                    raise FormatError(f"The file name {relative!r} can't be kept on every system.")
                files[relative] = path
            else:
                notes.append(f"{relative} is no regular file and was left out")

    walk(root)
    if checkpoints:
        notes.append(
            f"{some(checkpoints)} are adapters of their own and were left out; add them by themselves"
        )
    return files, notes


def _judge(staged: Mapping[str, Staged]) -> tuple[AdapterFacts, str, list[str]]:
    with TensorFile(staged[WEIGHTS_NAME].path, label=WEIGHTS_NAME) as weights:
        facts = read_facts(staged[CONFIG_NAME].path, weights)
        content, value_notes = scan_values(facts, weights)
    beyond = facts.beyond_lora()
    remarks = [*facts.notes, *value_notes]
    if beyond:
        remarks.append(
            "it is kept whole, but can't be merged or exported yet, because it has "
            + "; ".join(beyond)
        )
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
            hint=f"If you are sure:  adapterhub add {folder} --base {model.path} --allow-mismatch   (it will be attested)",
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
