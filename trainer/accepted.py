"""What a key of the recipe accepts, in words taken from the schema itself, so that the two can't differ."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

from adapterhub.errors import UsageError
from adapterhub.words import did_you_mean, shown
from adapterhub.yamltext import parse_yaml


def refusal(
    error: msgspec.ValidationError, schema: type[msgspec.Struct], document: Mapping[str, Any]
) -> UsageError:
    """msgspec's error about `document` as a sentence: the key's path, what it holds, and what is accepted there."""
    said, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    missing = re.search(r"missing required field `(\w+)`", said)
    if missing:
        key = f"{path}.{missing[1]}" if path else missing[1]
        return UsageError(
            f"The recipe lacks the key {key}.",
            hint="adapterhub recipe init  writes one with every key explained",
        )
    found: Any = document
    for part in re.findall(r"\w+", path):
        found = _inside(found, part)
    kind = kind_at(schema, path)
    return UsageError(
        f"The recipe's {path or 'document'} is {_quoted(found)}, which can't be taken.",
        why=f"Accepted: {accepted(kind)}.",
        hint=_help(path, kind, found),
    )


def kind_at(schema: type[msgspec.Struct], path: str) -> inspect.Type:
    """The type of the key at `path` (`eval.every`, `data.path[0]`)."""
    kind: inspect.Type = inspect.type_info(schema)
    for part in re.findall(r"\w+", path):
        kind = _kind_inside(kind, part)
    return kind


def accepted(kind: inspect.Type) -> str:
    """`a whole number of at least 1, or null`: everything a key of this type takes."""
    parts = [_one(one) for one in _alternatives(kind)]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + f", or {parts[-1]}"


def _one(kind: inspect.Type) -> str:
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.IntType():
            return _bounded("a whole number", kind)
        case inspect.FloatType():
            return _bounded("a number", kind)
        case inspect.LiteralType(values=values):
            return " | ".join(map(str, values))
        case inspect.ListType(min_length=least):
            return "a list that isn't empty" if least else "a list"
        case inspect.StructType(fields=fields):
            return f"a section with the keys {', '.join(field.name for field in fields)}"
        case inspect.StrType(min_length=least):
            return "text that isn't empty" if least else "text"
    raise AssertionError(f"no words for {kind}")  # a test asks for those of every key


def _bounded(noun: str, kind: inspect.IntType | inspect.FloatType) -> str:
    low = [f"at least {kind.ge}"] if kind.ge is not None else []
    low += [f"greater than {kind.gt:g}"] if kind.gt is not None else []
    high = [f"at most {kind.le:g}"] if kind.le is not None else []
    high += [f"less than {kind.lt}"] if kind.lt is not None else []
    bounds = " and ".join([*low, *high])
    return f"{noun}, {bounds}" if bounds else noun


def _alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """The types of a union, null last; any other type alone."""
    if not isinstance(kind, inspect.UnionType):
        return [kind]
    return sorted(kind.types, key=lambda one: isinstance(one, inspect.NoneType))


def _inside(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and part.isdigit():
        return value[int(part)]
    return None


def _kind_inside(kind: inspect.Type, part: str) -> inspect.Type:
    for one in _alternatives(kind):
        if isinstance(one, inspect.ListType):
            return one.item_type
        if isinstance(one, inspect.StructType):
            return next(field.type for field in one.fields if field.name == part)
    raise AssertionError(f"nothing lies in {kind}")


def _quoted(value: object) -> str:
    """As the file has it: null, true and false are YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shown(value)


def _help(path: str, kind: inspect.Type, found: object) -> str:
    """What to write instead, where that can be told."""
    if not isinstance(found, str):
        return ""
    meant = did_you_mean(found, _choices(kind))
    if meant:
        return meant
    plain = _unquoted(found)
    for one in _alternatives(kind):
        number = isinstance(one, inspect.IntType | inspect.FloatType)
        if number and isinstance(plain, int | float) and not isinstance(plain, bool):
            return f"It stands in quotes, which makes it text. Write {path}: {found}"
        if isinstance(one, inspect.BoolType) and isinstance(plain, bool):
            return f"It stands in quotes, which makes it text. Write {path}: {found}"
        if isinstance(one, inspect.StructType) and one.fields[0].name == "path":
            return f"Write {path}: {{path: {found}}}"
    return ""


def _choices(kind: inspect.Type) -> Iterator[str]:
    for one in _alternatives(kind):
        if isinstance(one, inspect.LiteralType):
            yield from map(str, one.values)


def _unquoted(text: str) -> object:
    try:
        return parse_yaml(text, "")
    except UsageError:
        return None
