"""How to go on with a training that was stopped, or whose process was killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError, ConflictError, NotFoundError
from adapterhub.trainer.checkpoints import newest
from adapterhub.trainer.recipe import anywhere, load_recipe, parse_recipe

_KEPT = {"--processes": 1, "--sharding": 1, "--move": 0}
"""Options of `train` without which it would be another training, or refused; and how many words follow each."""


@dataclass(frozen=True)
class Resumption:
    """The words after `adapterhub` that go on with a run, from which step, and what there is to say about it."""

    words: tuple[str, ...]
    step: int
    remarks: tuple[str, ...] = ()


def resumption(run: Path, command: Sequence[str] = ()) -> Resumption:
    """How to go on with the training in the folder `run`, which was started with the words `command` (where known).

    The run's own copy of the recipe is taken: it is what was trained, whatever became of the file. Raises ConflictError
    where it has a result, and NotFoundError where there is no checkpoint, or where what it needs is no longer there.
    """
    copy = run / "recipe.json"
    if (run / "result.json").is_file():
        raise ConflictError(
            f"{run.name} is done.",
            why="Its adapter is in the store.",
            hint="adapterhub doctor last",
        )
    found = newest(run / "scratch")
    if found is None:
        raise NotFoundError(
            f"{run.name} has no checkpoint to go on from.",
            why="It ended before its first one (save_every says how often they come).",
            hint="Train it again from the start.",
        )
    recipe = load_recipe(copy)
    lost = [path for path in recipe.data.sources if "://" not in path and not Path(path).exists()]
    if lost:
        raise NotFoundError(
            f"The data of {run.name} is no longer at {lost[0]}.",
            hint="Put it back, or resume from its folder with the recipe's own file.",
        )
    words = ("train", str(copy), *_kept(command), "--resume")
    return Resumption(words, found[1], tuple(_changes(copy, command)))


def _kept(command: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for place, word in enumerate(command):
        name, equals, _ = word.partition("=")
        if name in _KEPT:
            after = 0 if equals else _KEPT[name]
            kept += command[place : place + 1 + after]
    return kept


def _changes(copy: Path, command: Sequence[str]) -> list[str]:
    """What became of the file that was typed. With other options beside it, it never was what was trained."""
    file = source(command)
    if file is None or file == copy or {*command[2:]} - {"--resume", *_KEPT}:
        return []
    if not file.is_file():  # a relative one was typed elsewhere, perhaps
        gone = f"{file} is no longer there; the run has its own copy."
        return [gone] if file.is_absolute() else []
    then = parse_recipe(json.loads(copy.read_bytes()))
    try:
        if anywhere(load_recipe(file)) == then:
            return []
    except AdapterHubError:  # nobody could train what it is now
        pass
    return [f"{file} has changed since; what goes on is the recipe as it was."]


def source(command: Sequence[str]) -> Path | None:
    """The recipe's file in the words of a `train` command: the first that is no option."""
    if len(command) > 1 and command[0] == "train" and not command[1].startswith("-"):
        return Path(command[1])
    return None
