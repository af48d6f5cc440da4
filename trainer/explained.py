"""What each key of a recipe means, what it accepts and what it is when left out: for whoever writes one.

The words are the comments of `example.yaml`, and what is accepted comes from the schema, so nothing is said twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import msgspec
from msgspec import NODEFAULT, inspect

from adapterhub.trainer.accepted import accepted, kind_at
from adapterhub.trainer.recipe import Recipe
from adapterhub.trainer.writing import EXAMPLE, as_written

_KEY = re.compile(r"(?P<indent> *)(?P<key>\w+):[^#]*?(?:#(?P<words>.*))?\Z")
_MORE = re.compile(r" {20,}#(?P<words>.*)\Z")
"""The comment of a line goes on in the next one."""


@dataclass(frozen=True)
class Explanation:
    """A key (`eval.every`): its meaning (may be empty), what it takes, and its value where it isn't given (None: it must be)."""

    key: str
    words: str
    accepted: str
    default: str | None


def explain(key: str) -> Explanation | None:
    """What there is to know about a key; None where a recipe has none of that name."""
    return _all().get(key)


@cache
def _all() -> Mapping[str, Explanation]:
    words = dict(_comments(EXAMPLE.read_text(encoding="utf-8").splitlines()))
    words["epochs"] = words["steps"]
    schema = inspect.type_info(Recipe)
    assert isinstance(schema, inspect.StructType)
    return {
        key: Explanation(key, words.get(key, ""), accepted(kind_at(Recipe, key)), default)
        for key, default in _fields(schema, "")
    }


def _comments(lines: list[str]) -> Iterator[tuple[str, str]]:
    section, key, words = "", "", ""
    for line in [*lines, ""]:
        more = _MORE.match(line)
        if more and key:
            words += more["words"]
            continue
        if key:
            yield key, words.strip()
        found = _KEY.match(line)
        key, words = "", ""
        if found is not None and not line.startswith("#"):
            section = section if found["indent"] else found["key"]
            key = f"{section}.{found['key']}" if found["indent"] else found["key"]
            words = found["words"] or ""


def _fields(kind: inspect.StructType, prefix: str) -> Iterator[tuple[str, str | None]]:
    for field in kind.fields:
        given: object = field.default
        if given is NODEFAULT and field.default_factory is not NODEFAULT:
            given = field.default_factory()
        plain = msgspec.to_builtins(given) if given is not NODEFAULT else None
        yield f"{prefix}{field.name}", None if given is NODEFAULT else as_written(plain)
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for inner in kinds:
            if isinstance(inner, inspect.StructType):
                yield from _fields(inner, f"{prefix}{field.name}.")
