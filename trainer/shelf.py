"""Recipes that one may want: the files below a folder, those of former trainings, and the presets."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.names import slug
from adapterhub.trainer.presets import PRESETS
from adapterhub.trainer.recipe import parse_recipe
from adapterhub.trainer.writing import example_document, recipe_text
from adapterhub.yamltext import parse_yaml

MOST_FOLDERS = 2000
"""Folders that are looked into; a home directory has more than anybody waits for."""
MOST_RECIPES = 500
_DEEPEST = 6
_LARGEST = 128 * 1024
"""Bytes of a file that may be a recipe."""
_ENDINGS = (".yaml", ".yml")
_NEEDED = {"name", "base", "data"}
_PASSED_OVER = frozenset({"node_modules", "site-packages", "__pycache__", "venv", "env"})


@dataclass(frozen=True)
class Recipes:
    """Files that are recipes, or would like to be; `whole` tells whether everything was looked at."""

    files: tuple[Path, ...]
    whole: bool


@dataclass(frozen=True)
class Former:
    """A training that was, and the text of its recipe with every key explained."""

    run: str
    began: str
    """The day, as its id has it."""
    name: str
    base: str
    text: str


def recipes_below(folder: Path) -> Recipes:
    """The recipes below `folder`, nearest first; hidden folders and those of packages are passed over.

    A file counts that has a recipe's three needed keys, whatever else may be wrong with it.
    """
    found: list[Path] = []
    waiting = deque([(folder, 0)])
    looked_into = 0
    while waiting and looked_into < MOST_FOLDERS and len(found) < MOST_RECIPES:
        here, depth = waiting.popleft()
        looked_into += 1
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < _DEEPEST and entry.name not in _PASSED_OVER:
                    waiting.append((Path(entry.path), depth + 1))
            elif entry.name.endswith(_ENDINGS) and _is_recipe(Path(entry.path)):
                found.append(Path(entry.path))
    return Recipes(tuple(found[:MOST_RECIPES]), not waiting)


def former_trainings(runs: Path, most: int = 50) -> list[Former]:
    """The recipes of the trainings recorded in `runs`, newest first, each once."""
    found: dict[str, Former] = {}
    for folder in sorted(_trainings(runs), reverse=True):
        if len(found) == most:
            break
        try:
            document = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
            parse_recipe(document)
        except (OSError, ValueError, TypeError, AdapterHubError):
            continue  # it was refused before it had one, or was written by another version
        key = json.dumps(document, sort_keys=True)
        if key not in found:
            text = recipe_text(document)
            found[key] = Former(
                folder.name, _day(folder.name), document["name"], document["base"], text
            )
    return list(found.values())


def preset_text(preset: str | None) -> str:
    """A recipe with every key explained: a preset's, or the plain example."""
    given: dict[str, Any] = {"preset": preset} if preset else {}
    return recipe_text(example_document(given))


def file_for(text: str) -> str:
    """What the file of a recipe may be called: as its adapter, as far as that can be told."""
    try:
        document = parse_yaml(text, "")
    except AdapterHubError:
        document = None
    name = document.get("name") if isinstance(document, dict) else None
    return (
        f"{slug(name.partition(':')[0])}.yaml" if isinstance(name, str) and name else "recipe.yaml"
    )


def presets() -> tuple[str, ...]:
    """Their names."""
    return tuple(PRESETS)


def _is_recipe(path: Path) -> bool:
    try:
        if path.stat().st_size > _LARGEST:
            return False
        document = parse_yaml(path.read_bytes(), path.name)
    except (OSError, AdapterHubError):
        return False
    return isinstance(document, dict) and document.keys() >= _NEEDED


def _day(run: str) -> str:
    """`2026-01-31` of `train-20260131-...`; empty where the id is none of ours."""
    found = re.match(r"train-(\d{4})(\d\d)(\d\d)-", run)
    return "-".join(found.groups()) if found else ""


def _trainings(runs: Path) -> Iterator[Path]:
    if runs.is_dir():
        yield from (run for run in runs.iterdir() if run.name.startswith("train-"))
