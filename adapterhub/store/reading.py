"""Which files a check reads again: all of them, a part of them each day, or those that were read longest ago."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import UsageError
from adapterhub.settings import duration
from adapterhub.store.catalogue.seen import verified_at
from adapterhub.store.checking import Choose
from adapterhub.store.store import Store

ALL = "all"
_PART = re.compile(r"(\d{1,6})/(\d{1,6})\Z")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?)%\Z")

Blob = tuple[str, Path, int]


@dataclass(frozen=True)
class Reading:
    """A choice of blobs: part `n` of `t` by digest, at least `share` of the bytes, none verified within `max_age` seconds."""

    part: tuple[int, int] = (1, 1)
    share: float = 1.0
    max_age: float | None = None

    @classmethod
    def parse(cls, text: str | None, max_age: str | None) -> Reading | None:
        """What `--read-data[=n/t|x%]` and `--max-age` ask for; None for no reading."""
        if text is None:
            if max_age is not None:
                raise UsageError(
                    "--max-age says which bytes need no reading.",
                    hint=f"adapterhub fsck --read-data --max-age {max_age}",
                )
            return None
        age = duration(max_age, "for --max-age") if max_age is not None else None
        if text == ALL:
            return cls(max_age=age)
        if match := _PART.match(text):
            part = (int(match[1]), int(match[2]))
            if 1 <= part[0] <= part[1]:
                return cls(part=part, max_age=age)
        if (match := _SHARE.match(text)) and 0 < float(match[1]) <= 100:
            return cls(share=float(match[1]) / 100, max_age=age)
        raise UsageError(
            f"--read-data={text} is no part of the data.",
            why="It must be n/t with n from 1 to t, or a percentage.",
            hint="For example --read-data, --read-data=1/7 or --read-data=10%.",
        )

    def of(self, store: Store) -> Choose:
        """The choice for this store."""

        def choose(blobs: list[Blob]) -> Iterable[Blob]:
            number, parts = self.part
            mine = [blob for blob in blobs if _number(blob) % parts == number - 1]
            if self.max_age is None and self.share == 1:
                return mine
            when = {blob[0]: verified_at(store.cache, blob[1], blob[0]) or 0.0 for blob in mine}
            if self.max_age is not None:
                since = (
                    time.time() - self.max_age
                )  # for an infinite age: whatever was never verified as it is
                mine = [blob for blob in mine if when[blob[0]] <= max(since, 0.0)]
            return _first(sorted(mine, key=lambda blob: (when[blob[0]], blob[0])), self.share)

        return choose


def _first(blobs: list[Blob], share: float) -> list[Blob]:
    """So many from the front that they have this share of the bytes."""
    wanted = share * sum(size for _, _, size in blobs)
    chosen, total = [], 0
    for blob in blobs:
        if total >= wanted:
            break
        chosen.append(blob)
        total += blob[2]
    return chosen


def _number(blob: Blob) -> int:
    return int(blob[0].removeprefix(DIGEST_PREFIX)[:12], 16)
