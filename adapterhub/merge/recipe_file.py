"""A recipe as people write it: YAML with names of adapters, checked with the path of what is wrong.

method: ties                    # or steps: a list of the same, of which the last is the result
adapters:
  - support/tone
  - adapter: legal/terms        # or step: the name of an earlier step
    weight: [0, 0.5, 1]         # a number, a gradient over the layers, or rules
parameters: {density: 0.3, lambda: 1.2}
rank: 16
dtype: bfloat16
name: desk/both
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.errors import NotFoundError, UsageError
from adapterhub.fsio import typed_path
from adapterhub.merge.recipe import (
    MAX_RANK,
    Recipe,
    Step,
    StepInput,
    check_count,
    check_dora,
    check_dtype,
    check_seed,
    default_weight,
    make_step,
    parse_rank,
    parse_semantics,
    recipe_of,
)
from adapterhub.merge.schedule import Number, parse_schedule
from adapterhub.merge.specs import MethodSpec
from adapterhub.merge.specs import method as method_spec
from adapterhub.names import parse_name
from adapterhub.words import briefly, did_you_mean, shown

_STEP = ("method", "semantics", "adapters", "weights", "parameters")
_WHOLE = ("rank", "dtype", "seed", "name", "base", "dora", "saved_from")
_INPUT = ("adapter", "step", "weight")
_MAX_BYTES = 2**20
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe read from a file. `adapters` are the names it uses, each once, in order."""

    adapters: tuple[str, ...]
    name: str | None
    base: str | None
    """A folder that lies beside the recipe, or what else people call a base."""
    recipe: Callable[[Mapping[str, str]], Recipe]
    """From the adapters' digests, by the names above."""


def is_recipe(text: str) -> bool:
    """Whether what was typed is a recipe file and no name."""
    return text.endswith((".yaml", ".yml"))


def read_recipe(path: Path) -> RecipeFile:
    """Reads a recipe. UsageError with the path of the wrong key; NotFoundError where there is no file."""
    from adapterhub.yamltext import parse_yaml

    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFoundError(f"There is no recipe {path}.") from None
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path} is no recipe.", why=f"It has more than {_MAX_BYTES} bytes.")
    document = parse_yaml(data, str(path))
    try:
        read = _read(document)
    except UsageError as error:
        raise UsageError(f"{path}: {error.what}", why=error.why, hint=error.hint) from None
    beside = path.parent / typed_path(read.base or "")
    return replace(read, base=str(beside)) if read.base and beside.is_dir() else read


def _read(document: object) -> RecipeFile:
    table = _table(document, "the recipe")
    several = "steps" in table
    _require_known(table, ("steps", *_WHOLE) if several else (*_STEP, *_WHOLE), "")
    rows = _steps(table["steps"]) if several else [(table, "")]
    parsed = [_step(row, path, nested=several) for row, path in rows]
    _require_earlier(parsed)
    names = tuple(dict.fromkeys(one for step in parsed for one in step.names if one is not None))
    keeper, dora, rank, seed = (table.get(key) for key in ("saved_from", "dora", "rank", "seed"))
    if keeper is not None and keeper not in names:
        raise UsageError(
            f"saved_from: {shown(keeper)} is none of the adapters.",
            why=f"They are {', '.join(names)}.",
        )
    with _at("dora", dora):
        check_dora(dora)
    if rank is not None:
        with _at("rank", rank):
            parse_rank(rank)
    if seed is not None:
        with _at("seed", seed):
            check_seed(seed)
    name, base, dtype = (_text(table, key) for key in ("name", "base", "dtype"))
    with _at("dtype", dtype):
        check_dtype(dtype)
    if name is not None:
        with _at("name", name):
            parse_name(name)

    def recipe(digests: Mapping[str, str]) -> Recipe:
        steps = [step.with_digests(digests) for step in parsed]
        made = recipe_of(steps, rank=rank, dtype=dtype, seed=seed or 0)
        return replace(made, dora=dora, saved_from=None if keeper is None else digests[keeper])

    return RecipeFile(names, name, base, recipe)


