"""Small helpers that turn facts into words: short digests, sizes, lists, their order, the nearest known name."""

from __future__ import annotations

import difflib
import re
import reprlib
import textwrap
from collections.abc import Iterable, Sequence

from adapterhub.canonical import DIGEST_PREFIX

_REPR = reprlib.Repr()  # Python 3.11 takes its limits one by one
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 2, 60, 40, 60


def short(digest: str, length: int = 12) -> str:
    """A digest as people read it: its first `length` hexadecimal digits."""
    return digest.removeprefix(DIGEST_PREFIX)[:length]


def word_of(value: object) -> str:
    """A parameter's value as people type it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(value: object) -> str:
    """A value that somebody wrote into a file, as an error quotes it: not more than a line."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        return "that"


def briefly(key: object) -> str:
    """A key that somebody wrote into a file, as `shown`, without quotes."""
    return shown(key).strip("'")


def hanging(head: str, text: str, width: int | None) -> list[str]:
    """`head` and `text` in lines of `width` columns at most, the further ones under the text; one line without a width."""
    if width is None or len(head) + len(text) <= width:
        return [head + text]
    return textwrap.wrap(
        text, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )


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


def human_seconds(seconds: float) -> str:
    """A length of time: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, int(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """A sentence with the closest known words, or an empty string."""
    close = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else ""
