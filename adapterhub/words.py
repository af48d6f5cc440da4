"""Small helpers that turn facts into words: short digests, sizes, lists, their order, the nearest known name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from adapterhub.canonical import DIGEST_PREFIX


def short(digest: str, length: int = 12) -> str:
    """A digest as people read it: its first `length` hexadecimal digits."""
    return digest.removeprefix(DIGEST_PREFIX)[:length]


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def natural(text: str) -> list[tuple[bool, int, str]]:
    """A key to sort by as people do: checkpoint-9 before checkpoint-10."""
    parts = re.split(r"(\d+)", text)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`; for nouns that take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_size(size: float) -> str:
    """Bytes in the unit people use: 1.5 kB, 41.9 MB (powers of 1000, as disks and the Hub count)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def human_count(count: float) -> str:
    """A number of parameters or tokens: 960, 41.9M, 8.07B."""
    for unit in ("", "k", "M", "B"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}T"


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """A sentence with the closest known words, or an empty string."""
    close = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else ""
