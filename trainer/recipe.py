"""The recipe: everything a training depends on, in one validated, frozen document.

One YAML file says it all (`example.yaml` beside this file documents every key). A recipe that validates is trusted by
the rest of the trainer; one that doesn't is refused with the path of the wrong key, what was found, and the accepted
range, before anything heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.errors import NotFoundError, UsageError
from adapterhub.fsio import typed_path
from adapterhub.names import parse_name
from adapterhub.words import did_you_mean
from adapterhub.yamltext import parse_yaml

_Positive = Annotated[int, Meta(ge=1)]
_Fraction = Annotated[float, Meta(ge=0, lt=1)]
_Seed = Annotated[int, Meta(ge=0, lt=2**32)]


class DataSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which rows: `format` None means told from the first row; `limit` None means all."""

    path: str
    format: Literal["alpaca", "messages", "sharegpt", "text"] | None = None
    held_out: _Fraction = 0.1
    split_seed: _Seed = 0
    limit: _Positive | None = None


class EvalSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many held-out rows are scored before and after training; 0 for none, None for all."""

    rows: Annotated[int, Meta(ge=0)] | None = 64


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training, as `example.yaml` explains it. Either `steps` or `epochs` says how long."""

    name: str
    base: str
    data: DataSpec
    method: Literal["lora", "qlora"] = "lora"
    rank: Annotated[int, Meta(ge=1, le=1024)] = 16
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    dropout: _Fraction = 0.0
    target_modules: Annotated[list[str], Meta(min_length=1)] | Literal["all-linear"] = "all-linear"
    use_rslora: bool = False
    steps: _Positive | None = None
    epochs: Annotated[float, Meta(gt=0)] | None = None
    batch_size: _Positive = 1
    gradient_accumulation: _Positive = 1
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 2e-4
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: _Fraction = 0.05
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0)] = 1.0
    max_length: Annotated[int, Meta(ge=8)] = 1024
    packing: bool = True
    gradient_checkpointing: bool | None = None
    seed: _Seed = 0
    eval: EvalSpec = EvalSpec()

    @property
    def document(self) -> dict[str, Any]:
        """The recipe as plain values, defaults included."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the recipe with its defaults spelled out."""
        return digest_of(canonical_bytes(self.document))


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in the YAML file `path`; `overrides` replace top-level keys (None leaves a key as it is).

    A relative `data.path`, or a `base` that is a folder, is taken from the recipe's own folder.
    Raises NotFoundError (no such file) and UsageError (anything wrong in it).
    """
    if not path.is_file():
        raise NotFoundError(f"There is no recipe {path}.")
    document = parse_yaml(path.read_bytes(), path.name)
    if not isinstance(document, dict):
        raise UsageError(
            f"{path.name} must hold keys and values.", why=f"It is a {type(document).__name__}."
        )
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if "steps" in given:
        document.pop("epochs", None)
    return _located(parse_recipe({**document, **given}), path.parent, overridden=frozenset(given))


def parse_recipe(document: Mapping[str, Any]) -> Recipe:
    """The recipe in `document`; UsageError names the wrong key, what it holds and what is accepted."""
    _check_keys(document, Recipe, "")
    for key, kind in (("data", DataSpec), ("eval", EvalSpec)):
        inner = document.get(key)
        if isinstance(inner, Mapping):
            _check_keys(inner, kind, f"{key}.")
    try:
        recipe = msgspec.convert(dict(document), Recipe)
    except msgspec.ValidationError as error:
        raise _told(error, document) from error
    if recipe.steps is not None and recipe.epochs is not None:
        raise UsageError("The recipe has both steps and epochs.", hint="Keep one of them.")
    if recipe.steps is None and recipe.epochs is None:
        raise UsageError(
            "The recipe doesn't say how long to train.", hint="Add `steps: 50` or `epochs: 1`."
        )
    parse_name(recipe.name)
    return recipe


def _located(recipe: Recipe, folder: Path, *, overridden: frozenset[str]) -> Recipe:
    data = typed_path(recipe.data.path)
    base = folder / typed_path(recipe.base)
    changes: dict[str, Any] = {
        "data": msgspec.structs.replace(recipe.data, path=str(folder / data))
    }
    if "base" not in overridden and base.is_dir():
        changes["base"] = str(base)
    return msgspec.structs.replace(recipe, **changes)


def _check_keys(document: Mapping[str, Any], kind: type[msgspec.Struct], prefix: str) -> None:
    known = kind.__struct_fields__
    for key in document:
        if key not in known:
            raise UsageError(
                f"The recipe has an unknown key: {prefix}{key}.",
                why=did_you_mean(str(key), known),
                hint=f"Known here: {', '.join(known)}.",
            )


def _told(error: msgspec.ValidationError, document: Mapping[str, Any]) -> UsageError:
    """msgspec's "Expected `int` >= 1 - at `$.rank`" as a sentence with the recipe's own key and value."""
    said, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    missing = re.search(r"missing required field `(\w+)`", said)
    if missing:
        key = f"{path}.{missing[1]}" if path else missing[1]
        return UsageError(
            f"The recipe lacks the key {key}.",
            hint="examples and all keys: the trainer's example.yaml",
        )
    found: Any = document
    for part in re.findall(r"\w+", path):
        if isinstance(found, Mapping):
            found = found.get(part)
    expected = said.replace("`", "").replace("Expected ", "")
    return UsageError(
        f"The recipe's {path or 'document'} is {found!r}, which can't be taken.",
        why=f"Expected: {expected}.",
    )