@dataclass(frozen=True)
class _ParsedStep:
    path: str
    step: Step
    names: tuple[str | None, ...]
    """Of the adapters among the inputs; None for an earlier step."""

    def with_digests(self, digests: Mapping[str, str]) -> Step:
        inputs = tuple(
            one if name is None else StepInput(digest=digests[name])
            for one, name in zip(self.step.inputs, self.names, strict=True)
        )
        return replace(self.step, inputs=inputs)


def _steps(value: object) -> list[tuple[Mapping[str, Any], str]]:
    if not isinstance(value, list) or not value:
        raise UsageError("steps: this is no list of steps.")
    rows = []
    for place, item in enumerate(value):
        path = f"steps[{place}]."
        row = _table(item, path.rstrip("."))
        _require_known(row, (*_STEP, "name", "rank"), path)
        if place < len(value) - 1 and "name" not in row:
            raise UsageError(
                f"{path}name is missing.", why="A later step takes it as an input by that name."
            )
        rows.append((row, path))
    return rows


def _step(row: Mapping[str, Any], path: str, *, nested: bool) -> _ParsedStep:
    for key in ("method", "adapters"):
        if key not in row:
            known = "A recipe has method and adapters, or steps." if not nested else ""
            raise UsageError(f"{path}{key} is missing.", why=known)
    name, semantics = row["method"], row.get("semantics", "paper")
    if not isinstance(name, str):
        raise UsageError(f"{path}method: {shown(name)} is no name of a method.")
    with _at(f"{path}method"):
        spec = method_spec(name)
    with _at(f"{path}semantics", semantics):
        defaults = spec.defaults(parse_semantics(semantics))
    inputs, weights = _inputs(row["adapters"], f"{path}adapters", spec)
    if row.get("weights") is not None:
        if any(weight is not None for weight in weights):
            raise UsageError(f"{path}weights: there are weights beside the adapters already.")
        weights = _weights(row["weights"], f"{path}weights", spec, len(inputs))
    step = make_step(
        spec.name,
        [one for one, _ in inputs],
        weights=_all_weights(weights, default_weight(spec, len(inputs))),
        parameters=_parameters(row.get("parameters", {}), f"{path}parameters", spec, defaults),
        semantics=semantics,
        name=_step_name(row, path) if nested else "",
        rank=_step_rank(row, path) if nested else None,
    )
    return _ParsedStep(path, step, tuple(name for _, name in inputs))


def _inputs(
    value: object, path: str, spec: MethodSpec
) -> tuple[list[tuple[StepInput, str | None]], list[Number | None]]:
    """Every input with the adapter's name, the digest still to be found; and its weight."""
    if not isinstance(value, list):
        raise UsageError(f"{path}: this is no list of adapters.")
    with _at(path):
        check_count(spec, len(value))
    inputs: list[tuple[StepInput, str | None]] = []
    weights: list[Number | None] = []
    for place, item in enumerate(value):
        here = f"{path}[{place}]"
        row = {"adapter": item} if isinstance(item, str) else _table(item, here)
        _require_known(row, _INPUT, f"{here}.")
        if ("adapter" in row) == ("step" in row):
            raise UsageError(f"{here}: an input has either adapter or step.")
        adapter, step = _text(row, "adapter", f"{here}."), _text(row, "step", f"{here}.")
        if adapter is None and step is None:
            raise UsageError(f"{here}: no name is given.")
        inputs.append((StepInput(step=step) if step else StepInput(digest=""), adapter))
        weight = row.get("weight")
        weights.append(
            None if weight is None else _weight(weight, f"{here}.weight", spec, len(value))
        )
    return inputs, weights


def _weights(value: object, path: str, spec: MethodSpec, count: int) -> list[Number | None]:
    if not isinstance(value, list):
        raise UsageError(f"{path}: {shown(value)} is no list.")
    if len(value) != count:
        raise UsageError(f"{path}: there are {len(value)} for {count} adapters.")
    return [_weight(one, f"{path}[{place}]", spec, count) for place, one in enumerate(value)]


