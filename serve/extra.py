"""What the user hands on to vLLM after `--`, read where it bears on what adapterhub says beforehand."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SUFFIX = {
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip
"""As vLLM reads numbers: 1k is 1000, 1K is 1024."""


def values(extra: Sequence[str], *flags: str) -> list[str] | None:
    """The words after the last of `flags` in `extra`, up to the next flag; None where none of them is given.

    `--a-b x y`, `--a_b x` and `--a-b=x` are known; abbreviations of flags are not.
    """
    found: list[str] | None = None
    open_now = False
    for word in extra:
        if word.startswith("-") and not re.fullmatch(r"-\.?\d.*", word):
            flag, equals, value = word.partition("=")
            dashed = f"--{flag[2:].replace('_', '-')}" if flag.startswith("--") else flag
            open_now = dashed in flags
            if open_now:
                found = [value] if equals else []
        elif open_now and found is not None:
            found.append(word)
    return found


def value(extra: Sequence[str], *flags: str) -> str | None:
    """The word after the last of `flags`, where there is one."""
    found = values(extra, *flags)
    return found[0] if found else None


def number(extra: Sequence[str], *flags: str) -> float | None:
    """That word as a number, `8k` and `1.5G` too; None where there is none or it can't be read."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kmgtKMGT]?)", value(extra, *flags) or "")
    return float(match[1]) * _SUFFIX.get(match[2], 1) if match else None
