"""Values that anybody may have written, or a newer version: each is what was meant, or as good as not there. Nothing raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def mapping(value: object) -> Mapping[str, Any]:
    """A table as it is; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def inner(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table at `key`; an empty one where there is none."""
    return mapping(of.get(key))


def text(value: object) -> str | None:
    """A text as it is; None for anything else."""
    return value if isinstance(value, str) else None


def finite(value: object) -> float | None:
    """A number as a float; None for anything else, infinity too."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
