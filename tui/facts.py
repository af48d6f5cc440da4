"""The vocabulary of the detail pane: titled lists of short facts, and how values are said.

Strings from adapters and attestations pass `said` or `clean` on their way in; what draws them never reads markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.cli.output import clean
from adapterhub.words import short

Tone = Literal["", "strong", "warning", "error"]
Names = Mapping[str, str]
"""A name for each digest that has one."""

MOST_LINES = 12
"""Longer lists and tables are cut here; `adapterhub show` has all."""


@dataclass(frozen=True)
class Fact:
    """One line: a label (may be empty) and what there is to say."""

    label: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Section:
    """Facts under a title (may be empty)."""

    title: str
    facts: tuple[Fact, ...]


def said(value: object, names: Names | None = None) -> str:
    """A value in words: digests by name or short, numbers to four digits, lists with commas."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{clean(key)} {said(item, names)}" for key, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(said(item, names) for item in value) or "–"
    text = str(value)
    if text.startswith(DIGEST_PREFIX) and len(text) == len(DIGEST_PREFIX) + 64:
        name = (names or {}).get(text)
        return f"{name} (@{short(text)})" if name else f"@{short(text)}"
    return clean(text)


def moment(text: str) -> str:
    """An ISO 8601 time in UTC as people read it, to the minute."""
    return clean(f"{text[:10]} {text[11:16]} UTC" if len(text) >= 16 else text)


def tell(body: Mapping[str, Any], names: Names, indent: str = "") -> Iterator[Fact]:
    """Any document, whoever wrote it: a line a field; what doesn't fit a line is indented below."""
    for number, (key, value) in enumerate(body.items()):
        label = indent + clean(key)
        if number == MOST_LINES:
            yield _more(indent, len(body) - number)
            return
        if isinstance(value, Mapping) and any(
            isinstance(item, Mapping | list) and item for item in value.values()
        ):
            yield Fact(label, "")
            yield from tell(value, names, indent + "  ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from listed(label, value, names)
        elif value not in (None, [], {}):
            yield Fact(label, said(value, names))


def listed(label: str, items: Sequence[object], names: Names) -> Iterator[Fact]:
    """A list with a line an item, the label before the first."""
    for number, item in enumerate(items[:MOST_LINES]):
        yield Fact(label if number == 0 else "", said(item, names))
    if len(items) > MOST_LINES:
        yield _more("", len(items) - MOST_LINES)


def _more(indent: str, count: int) -> Fact:
    return Fact(f"{indent}…", f"and {count} more: adapterhub show")
