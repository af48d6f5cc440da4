"""Bytes for readers: anything at all, sound bytes that were damaged, and JSON that says something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.targets import Target

PIECES = (
    b"", b"\0", b"\xff", b"\n", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"\\u0000", b"../", b"/", b"@", b"%",
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"18446744073709551616", b"9" * 400, b"[" * 2000, b'{"a":' * 600,
    b"(a+)+$", b"(?R)", b"{e<=2}", b"[[:alpha:]]", "é\u202e\U0001f600".encode(),
    b".modules_to_save.", b".lora_A.", b"module.",
)  # fmt: skip
"""What is put in place of something."""

_texts = st.text(max_size=8) | st.sampled_from(
    ["", ".", "..", "../x", "/etc", "a\0b", "\ud800", "sha256:", "sha256:" + "ab" * 32, "x" * 5000, "sweep x", "1e5"]
)  # fmt: skip
_numbers = st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, -0.0, 1e-320])
_leaves = st.none() | st.booleans() | _numbers | st.integers() | st.floats(allow_nan=False) | _texts
_values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """What to read: one third each of the three kinds; no JSON where the reader takes something else."""
    seeds = [seed for seed in target.seeds if len(seed) < 20_000]
    kinds = [st.binary(max_size=200), _damaged(st.sampled_from(seeds))]
    if target.text:
        kinds.append(_retold(st.sampled_from(seeds)))
    return st.one_of(kinds)


@st.composite
def _damaged(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """A seed of which some places were replaced, left out or said twice."""
    data = draw(seeds)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from([*PIECES, data[start:end] * 2]) | st.binary(max_size=4))
        data = data[:start] + piece + data[end:]
    return data


@st.composite
def _retold(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """A seed that is JSON, line by line, in which some values are others. What isn't JSON stays."""
    lines = draw(seeds).split(b"\n")
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.integers(0, len(lines) - 1))
        try:
            value = json.loads(lines[place])
        except (ValueError, RecursionError):
            continue
        lines[place] = json.dumps(_changed(value, draw)).encode()
    return b"\n".join(lines)


def _changed(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """`value` with one of its parts changed, added or left out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        rest = {other: part for other, part in value.items() if other != key}
        how = draw(st.integers(0, 7))
        return rest if not how else {**rest, draw(_texts) if how == 1 else key: _changed(value[key], draw)}  # fmt: skip
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _changed(value[place], draw), *value[place + draw(st.integers(0, 1)) :]]  # fmt: skip
    return draw(_values)