def _weight(value: object, path: str, spec: MethodSpec, count: int) -> Number:
    if spec.default_weights == "none":
        raise UsageError(
            f"{path}: {spec.name} takes no weights.", hint=f"adapterhub methods {spec.name}"
        )
    return parse_schedule(value, path, default_weight(spec, count))


def _all_weights(weights: Sequence[Number | None], rest: float) -> list[Number] | None:
    """None where no weight is given; where some are, the rest have the method's default."""
    if all(weight is None for weight in weights):
        return None
    return [rest if weight is None else weight for weight in weights]


def _parameters(
    value: object, path: str, spec: MethodSpec, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """By name; those that differ from module to module as schedules."""
    found: dict[str, Any] = {}
    for name, given in _table(value, path).items():
        here = f"{path}.{name}"
        parameter = spec.parameter(name)
        if parameter is None:
            known = [one.name for one in spec.parameters]
            raise UsageError(
                f"{here}: {spec.name} has no such parameter.",
                why=did_you_mean(name, known) or f"It has: {', '.join(known) or 'none'}.",
                hint=f"adapterhub methods {spec.name}",
            )
        if isinstance(given, list):
            if not parameter.varies:
                raise UsageError(
                    f"{here}: it can't differ from module to module.",
                    why=f"It must be {parameter.range}.",
                )
            found[name] = parse_schedule(given, here, defaults[name], parameter.check)
        else:
            with _at(here, given):
                found[name] = parameter.check(given)
    return found


def _require_earlier(steps: Sequence[_ParsedStep]) -> None:
    """Inputs are earlier steps, and every step but the last is used."""
    seen: dict[str, str] = {}
    used: set[str] = set()
    for parsed in steps:
        for place, one in enumerate(parsed.step.inputs):
            if one.step is not None and one.step not in seen:
                raise UsageError(
                    f"{parsed.path}adapters[{place}].step: there is no earlier step '{one.step}'.",
                    why=did_you_mean(one.step, seen) or f"Before it: {', '.join(seen) or 'none'}.",
                )
            used |= {one.step} if one.step else set()
        name = parsed.step.name
        if name in seen:
            raise UsageError(f"{parsed.path}name: '{name}' is the name of another step.")
        seen[name] = parsed.path
    for name, path in list(seen.items())[:-1]:
        if name not in used:
            raise UsageError(
                f"{path}name: no step takes '{name}' as an input.",
                why="The last step alone is the result.",
            )


def _step_name(row: Mapping[str, Any], path: str) -> str:
    name = row.get("name", "")
    if not isinstance(name, str) or ("name" in row and not _NAME.match(name)):
        raise UsageError(
            f"{path}name: {shown(name)} is not allowed.",
            why="It must be small letters, digits, - and _.",
        )
    return name


def _step_rank(row: Mapping[str, Any], path: str) -> int | None:
    rank = row.get("rank")
    if rank is None:
        return None
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise UsageError(
            f"{path}rank: {shown(rank)} is not allowed.",
            why="A step's rank is a whole number from 1; without it nothing is cut off.",
        )
    return rank


def _table(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{path}: this is no table of keys and values.")
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"{path}: the key {shown(key)} is no text.")
    return value


def _text(row: Mapping[str, Any], key: str, path: str = "") -> str | None:
    value = row.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise UsageError(f"{path}{key}: {shown(value)} is no text.")
    return value


def _require_known(row: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for key in row:
        if key not in known:
            raise UsageError(
                f"{path}{briefly(key)}: there is no such key.",
                why=did_you_mean(key, known) or f"There are: {', '.join(known)}.",
            )


@contextmanager
def _at(path: str, value: object = None) -> Iterator[None]:
    """Errors from inside get the path; those that name a flag are said in the words of a recipe."""
    try:
        yield
    except UsageError as error:
        flag = error.what.startswith("--")
        what = f"{shown(value)} is not allowed." if flag else error.what
        raise UsageError(
            f"{path}: {what}", why=error.why, hint="" if flag else error.hint
        ) from None
