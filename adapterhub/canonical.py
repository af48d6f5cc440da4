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
from typing import Any

from adapterhub.errors import FormatError

DIGEST_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
MAX_DOCUMENT_BYTES = 16 * 2**20
"""A manifest or attestation larger than this is an attack or a mistake, never metadata."""


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


def is_digest(text: object) -> bool:
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
    """The JSON object in `data`, read with bounds; FormatError names `what` when it isn't one."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(
            f"{what} is too large.",
            why=f"The limit is {MAX_DOCUMENT_BYTES} bytes.",
        )
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{what} is not valid JSON.", why=str(error) or "It is nested too deeply."
        ) from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} must be a JSON object.", why=f"It is a {type(value).__name__}.")
    return value


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


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
