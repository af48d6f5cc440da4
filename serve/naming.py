"""Under which names an adapter is served, and by which name the engine knows a version."""

from __future__ import annotations

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.names import DigestPointer, parse_pointer
from adapterhub.store import Resolved
from adapterhub.words import short

BASE = "base"
"""The word that means the base of a server, whatever it is called there."""


def version_name(alias: str, digest: str) -> str:
    """The name that means this version for ever: `tone`, `tone:v2` and `tone@1f2e3d` -> `tone@1f2e3d4c5b6a`."""
    return f"{alias.partition('@')[0].partition(':')[0]}@{short(digest)}"


def public_names(text: str, adapter: Resolved) -> tuple[str, ...]:
    """`tone` -> tone, tone@1f2e…; `tone:v2` -> tone:v2, tone@…; a digest pointer has only the second kind."""
    pointer = parse_pointer(text)
    if isinstance(pointer, DigestPointer):
        return (version_name(pointer.name.path if pointer.name else "", adapter.digest),)
    return (str(pointer), version_name(str(pointer), adapter.digest))


def engine_name(digest: str) -> str:
    """What the engine calls a version: the digest's hexadecimal digits, so that one name is one content for ever.

    Its prefix cache goes by name and path; under a name that is used again it would mix two versions.
    """
    return digest.removeprefix(DIGEST_PREFIX)
