"""Canonical JSON and digests: the same facts are the same bytes on every machine.

Keys sorted by code point, no white space, UTF-8, no NaN, and whole numbers written as integers (a config that says
`"lora_alpha": 32.0` states the same fact as one that says 32).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from adapterhub.errors import FormatError

DIGEST_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# What follows a backslash: a whole surrogate pair, half of one (in the group), or anything else.
_ESCAPED = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)"
)
MAX_DOCUMENT_BYTES = 16 * 2**20
"""A manifest or attestation larger than this is an attack or a mistake, never metadata."""
MAX_DEPTH = 100
"""So is one nested deeper. Python gives up at some hundreds, and where exactly depends on who called."""


def canonical_bytes(document: Mapping[str, Any]) -> bytes:
    """The one encoding of `document`. Raises FormatError for what JSON can't say (NaN, bytes, ...) or is nested too deeply."""
    try:
        text = json.dumps(
            _normal(document),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError("A document can't be written as JSON.", why=str(error)) from error


def is_digest(text: object) -> TypeGuard[str]:
    """Whether `text` is `sha256:` and 64 hexadecimal digits."""
    return isinstance(text, str) and bool(_DIGEST.match(text))


def digest_of(data: bytes) -> str:
    """`sha256:<hex>` of `data`."""
    return DIGEST_PREFIX + hashlib.sha256(data).hexdigest()


def read_object(path: Path, what: str) -> dict[str, Any]:
    """As `parse_object`, of a file, of which no more is read than that allows."""
    with path.open("rb") as file:
        return parse_object(file.read(MAX_DOCUMENT_BYTES + 1), what)


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`, read with bounds; FormatError names `what` when it isn't one.

    JSON can also say what no file, name or database can hold (half of a surrogate pair, a number beyond all others) and
    nest deeper than a function can call itself. Such a document is refused whole, so that nobody who is given one need
    ask again: whatever comes out of here, `canonical_bytes` can write.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(
            f"{what} is too large.",
            why=f"The limit is {MAX_DOCUMENT_BYTES} bytes.",
        )
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        if any(escaped[1] for escaped in _ESCAPED.finditer(text)):
            raise ValueError("it holds half of a surrogate pair, which is no character")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON.", why=str(error)) from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} must be a JSON object.", why=f"It is a {type(value).__name__}.")
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
        raise FormatError(f"{what} is nested too deeply.", why=f"The limit is {MAX_DEPTH} levels.")
    return value


def _is_deep(document: dict[str, Any]) -> bool:
    level: list[dict[str, Any] | list[Any]] = [document]
    for _ in range(MAX_DEPTH):
        inner = (part.values() if isinstance(part, dict) else part for part in level)
        level = [
            item for parts in inner for item in parts if item and isinstance(item, dict | list)
        ]
    return bool(level)


def _normal(value: Any) -> Any:
    if (
        isinstance(value, float)
        and math.isfinite(value)
        and value.is_integer()
        and abs(value) < 2**53
    ):
        return int(value)
    if isinstance(value, Mapping):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(item) for item in value]
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} appears twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
