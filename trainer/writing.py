"""Recipes written for people: the documented example with other values, so that its comments live in one place.

The file `example.yaml` beside this one has a line for every key; here the values change and the comments stay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from adapterhub.trainer.presets import with_preset
from adapterhub.yamltext import parse_yaml

EXAMPLE = Path(__file__).with_name("example.yaml")
_LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value> +[^#]*?)?(?P<comment> +#.*)?\Z")
_COMMENT_COLUMN = 30


def recipe_text(document: Mapping[str, Any], file: str = "recipe.yaml") -> str:
    """A commented recipe with every key: the values of `document`, its preset's, and else the example's.

    `file` is what the recipe will be called; its first lines say how to check it. `document` need not be complete.
    """
    values = with_preset(document)
    if values.get("epochs") is not None:
        values["steps"] = None
    return "\n".join(_lines(values, file)) + "\n"


def example_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the example's name, base, data and length of training where it has none, as `recipe_text` has."""
    example = parse_yaml(EXAMPLE.read_bytes(), EXAMPLE.name)
    length = {} if with_preset(document).get("epochs") is not None else {"steps": example["steps"]}
    data = {"path": example["data"]["path"], **(document.get("data") or {})}
    return {"name": example["name"], "base": example["base"], **document, "data": data, **length}


def path_from(folder: Path, text: str, *places: Path) -> str:
    """A path as a recipe in `folder` has it: `text`, a file or folder that lies here or in one of `places`.

    What isn't there (a repository, an address, a file to come) and what is absolute stays as it is.
    """
    typed = Path(text).expanduser()
    if typed.is_absolute() or "://" in text:
        return text
    for place in (Path(), *places):
        if os.path.exists(place / typed):  # noqa: PTH110 - False for what can be no name
            return os.path.relpath(place / typed, folder)
    return text


def _lines(values: Mapping[str, Any], file: str) -> Iterator[str]:
    example = parse_yaml(EXAMPLE.read_bytes(), EXAMPLE.name)
    section = ""
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        found = _LINE.match(line)
        if found is None:
            yield line.replace(EXAMPLE.name, file)
            continue
        key = found["key"]
        if not found["indent"]:
            section = key if isinstance(example[key], dict) else ""
        inner, standard = (
            (values.get(section), example[section]) if found["indent"] else (values, example)
        )
        if key == section and not found["indent"]:
            yield line
        elif key == "steps" and values.get("epochs") is not None:
            yield _line("epochs", values["epochs"], found)
        elif isinstance(inner, Mapping) and key in inner and not _same(inner[key], standard[key]):
            yield _line(key, inner[key], found)
        else:
            yield line


def _line(key: str, value: object, found: re.Match[str]) -> str:
    """The line of `found` with another value; the comment stays in its column where there is room."""
    text = f"{found['indent']}{key}: {as_written(value)}"
    comment = (found["comment"] or "").strip()
    return f"{text:<{_COMMENT_COLUMN - 1}} {comment}" if comment else text


def as_written(value: object) -> str:
    """The value as YAML on one line."""
    text: str = yaml.dump(
        value,
        Dumper=_OneLine,
        default_flow_style=True,
        width=10**9,
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _same(one: object, other: object) -> bool:
    """Equal and not just alike: `True == 1` in Python, and they are two values in YAML."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


class _OneLine(yaml.SafeDumper):
    """Plain values; text with line feeds in it is quoted so that it stays on its line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    )


_OneLine.add_representer(str, _text)
