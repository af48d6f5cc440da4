"""Patterns for module names that come from strangers' configurations: as PEFT reads them, but with limits.

PEFT takes each key of rank_pattern and alpha_pattern as a regular expression. One crafted line could hang every
command, so length, number, repeats and time are bounded.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from adapterhub.errors import FormatError

MAX_PATTERN = 4096
MAX_PATTERNS = 1000
MAX_REPEATS = 1000
PATTERN_SECONDS = 3.0
"""For all expressions of one configuration together."""

_PLAIN_PATTERN = re.compile(r"[A-Za-z0-9_.-]+\Z")
_OTHERWISE = re.compile(r"\{(?!\d{0,9}(?:,\d{0,9})?\})|\[:\^?\w{0,20}:\]")


class Patterns:
    """The keys of a rank_pattern or alpha_pattern, looked up by module.

    Each is a regular expression for a dotted suffix of the module's name, as PEFT takes it, and the first that matches
    counts. Those without operators but the dot, which matches any character, are found by hashing: a configuration may
    name ten thousand modules.
    """

    def __init__(self, keys: Iterable[str], clock: PatternClock) -> None:
        self._keys = list(keys)
        self._clock = clock
        self._expressions: list[int] = []
        self._plain: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        """The place of each plain key, by its length and by where its dots are."""
        for place, key in enumerate(self._keys):
            if _PLAIN_PATTERN.match(key):
                self._plain.setdefault(len(key), {}).setdefault(_dots(key), {})[key] = place
            else:
                self._expressions.append(place)

    def first(self, module: str) -> str | None:
        """The first key that PEFT would apply to `module`. FormatError for an expression that is wrong or too slow."""
        found = min(self._plain_matches(module), default=len(self._keys))
        for place in self._expressions:
            if place > found:
                break
            if self._clock.matches(self._keys[place], module):
                return self._keys[place]
        return self._keys[found] if found < len(self._keys) else None

    def _plain_matches(self, module: str) -> Iterator[int]:
        starts = [0, *(dot + 1 for dot in _dots(module))]
        for suffix in (module[start:] for start in starts):
            for dots, places in self._plain.get(len(suffix), {}).items():
                letters = list(suffix)
                for dot in dots:
                    letters[dot] = "."
                place = places.get("".join(letters))
                if place is not None:
                    yield place


def _dots(text: str) -> tuple[int, ...]:
    return tuple(place for place, letter in enumerate(text) if letter == ".")


def match_pattern(patterns: Iterable[str], module: str) -> str | None:
    """The first key that PEFT would apply to `module`; for many modules, keep a Patterns."""
    return Patterns(patterns, PatternClock()).first(module)


class PatternClock:
    """The time that all expressions of one configuration may take together."""

    def __init__(self) -> None:
        self._left = PATTERN_SECONDS
        self._compiled: dict[str, Any] = {}

    def matches(self, pattern: str, module: str) -> bool:
        """Whether `pattern` matches a dotted suffix of `module`; FormatError for one that is wrong or too slow."""
        import regex

        began = time.monotonic()
        try:
            if self._left <= 0:  # compiling takes time too, and can't be interrupted
                raise TimeoutError
            if pattern not in self._compiled:
                _check_size(pattern, len(self._compiled))
                with warnings.catch_warnings(action="ignore"):
                    re.compile(pattern)  # what PEFT takes: no recursion
                    self._compiled[pattern] = regex.compile(rf"(.*\.)?({pattern})$")
            return bool(self._compiled[pattern].match(module, timeout=max(1e-3, self._left)))
        except (
            re.error,
            regex.error,
            OverflowError,
            TimeoutError,
            RecursionError,
            MemoryError,
        ) as error:
            raise FormatError(
                f"The pattern {pattern[:80]!r} in adapter_config.json can't be used.",
                why="It takes too long to match."
                if isinstance(error, TimeoutError)
                else str(error) or "It is too large.",
                hint="Name the modules it means in full.",
            ) from error
        finally:
            self._left -= time.monotonic() - began


def _check_size(pattern: str, others: int) -> None:
    """Refuses what would take memory or time before the first match: very long, very many, or multiplied repeats.

    And what `regex` takes otherwise than `re`, with which PEFT reads it: fuzzy matching, and classes such as [:alpha:].
    """
    why = "It is too long, repeats too much, or is one of too many."
    wrong = len(pattern) > MAX_PATTERN or others >= MAX_PATTERNS
    if not wrong:
        counts = re.findall(r"\{(\d{0,9})(?:,(\d{0,9}))?\}", pattern)
        repeats = math.prod(max(int(low or 1), int(high or 1)) or 1 for low, high in counts)
        wrong = repeats > MAX_REPEATS
    if not wrong and _OTHERWISE.search(pattern):
        wrong, why = True, "It has braces that are no repeat, or a class of characters by its name."
    if wrong:
        raise FormatError(
            f"The pattern {pattern[:80]!r} in adapter_config.json can't be used.",
            why=why,
            hint="Name the modules it means in full.",
        )
