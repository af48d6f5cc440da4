"""What an adapter *is*: the manifest, whose canonical JSON is hashed to give the adapter's identity.

A manifest holds only facts that are the same on every machine: the files, what the tensors mean, and which base the
author claims. Whatever is learned later (provenance, a fingerprint, an evaluation) is an `Attestation`, a document of
its own with the manifest's digest as its subject, so that knowing more never changes the identity.
Fields this version doesn't know are kept: the document as read is what is hashed and passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from adapterhub.canonical import canonical_bytes, digest_of, is_digest, parse_object
from adapterhub.errors import FormatError, UnsupportedError

MANIFEST_SCHEMA = "adapterhub.manifest/1"
ATTESTATION_SCHEMA = "adapterhub.attestation/1"

MAX_COUNT = 2**63 - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
"""Of parameters, bytes, ...: what a database can hold. More than that is no adapter of this world."""

_T = TypeVar("_T")
AttestationType = Literal["provenance", "base", "template", "eval", "note"]

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of the adapter: a relative POSIX path, its `sha256:` digest and its size in bytes."""

    path: str
    digest: str
    size: Annotated[int, msgspec.Meta(le=MAX_COUNT)]


class BaseClaim(msgspec.Struct, frozen=True):
    """The base model as the author claims it. `trained_on` is set where the trained weights differ (quantised)."""

    repo: str | None = None
    revision: str | None = None
    trained_on: dict[str, Any] | None = None


class LoraFacts(msgspec.Struct, frozen=True):
    """What a low-rank adapter's tensors mean. `rank` and `alpha` are the defaults that the patterns override."""

    rank: Count
    alpha: float
    targets: list[str] | str
    modules: Count
    parameters: Count
    dtype: str
    rank_pattern: dict[str, Count] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    modules_to_save: list[str] = []


class _Schema1(msgspec.Struct):
    kind: str
    base: BaseClaim
    files: list[FileEntry]
    content: str
    lora: LoraFacts | None = None


class _AttestationSchema1(msgspec.Struct):
    subject: str
    type: str
    created: str
    body: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A validated manifest, equal by digest. `document` is the JSON it came from, unknown fields included."""

    kind: str
    base: BaseClaim
    lora: LoraFacts | None
    files: tuple[FileEntry, ...]
    content: str
    document: Mapping[str, Any]

    @cached_property
    def data(self) -> bytes:
        """Canonical JSON."""
        return canonical_bytes(self.document)

    @cached_property
    def digest(self) -> str:
        """The adapter's identity: `sha256:` of the canonical JSON."""
        return digest_of(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The entry at `path`, if there is one."""
        return next((entry for entry in self.files if entry.path == path), None)


@dataclass(frozen=True)
class Attestation:
    """Something claimed or learned about the adapter `subject`."""

    subject: str
    type: str
    created: str
    body: Mapping[str, Any]
    document: Mapping[str, Any]

    @property
    def tells_the_base(self) -> bool:
        """Whether it says to which weights the adapter belongs. One made under --allow-mismatch says to which it doesn't."""
        return (
            self.type == "base"
            and isinstance(self.body.get("fingerprint"), str)
            and not self.body.get("allowed_mismatch")
        )

    @property
    def remarks(self) -> list[str]:
        """What was remarked upon when the adapter came in."""
        notes = self.body.get("notes") if self.type == "provenance" else None
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @cached_property
    def data(self) -> bytes:
        return canonical_bytes(self.document)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.data)


def make_manifest(
    *, kind: str, base: BaseClaim, lora: LoraFacts | None, files: list[FileEntry], content: str
) -> Manifest:
    """A manifest of these facts; files are put in order of their paths."""
    document = {
        "schema": MANIFEST_SCHEMA,
        "kind": kind,
        "base": msgspec.to_builtins(base),
        "lora": msgspec.to_builtins(lora),
        "files": msgspec.to_builtins(sorted(files, key=lambda entry: entry.path)),
        "content": content,
    }
    return parse_manifest(canonical_bytes(document))


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in `data`; FormatError with the path of the wrong field, UnsupportedError for another schema."""
    document = _document(data, "The manifest", MANIFEST_SCHEMA)
    fields = _convert(document, _Schema1, "The manifest")
    for entry in fields.files:
        if not is_safe_relative_path(entry.path):
            raise FormatError(
                "The manifest is not valid.", why=f"files[].path {entry.path!r} leaves the folder."
            )
        if not is_digest(entry.digest) or entry.size < 0:
            raise FormatError(
                "The manifest is not valid.",
                why=f"files[] entry {entry.path!r} has a wrong digest or size.",
            )
    if sum(entry.size for entry in fields.files) > MAX_COUNT:
        raise FormatError("The manifest is not valid.", why="No disk could hold its files.")
    paths = {entry.path for entry in fields.files}
    if len(paths) != len(fields.files):
        raise FormatError("The manifest is not valid.", why="Two files have the same path.")
    if paths & {path[:end] for path in paths for end, letter in enumerate(path) if letter == "/"}:
        raise FormatError("The manifest is not valid.", why="A file is the folder of another.")
    if not is_digest(fields.content):
        raise FormatError("The manifest is not valid.", why="content is not a sha256 digest.")
    return Manifest(
        fields.kind, fields.base, fields.lora, tuple(fields.files), fields.content, document
    )


def make_attestation(
    subject: str, kind: AttestationType, body: Mapping[str, Any], created: str
) -> Attestation:
    """An attestation about the manifest digest `subject`; `created` is an ISO 8601 time in UTC."""
    document = {
        "schema": ATTESTATION_SCHEMA,
        "subject": subject,
        "type": kind,
        "created": created,
        "body": dict(body),
    }
    return parse_attestation(canonical_bytes(document))


def parse_attestation(data: bytes) -> Attestation:
    """The attestation in `data`; errors as `parse_manifest`."""
    document = _document(data, "The attestation", ATTESTATION_SCHEMA)
    fields = _convert(document, _AttestationSchema1, "The attestation")
    if not is_digest(fields.subject):
        raise FormatError("The attestation is not valid.", why="subject is not a sha256 digest.")
    return Attestation(fields.subject, fields.type, fields.created, fields.body, document)


def is_commit(revision: object) -> bool:
    """Whether `revision` is a full commit hash: the only kind of revision that can't move."""
    return isinstance(revision, str) and bool(_COMMIT.match(revision))


def is_safe_relative_path(path: str) -> bool:
    """Whether `path` is a plain relative POSIX path that stays inside its folder on every system."""
    parts = path.split("/")
    return (
        0 < len(path) <= 1024
        and is_unicode(path)
        and "\\" not in path
        and "\0" not in path
        and ":" not in parts[0]
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can say and no file or file name can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _document(data: bytes, what: str, schema: str) -> dict[str, Any]:
    document = parse_object(data, what)
    found = document.get("schema")
    if found != schema:
        raise UnsupportedError(
            f"{what} has the schema {found!r}, which this version can't read.",
            why=f"This version reads {schema!r}.",
            hint="Upgrade adapterhub: pip install --upgrade adapterhub",
        )
    return document


def _convert(document: dict[str, Any], schema: type[_T], what: str) -> _T:
    try:
        return msgspec.convert(document, schema)
    except (msgspec.ValidationError, RecursionError) as error:
        raise FormatError(f"{what} is not valid.", why=str(error)) from error
