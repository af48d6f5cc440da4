"""Where the keys of a recipe stand in its text: the line that an error speaks of, and the key that a line is about."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from adapterhub.errors import AdapterHubError

_WORD = re.compile(r"[A-Za-z_][\w.\-]*\w|\w")


@dataclass(frozen=True)
class Key:
    """A key by its path (`eval.every`) and the line it stands on, counted from 0."""

    path: str
    line: int


def keys_of(text: str) -> tuple[Key, ...]:
    """The keys of a YAML text, in order; none where it can't be read."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return ()
    return tuple(_keys(node, "")) if isinstance(node, yaml.MappingNode) else ()


def key_at(text: str, line: int) -> str:
    """The path of the key that `line` belongs to; empty above the first one.

    Of a text that is no YAML at the moment, because somebody is typing, the word before the line's colon.
    """
    keys = keys_of(text)
    if keys:
        place = bisect_right([key.line for key in keys], line)
        return keys[place - 1].path if place else ""
    lines = text.splitlines()
    return _typed(lines, line) if line < len(lines) else ""


def line_of(error: AdapterHubError, text: str) -> int | None:
    """The line that the error is about: where YAML breaks off, else that of the first key that the error names."""
    mark = getattr(error.__cause__, "problem_mark", None)
    if mark is not None:
        return int(mark.line)
    lines = {key.path: key.line for key in reversed(keys_of(text))}
    named = [word.rstrip(".") for word in _WORD.findall(error.what)]
    for word in named:
        if word in lines:
            return lines[word]
    # A key that lacks stands nowhere; the section that it would be in does.
    return next((lines[w.partition(".")[0]] for w in named if w.partition(".")[0] in lines), None)


def _keys(node: yaml.MappingNode, prefix: str) -> Iterator[Key]:
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            path = f"{prefix}{key.value}"
            yield Key(path, key.start_mark.line)
            if isinstance(value, yaml.MappingNode):
                yield from _keys(value, f"{path}.")


def _typed(lines: list[str], line: int) -> str:
    found = re.match(r"( *)(\w+):", lines[line])
    if found is None:
        return ""
    if not found[1]:
        return found[2]
    above = (re.match(r"(\w+):", other) for other in reversed(lines[:line]))
    section = next((match[1] for match in above if match), "")
    return f"{section}.{found[2]}" if section else found[2]
