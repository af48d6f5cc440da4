"""Fuzzy search: the characters of a word in their order, best where they stand together at the beginning of a word."""

from __future__ import annotations

import re
from functools import lru_cache

WORD_START, TOGETHER, ELSEWHERE, SCATTERED = range(4)
"""How good a match is, the best first. ELSEWHERE: not in the name, but in what else is known."""

Span = tuple[int, int]


def grade(word: str, name: str, others: str) -> int | None:
    """How well `word` matches, None where it doesn't. All three are in lower case."""
    at = name.find(word)
    if at >= 0:
        return WORD_START if _word_start(word, name, at) is not None else TOGETHER
    if word in others:
        return ELSEWHERE
    return SCATTERED if scattered(word).search(name) else None


def spans(word: str, name: str) -> list[Span]:
    """Which characters of `name` (in lower case) the word matches; none where only something else does."""
    at = name.find(word)
    if at >= 0:
        start = _word_start(word, name, at)
        first = at if start is None else start
        return [(first, first + len(word))]
    if not scattered(word).search(name):
        return []
    found: list[Span] = []
    place = 0
    for character in word:
        place = name.index(character, place)
        found.append((place, place + 1))
        place += 1
    return found


@lru_cache(maxsize=64)
def scattered(word: str) -> re.Pattern[str]:
    """Finds the characters of a word in their order, whatever stands between them."""
    return re.compile("".join(f"[^{re.escape(one)}]*{re.escape(one)}" for one in word), re.DOTALL)


def _word_start(word: str, name: str, at: int) -> int | None:
    """Where from `at` on the word stands at the beginning of a word."""
    while at > 0 and name[at - 1].isalnum():
        at = name.find(word, at + 1)
    return at if at >= 0 else None
