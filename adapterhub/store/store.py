"""The store as the rest of the hub sees it: resolve a name, read facts, add, tag, remove, view.

Nothing is created by looking: an absent store is an empty one, and its folders come with the first change.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from shlex import quote
from typing import Any

from adapterhub.base import BaseModel, BaseRegistry, Verdict, fits
from adapterhub.canonical import DIGEST_PREFIX, digest_of
from adapterhub.errors import (
    AdapterHubError,
    FormatError,
    IncompatibleError,
    NotFoundError,
    StoreDamagedError,
    UnsupportedError,
    UsageError,
)
from adapterhub.formats.folders import Source
from adapterhub.formats.peft import WEIGHTS_NAME, AdapterFacts, read_facts
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.fsio import (
    Staged,
    flush_names,
    fsync_directory,
    is_folder,
    is_read_only,
    make_directory,
    new_folder,
    require_free,
    write_file,
)
from adapterhub.manifest import (
    Attestation,
    AttestationType,
    Manifest,
    parse_manifest,
)
from adapterhub.names import DigestPointer, Name, parse_pointer
from adapterhub.settings import Settings, read_settings
from adapterhub.store import gating, views
from adapterhub.store.adding import Added, Adding
from adapterhub.store.attestations import Attestations
from adapterhub.store.blobs import REPAIR, Blobs
from adapterhub.store.catalogue.cachefile import CacheFile, default_folder
from adapterhub.store.journal import Change
from adapterhub.store.layout import FORMAT_VERSION, Layout, check_format, default_home
from adapterhub.store.leases import Leases
from adapterhub.store.locks import locked
from adapterhub.store.places import Places
from adapterhub.store.refs import Move, Refs
from adapterhub.store.trash import Trash
from adapterhub.words import short, some


@dataclass(frozen=True)
class Resolved:
    """What a name or digest pointer means right now."""

    digest: str
    manifest: Manifest
    name: Name | None

    @property
    def label(self) -> str:
        """The name where there is one, else the short digest."""
        return str(self.name) if self.name else f"@{short(self.digest)}"


@dataclass(frozen=True)
class Entry:
    """One ref, as `ls` lists it. `added` is when the ref was last set (ISO 8601, UTC)."""

    name: Name
    digest: str
    manifest: Manifest
    added: str


class Store:
    """One store on disk. Cheap to make; safe to use from several processes."""

    def __init__(self, home: Path) -> None:
        self.layout = Layout(home.absolute())
        self.refs = Refs(self.layout, partial(gating.require, self))
        self.cache = CacheFile(self.layout)
        self.blobs = Blobs(self.layout, self.cache)
        self._told = Attestations(self.layout, self.blobs)
        self.bases = BaseRegistry(self.layout.bases)
        self.leases = Leases(self.layout)
        self.places = Places(self.layout)
        check_format(self.layout)

    @classmethod
    def open(cls, home: Path | None = None) -> Store:
        """The store at `home`, by default `$ADAPTERHUB_HOME` or the platform's folder for user data."""
        return cls(home or default_home())

    @property
    def home(self) -> Path:
        return self.layout.home

    @cached_property
    def settings(self) -> Settings:
        """`config.toml`, or the defaults."""
        return read_settings(self.layout.settings)

    @property
    def runs_dir(self) -> Path:
        """Where runs are recorded: in the home, or beside the cache where the home can't be written."""
        home = self.layout.runs if self.layout.runs.exists() else self.layout.home
        if home.exists() and not os.access(home, os.W_OK):
            return default_folder() / "runs"
        return self.layout.runs

    # Reading

    def resolve(self, text: str) -> Resolved:
        """What `text` points at. NotFoundError with "did you mean", UsageError for an ambiguous prefix."""
        pointer = parse_pointer(text)
        if isinstance(pointer, Name):
            try:
                digest = self.refs.require(pointer)
            except NotFoundError as error:
                self._perhaps_a_digest(text, error)
                raise
            return Resolved(digest, self.manifest(digest), pointer)
        digest = self._by_prefix(pointer, text)
        return Resolved(digest, self.manifest(digest), None)

    def manifest(self, digest: str) -> Manifest:
        """The manifest with this digest; StoreDamagedError when it is gone or its bytes have changed."""
        path = self.layout.manifest(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            kept = self.layout.in_trash(path)
            if kept is None:
                raise StoreDamagedError(
                    f"The manifest {short(digest)} is missing from the store.",
                    why=f"{path} is gone, though a ref names it.",
                    hint=f"Mend it from another copy, or add the adapter again from where it came: {REPAIR}",
                ) from None
            data = kept.read_bytes()
        if digest_of(data) != digest:
            raise StoreDamagedError(
                f"The manifest {short(digest)} has changed on disk.",
                why=f"{path} now hashes to {short(digest_of(data))}.",
                hint=f"Mend it from another copy, or add the adapter again from where it came: {REPAIR}",
            )
        return parse_manifest(data)

    def entries(
        self, damaged: Callable[[Name, AdapterHubError], None] | None = None
    ) -> list[Entry]:
        """Every ref with its manifest, in order of names.

        Args:
            damaged: called for each name that can't be read, which is then left out; by default the error is raised.
        """
        found = []
        for name in self.refs.names():
            try:
                digest = self.refs.read(name)
                if digest is not None:
                    found.append(Entry(name, digest, self.manifest(digest), self.added(name)))
            except AdapterHubError as error:
                if damaged is None:
                    raise
                damaged(name, error)
        return found

    def added(self, name: Name) -> str:
        """When the ref was last set (ISO 8601, UTC); empty where there is none."""
        try:
            when = self.layout.ref(name).stat().st_mtime
        except FileNotFoundError:  # removed by another process since it was read
            return ""
        return datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")

    def attestations(self, digest: str) -> list[Attestation]:
        """What is known about an adapter, oldest first."""
        return self._told.of(digest)

    def known_base(self, digest: str) -> Mapping[str, Any]:
        """The base this adapter was trained on or last checked against: its attestation's body, or nothing."""
        for attestation in reversed(self.attestations(digest)):
            if attestation.tells_the_base:
                return attestation.body
        return {}

    def known_fingerprint(self, digest: str) -> str | None:
        """The fingerprint of that base."""
        return self.known_base(digest).get("fingerprint")

    def facts(self, resolved: Resolved) -> AdapterFacts:
        """The adapter's modules and configuration, read from its stored files."""
        config = self.weights_entry(resolved, CONFIG_NAME)
        with self.tensors(resolved) as weights:
            return read_facts(self.blobs.verified(config), weights)

    def tensors(self, resolved: Resolved, *, verify: bool = False) -> TensorFile:
        """The adapter's tensors, mapped. With `verify`, the bytes are hashed again first."""
        digest = self.weights_entry(resolved, WEIGHTS_NAME)
        if verify:
            self.blobs.verified(digest)
        try:
            return TensorFile(self.blobs.path(digest), label=WEIGHTS_NAME)
        except FormatError:
            self.blobs.verified(
                digest
            )  # it was sound when it was added: say that the store is damaged
            raise

    def weights_entry(self, resolved: Resolved, path: str) -> str:
        """The digest of the adapter's file `path`; UnsupportedError when the manifest names none."""
        entry = resolved.manifest.file(path)
        if entry is None:
            raise UnsupportedError(f"{resolved.label} has no {path}, so it is no PEFT adapter.")
        return entry.digest

    def fit(self, resolved: Resolved, base: BaseModel) -> Verdict:
        """Whether the adapter fits `base`, with everything the store knows about it."""
        return fits(
            self.facts(resolved),
            base,
            claim=resolved.manifest.base,
            known_fingerprint=self.known_fingerprint(resolved.digest),
        )

    def base_for(self, resolved: Resolved, explicit: str | None = None) -> BaseModel:
        """The base to use with an adapter: the one asked for, else the one it claims, found on this machine."""
        if explicit is not None:
            return self.bases.open(explicit)
        claim, known = resolved.manifest.base, self.known_base(resolved.digest)
        for record in self.bases.records():
            if record["fingerprint"] == known.get("fingerprint") and is_folder(record["path"]):
                return self.bases.open(record["path"])
        repo, revision = claim.repo or known.get("repo"), claim.revision or known.get("revision")
        if isinstance(repo, str) and isinstance(revision, str | None):
            return self.bases.open(repo, revision=revision)
        raise NotFoundError(
            f"{resolved.label} doesn't say which base it belongs to.",
            hint="Name it: --base FOLDER_OR_REPO",
        )

    def base_label(self, digest: str, manifest: Manifest) -> str | None:
        """What to call the adapter's base: its claim, else the base of this machine with the known fingerprint."""
        if manifest.base.repo is not None:
            return manifest.base.repo
        known = self.known_base(digest)
        for record in self.bases.records() if known else []:
            if record["fingerprint"] == known["fingerprint"]:
                return str(record["repo"] or Path(record["path"]).name)
        repo = known.get("repo")
        return repo if isinstance(repo, str) else None

    def require_fit(
        self, resolved: Resolved, base: BaseModel, *, allow_mismatch: bool = False
    ) -> Verdict:
        """As `fit`, but IncompatibleError where it doesn't, unless allowed."""
        verdict = self.fit(resolved, base)
        if not verdict.ok and not allow_mismatch:
            raise misfit(resolved, base, verdict)
        return verdict

    def log(self, name: Name | None = None) -> list[Change]:
        """Every change, oldest first; of all tags of one name where `name` is given."""
        changes = [change for done in self.refs.journal.operations() for change in done.changes]
        if name is None:
            return changes
        return [change for change in changes if change.ref.partition(":")[0] == name.path]

    # Changing

    def add_folder(
        self,
        folder: Path,
        *,
        source: Source | None = None,
        name: str | None = None,
        base: str | None = None,
        allow_mismatch: bool = False,
        move: bool = False,
        provenance: Mapping[str, Any] | None = None,
        attestations: Sequence[tuple[AttestationType, Mapping[str, Any]]] = (),
        why: str = "",
        op: str = "add",
        note: Callable[[str], None] = lambda _: None,
        verify: Callable[[str, Staged], None] = lambda _path, _copy: None,
        named: bool = True,
    ) -> Added:
        """Puts a PEFT folder into the store under `name` (default: the folder's). See `Adding` for the order of writes.

        Args:
            source: the adapter's files where the caller has chosen them; by default what `find_source` finds in `folder`.
            base: folder or repository to check the adapter against; the fingerprint is then attested.
            allow_mismatch: add it although it doesn't fit; that is attested too.
            move: point an existing name at the new adapter.
            provenance: where it came from; by default "imported".
            attestations: what else is known about it; written before the ref, so they are there once the name is.
            note: called with each remark a person should read.
            verify: called with the path and our copy of every file; raises where those are not the bytes expected.
            named: without it the adapter gets no name: only its digest leads to it, until gc has swept it away.
        """
        with self.writing():
            adding = Adding(
                self.layout,
                self.blobs,
                self.refs,
                self.bases,
                self.places,
                self.cache,
                self.attest,
                self.attestations,
                self.known_fingerprint,
            )
            return adding.run(
                folder,
                source=source,
                name=name,
                base=base,
                allow_mismatch=allow_mismatch,
                move=move,
                provenance=provenance,
                attestations=attestations,
                why=why,
                op=op,
                note=note,
                verify=verify,
                named=named,
            )

    def attest(self, digest: str, kind: AttestationType, body: Mapping[str, Any]) -> Attestation:
        """Records something about an adapter; the same statement again changes nothing."""
        with self.writing():
            return self._told.add(digest, kind, body)

    def tag(
        self, resolved: Resolved, name: Name, *, move: bool = False, without_gates: bool = False
    ) -> bool:
        """Gives an adapter another name; False when it had that one.

        GateError where the name asks for more than is known of the adapter; `without_gates` gives it all the same,
        which is attested.
        """
        with self.writing(), self.refs.changing() as change:
            Trash(self.layout).require(resolved.digest)  # a collection may have come in between
            findings = gating.findings(self, name, resolved.digest) if without_gates else []
            why = f"tag {resolved.label} {name}"
            created = change.set(
                name, resolved.digest, op="tag", why=why, move=move, gated=not without_gates
            )
        if created and not all(finding.held for finding in findings):
            told = [asdict(finding) for finding in findings]
            body = {"event": "gate", "name": str(name), "without_gates": told}
            self.attest(resolved.digest, "note", body)
        return created

    def remove(self, names: list[Name]) -> list[tuple[Name, str]]:
        """Removes refs, all or none; returns the digests they had. The adapters themselves stay."""
        with self.writing(), self.refs.changing() as change:
            removed = [(name, self.refs.require(name)) for name in names]
            change.commit(
                [Move(name, digest, None) for name, digest in removed],
                op="rm",
                why=f"rm {some([str(name) for name in names], 8)}",
            )
        return removed

    def names_of(self, digest: str) -> list[Name]:
        """All names of an adapter. A damaged ref is no name of anything."""
        found = []
        for name in self.refs.names():
            with suppress(StoreDamagedError):
                if self.refs.read(name) == digest:
                    found.append(name)
        return found

    def tags_of(self, path: str) -> list[Name]:
        """All names with this `namespace/name`, whatever their tag."""
        return [name for name in self.refs.names() if name.path == path]

    def view(self, digest: str) -> Path:
        """The adapter as an immutable PEFT folder for servers and libraries, made on first use."""
        target = self.layout.view(digest)
        if target.is_dir():
            return target
        manifest = self.manifest(digest)
        try:
            with self.writing():
                return views.make(target, manifest, self.blobs)
        except OSError as error:
            if not is_read_only(error):
                raise
        elsewhere = default_folder() / "views" / self.cache.path.stem
        return views.make(elsewhere / target.name, manifest, self.blobs)

    def checkout(self, resolved: Resolved, folder: Path, *, overwrite: bool = False) -> None:
        """Writes the adapter as a PEFT folder of the user's own, sharing no inode with the store."""
        require_free(
            folder,
            overwrite,
            keep=(self.home,),
            hint=f"adapterhub checkout {resolved.label} {quote(str(folder))} --overwrite",
        )
        with new_folder(folder, overwrite=overwrite) as building:
            views.fill(building, resolved.manifest, self.blobs, link=False)
        self.places.remember(resolved.digest, folder)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Held by everything that adds to the store, so that a collection never runs between its writes."""
        self.prepare()
        with locked(self.layout.lock, exclusive=False):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by what takes something away: nobody else is adding."""
        self.prepare()
        with locked(self.layout.lock, exclusive=True):
            yield

    def prepare(self) -> None:
        """Makes the store's folders where they are missing."""
        if self.layout.version.exists() and self.layout.id.exists() and self.layout.tmp.is_dir():
            return
        make_directory(self.layout.tmp)
        make_directory(self.layout.journal.parent)
        flush_names(self.layout.store, self.layout.home)
        with suppress(
            PermissionError
        ):  # a home that was given to us in a folder of somebody else's
            fsync_directory(self.layout.home.parent)
        with locked(self.layout.lock, exclusive=True):
            for path, text in (
                (self.layout.id, secrets.token_hex(16)),
                (self.layout.version, FORMAT_VERSION),
            ):
                if not path.exists():
                    write_file(path, f"{text}\n".encode(), self.layout.tmp)

    def _perhaps_a_digest(self, text: str, error: NotFoundError) -> None:
        """Says so where the unknown name is a digest without its @."""
        with suppress(AdapterHubError):
            pointer = parse_pointer(f"@{text}")
            if isinstance(pointer, DigestPointer) and self._by_prefix(pointer, text):
                error.why = f"Did you mean the digest @{text}?"

    def _by_prefix(self, pointer: DigestPointer, text: str) -> str:
        shelf = self.layout.manifests / pointer.prefix[:2]
        found = (
            sorted(path.name for path in shelf.glob(f"{pointer.prefix}*")) if shelf.is_dir() else []
        )
        if pointer.name is not None:
            ever = {change.after for change in self.log(pointer.name)}
            found = [hexadecimal for hexadecimal in found if DIGEST_PREFIX + hexadecimal in ever]
        if not found:
            raise NotFoundError(
                f"No adapter has a digest that begins as in {text}.",
                hint="`adapterhub ls` shows digests.",
            )
        if len(found) > 1:
            raise UsageError(
                f"{text} could be {len(found)} adapters.",
                why="They are " + ", ".join(f"@{hexadecimal[:16]}" for hexadecimal in found[:5]),
                hint="Give more digits.",
            )
        return DIGEST_PREFIX + found[0]


def misfit(resolved: Resolved, base: BaseModel, verdict: Verdict) -> IncompatibleError:
    """The refusal of an adapter that doesn't fit, with the flag that goes on all the same."""
    return IncompatibleError(
        f"{resolved.label} doesn't fit the base {base.label}.",
        why="; ".join(verdict.reasons),
        hint="Choose the right base with --base, or say --allow-mismatch if you are sure (it will be recorded).",
    )
