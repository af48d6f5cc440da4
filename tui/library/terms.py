"""The filter's language: free words, and the words of `adapterhub ls` as `rank:>=16`.

What a row tells by itself is checked in memory. Three words (`fits:`, `parent:`, `unused:`) are questions to the hub,
which somebody else asks; their answers are sets of digests.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from adapterhub.errors import UsageError
from adapterhub.settings import duration
from adapterhub.store.catalogue.search import parse_ranks
from adapterhub.tui.library.rows import Row
from adapterhub.words import did_you_mean

Test = Callable[[Row], bool]

HINTS = {
    "base": "base:qwen, a part of the base's name",
    "rank": "rank:16, rank:8..64 or rank:>=16",
    "kind": "kind:lora, kind:dora, ...",
    "target": "target:q_proj; repeat it for all of several",
    "method": "method:merged, trained, imported, ties, qlora, ...",
    "parent": "parent:NAME, made from this adapter",
    "fits": "fits:BASE, a folder or a repository of this machine",
    "unused": "unused:30d, not used for so long",
}
"""Every key, and what may follow it."""
FLAGS = ("damaged", "marked", "running")
ASKED = frozenset(("parent", "fits", "unused"))


class Asked(NamedTuple):
    """A word that only the hub can answer."""

    key: str
    value: str


@dataclass(frozen=True)
class Terms:
    """A filter, read. `problem` says what is wrong with it, `hint` what may follow a key that has no value yet."""

    words: tuple[str, ...] = ()
    narrowing: tuple[str, ...] = ()
    """The other words, as they were typed."""
    tests: tuple[Test, ...] = ()
    flags: frozenset[str] = frozenset()
    asked: tuple[Asked, ...] = ()
    problem: str = ""
    hint: str = ""
    unknown: tuple[str, ...] = ()
    """What stands before a colon and is no filter. It may be the name before a tag."""


@lru_cache(maxsize=256)
def parse(query: str) -> Terms:
    """What `query` asks for. Never raises: a word that can't be understood filters nothing, and is told."""
    words: list[str] = []
    narrowing: list[str] = []
    tests: list[Test] = []
    asked: list[Asked] = []
    flags: set[str] = set()
    unknown: list[str] = []
    problem = hint = ""
    for word in _split(query):
        key, colon, value = word.partition(":")
        key = key.lower()
        if word in FLAGS:
            flags.add(word)
            narrowing.append(word)
        elif not colon or key not in HINTS:
            words.append(word.lower())
            if colon and (meant := did_you_mean(key, HINTS)):
                problem = f"There is no filter {key}: ({meant})"
            elif colon:
                unknown.append(key)
        elif not value:
            hint = HINTS[key]
        else:
            narrowing.append(word)
            try:
                if key in ASKED:
                    asked.append(_asked(key, value))
                else:
                    tests.append(_TESTS[key](value))
            except UsageError as error:
                problem = f"{error.what} {HINTS[key]}"
    return Terms(
        tuple(words),
        tuple(narrowing),
        tuple(tests),
        frozenset(flags),
        tuple(asked),
        problem,
        hint,
        tuple(unknown),
    )


def _split(query: str) -> list[str]:
    if '"' in query:
        try:
            return shlex.split(query)
        except ValueError:  # a quote that isn't closed yet
            pass
    return query.split()


def _asked(key: str, value: str) -> Asked:
    if key == "unused":
        duration(value, "behind unused:")
    return Asked(key, value)


def _base(value: str) -> Test:
    wanted = value.lower()
    return lambda row: wanted in row.base.lower()


def _rank(value: str) -> Test:
    low, high = parse_ranks(value)
    return lambda row: row.rank is not None and low <= row.rank <= high


def _kind(value: str) -> Test:
    wanted = value.lower()
    return lambda row: row.kind.lower() == wanted


def _target(value: str) -> Test:
    return lambda row: value in row.targets or f"{value}_proj" in row.targets


def _method(value: str) -> Test:
    wanted = value.lower()
    return lambda row: wanted in (row.method.lower(), row.event.lower())


_TESTS: dict[str, Callable[[str], Test]] = {
    "base": _base,
    "rank": _rank,
    "kind": _kind,
    "target": _target,
    "method": _method,
}
