"""Names people give adapters, and the ways they can point at one.

`[namespace/]name[:tag]` names a ref; `name@sha256:<prefix>` and `@<prefix>` point at a digest. A name becomes a
path in the store, so everything that could leave the store's folder or mean two things is refused here, once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import UsageError

DEFAULT_TAG = "latest"
MIN_DIGEST_PREFIX = 6

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z")
_HEX = re.compile(r"[0-9a-f]{%d,64}\Z" % MIN_DIGEST_PREFIX)
# Windows and some network file systems give these a meaning of their own, whatever the extension.
_DEVICE_NAMES = frozenset(
    ["con", "prn", "aux", "nul"] + [f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10)]
)


@dataclass(frozen=True, order=True)
class Name:
    """A validated `[namespace/]name:tag`; `namespace` is empty when none was given."""

    namespace: str
    name: str
    tag: str = DEFAULT_TAG

    @property
    def path(self) -> str:
        """`namespace/name` without the tag: what people call the adapter."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def __str__(self) -> str:
        return self.path if self.tag == DEFAULT_TAG else f"{self.path}:{self.tag}"


@dataclass(frozen=True)
class DigestPointer:
    """`name@sha256:<prefix>` or `@<prefix>`: one digest, optionally among those a name ever had."""

    prefix: str
    name: Name | None = None


def parse_name(text: str) -> Name:
    """The name in `text`; raises UsageError where a part is not `[A-Za-z0-9][A-Za-z0-9._-]*` (at most 96 long)."""
    path, separator, tag = text.partition(":")
    if separator and not tag:
        raise _bad(text, "the tag after ':' is empty")
    parts = path.split("/")
    if len(parts) > 2:
        raise _bad(text, f"it has {len(parts)} parts; at most two are allowed: namespace/name")
    for part in (*parts, tag or DEFAULT_TAG):
        _check_part(text, part)
    namespace, name = ("", parts[0]) if len(parts) == 1 else (parts[0], parts[1])
    return Name(namespace, name, tag or DEFAULT_TAG)


def parse_pointer(text: str) -> Name | DigestPointer:
    """A name, or a pointer to a digest (`@1f2e3d`, `tone@sha256:1f2e3d`)."""
    before, separator, after = text.rpartition("@")
    if not separator:
        return parse_name(text)
    prefix = after.removeprefix(DIGEST_PREFIX).lower()
    if not _HEX.match(prefix):
        raise UsageError(
            f"'{text}' is not a digest.",
            why=f"After '@' there must be {MIN_DIGEST_PREFIX} to 64 hexadecimal digits (of sha256).",
            hint="`adapterhub ls` shows digests.",
        )
    return DigestPointer(prefix, parse_name(before) if before else None)


def slug(text: str) -> str:
    """A legal name part made of `text`, for names we propose ourselves."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80].rstrip("-._")
    if not cleaned or cleaned.partition(".")[0].lower() in _DEVICE_NAMES:
        return f"adapter-{cleaned}" if cleaned else "adapter"
    return cleaned


def is_name_part(text: str) -> bool:
    """Whether `text` may be a namespace, a name or a tag."""
    return bool(_PART.match(text))


def _check_part(text: str, part: str) -> None:
    if not _PART.match(part):
        raise _bad(
            text,
            f"'{part}' must begin with a letter or digit and may go on with letters, digits, '.', '_' and '-'"
            " (96 characters at most)",
        )
    if part.endswith(".") or part.partition(".")[0].lower() in _DEVICE_NAMES:
        raise _bad(text, f"'{part}' can't be a file name everywhere")


def _bad(text: str, why: str) -> UsageError:
    shown = text if text.isprintable() else repr(text)
    return UsageError(
        f"'{shown}' is not a valid name: {why}.",
        hint="Names look like `tone`, `support/tone` or `support/tone:v2`.",
    )
