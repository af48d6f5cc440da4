"""A lineage as lines of text: a tree upward, to what it was made from, and a tree downward, to what was made of it."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.store.catalogue.kinship import Lineage
from adapterhub.words import short

_DEEPEST = 40
"""Generations drawn; a deeper tree says so."""


def drawn(found: Lineage) -> Iterator[str]:
    """The lines: the adapter itself, then what it was made from and what was made of it, a generation an indent."""
    yield _line(found, found.digest)
    for title, digests in (
        ("made from", found.parents(found.digest)),
        ("made of it", found.children(found.digest)),
    ):
        if digests:
            yield title
            up = title == "made from"
            yield from _branches(found, digests, "", {found.digest}, up=up)


def _branches(
    found: Lineage, digests: list[str], margin: str, seen: set[str], *, up: bool
) -> Iterator[str]:
    """A tree of relatives; who was drawn above is named again, without his own."""
    for place, digest in enumerate(digests, 1):
        last = place == len(digests)
        following = found.parents(digest) if up else found.children(digest)
        again = digest in seen and following
        deep = len(margin) >= 3 * _DEEPEST
        more = " …" if (again or deep) and following else ""
        yield f"{margin}{'└─ ' if last else '├─ '}{_line(found, digest)}{more}"
        if not again and not deep:
            seen.add(digest)
            yield from _branches(found, following, margin + ("   " if last else "│  "), seen, up=up)


def _line(found: Lineage, digest: str) -> str:
    one = found.relatives.get(digest)
    if one is None:  # beyond the bound of a lineage
        return f"@{short(digest)}"
    parts = [one.label, f"@{short(digest)}" if one.names else "", one.made]
    parts.append("" if one.here else "not in this store")
    return "  ".join(part for part in parts if part)
