"""The recipe: everything a training depends on, in one validated, frozen document.

One YAML file says it all (`example.yaml` beside this file documents every key). A recipe that validates is trusted by
the rest of the trainer; one that doesn't is refused with the path of the wrong key, what was found, and the accepted
range, before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.errors import NotFoundError, UsageError
from adapterhub.fsio import typed_path
from adapterhub.names import parse_name, parse_pointer
from adapterhub.trainer.accepted import refusal
from adapterhub.trainer.presets import with_preset
from adapterhub.words import briefly, did_you_mean, shown
from adapterhub.yamltext import parse_yaml

_Text = Annotated[str, Meta(min_length=1)]
_Positive = Annotated[int, Meta(ge=1)]
_Fraction = Annotated[float, Meta(ge=0, lt=1)]
_Seed = Annotated[int, Meta(ge=0, lt=2**32)]
_Format = Literal["alpaca", "messages", "sharegpt", "prompt_completion", "preference", "text"]


class ReplaySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """General data mixed in against forgetting: `ratio` replayed rows for every training row of `data.path`."""

    path: _Text
    ratio: Annotated[float, Meta(gt=0, le=10)] = 0.2
    format: _Format | None = None


class DataSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which rows: `format` None means told from the first row; `limit` None means all."""

    path: _Text | Annotated[list[_Text], Meta(min_length=1)]
    format: _Format | None = None
    held_out: _Fraction = 0.1
    split_seed: _Seed = 0
    limit: _Positive | None = None
    replay: ReplaySpec | None = None

    @property
    def paths(self) -> list[str]:
        """`path` as a list, also where it is one."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def sources(self) -> list[str]:
        """Everything that is read: `paths`, and what is replayed."""
        return [*self.paths, *([self.replay.path] if self.replay else [])]


class EvalSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the held-out rows are scored, how many, and what the scores decide.

    rows: 0 for none, None for all. every: in steps; None for ten times a run, at least 20 steps apart.
    patience: evaluations without a better loss after which training ends; None: never.
    samples: held-out questions that are answered at each evaluation, for people to read.
    """

    rows: Annotated[int, Meta(ge=0)] | None = 64
    every: _Positive | None = None
    patience: _Positive | None = None
    keep: Literal["best", "last"] = "best"
    samples: Annotated[int, Meta(ge=0, le=32)] = 0
    sample_tokens: Annotated[int, Meta(ge=1, le=4096)] = 64


class DpoSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Direct preference optimisation (Rafailov et al. 2023): `beta` of its equation 7."""

    beta: Annotated[float, Meta(gt=0)] = 0.1


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training, as `example.yaml` explains it. Either `steps` or `epochs` says how long.

    `method` is how the base is held (lora: as it is on disk, qlora: in NF4), `kind` what is trained on it, so QDoRA is
    `method: qlora, kind: dora`; `init` is how the factors of a LoRA or DoRA begin.
    """

    name: _Text
    base: _Text
    data: DataSpec
    preset: Literal["quick", "production", "quality"] | None = None
    template: _Text | None = None
    objective: Literal["sft", "dpo"] = "sft"
    dpo: DpoSpec = DpoSpec()
    start_from: str | None = None
    method: Literal["lora", "qlora"] = "lora"
    kind: Literal["lora", "dora", "adalora", "ia3"] = "lora"
    init: Literal["default", "pissa", "olora"] = "default"
    rank: Annotated[int, Meta(ge=1, le=1024)] = 16
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    dropout: _Fraction = 0.0
    target_modules: (
        Annotated[list[_Text], Meta(min_length=1)] | Literal["all-linear", "qkvo", "qv"]
    ) = "all-linear"
    use_rslora: bool = False
    loraplus_ratio: Annotated[float, Meta(ge=1)] | None = None
    neftune_alpha: Annotated[float, Meta(gt=0)] | None = None
    steps: _Positive | None = None
    epochs: Annotated[float, Meta(gt=0)] | None = None
    batch_size: _Positive = 1
    gradient_accumulation: _Positive = 1
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 2e-4
    optimizer: Literal["auto", "adamw", "adamw_8bit", "paged_adamw_8bit"] = "auto"
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup: _Fraction = 0.05
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Meta(gt=0)] = 1.0
    max_length: Annotated[int, Meta(ge=8)] | Literal["auto"] = 1024
    packing: bool = True
    gradient_checkpointing: bool | None = None
    seed: _Seed = 0
    eval: EvalSpec = EvalSpec()
    save_every: _Positive | None = None
    tensorboard: bool = False

    @property
    def length(self) -> int:
        """`max_length` of a recipe whose `auto` has been settled."""
        if isinstance(self.max_length, str):
            raise TypeError("max_length is not settled yet")
        return self.max_length

    @property
    def document(self) -> dict[str, Any]:
        """The recipe as plain values, defaults included."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the recipe with its defaults spelled out."""
        return digest_of(canonical_bytes(self.document))


def load_recipe(
    path: Path, overrides: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
) -> Recipe:
    """The recipe in the YAML file `path`, with what was typed beside it: `overrides` of top-level keys (None leaves a
    key as it is), and `sets` as `apply_overrides` takes them.

    A relative path in the file, or a `base` that is a folder, is taken from the recipe's own folder; a typed one stays as
    typed. Raises NotFoundError (no such file) and UsageError (anything wrong in it).
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a recipe.", hint="Name the YAML file in it.")
    if not path.is_file():
        raise NotFoundError(
            f"There is no recipe {path}.", hint=f"adapterhub recipe init {path}  writes one"
        )
    return read_recipe(path.read_bytes(), path, overrides, sets)


def read_recipe(
    text: str | bytes,
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Recipe:
    """As `load_recipe`, of a text that is (or will be) the file `path`."""
    from adapterhub.trainer.foreign import tool_of

    document = parse_yaml(text, path.name)
    if not isinstance(document, dict):
        raise UsageError(
            f"{path.name} must hold keys and values.", why=f"It is a {type(document).__name__}."
        )
    tool = tool_of(document)
    if tool is not None:
        raise UsageError(
            f"{path.name} is a configuration of {tool}, not a recipe.",
            hint=f"adapterhub recipe import {path} -o recipe.yaml",
        )
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    typed = [*given, *(one.partition("=")[0].strip() for one in sets)]
    changed = apply_overrides(_length_from({**document, **given}, given), sets)
    return _located(parse_recipe(changed), path.parent, typed)


def anywhere(recipe: Recipe) -> Recipe:
    """The recipe with every path absolute, so that it says the same wherever it is read."""

    def whole(path: str) -> str:
        return path if "://" in path else str(Path(path).absolute())

    data = recipe.data
    paths = whole(data.path) if isinstance(data.path, str) else [whole(path) for path in data.path]
    replay = data.replay and msgspec.structs.replace(data.replay, path=whole(data.replay.path))
    return msgspec.structs.replace(
        recipe,
        base=whole(recipe.base) if Path(recipe.base).is_dir() else recipe.base,
        template=recipe.template and whole(recipe.template),
        data=msgspec.structs.replace(data, path=paths, replay=replay),
    )


def apply_overrides(document: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """`document` with values such as `rank=32` or `eval.every=50`, which are read as YAML.

    `steps` replaces `epochs` and the other way round. UsageError for a key that no recipe has; values are judged by
    `parse_recipe`.
    """
    changed = dict(document)
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise UsageError(f"'{text}' sets no value.", hint=f"--set {key}=VALUE")
        if key not in _DOTTED:
            raise UsageError(
                f"A recipe has no key {key}.",
                why=_nearest(key),
                hint="adapterhub recipe init  writes every key and what it means",
            )
        _put(changed, key.split("."), parse_yaml(value, f"--set {key}"))
        changed = _length_from(changed, {key})
    return changed


def parse_recipe(document: Mapping[str, Any]) -> Recipe:
    """The recipe in `document`, its preset filled in; UsageError names the wrong key, what it holds and what is accepted."""
    for prefix, kind in _SECTIONS.items():
        inner = _section(document, prefix)
        if isinstance(inner, Mapping):
            _check_keys(inner, kind, prefix)
    filled = with_preset(document)
    try:
        recipe = msgspec.convert(filled, Recipe)
    except msgspec.ValidationError as error:
        raise refusal(error, Recipe, filled) from error
    _check_finite(recipe.document)
    if recipe.steps is not None and recipe.epochs is not None:
        raise UsageError(
            "The recipe has both steps and epochs.",
            why="Each says how long to train.",
            hint="Keep one of them.",
        )
    if recipe.steps is None and recipe.epochs is None:
        raise UsageError(
            "The recipe doesn't say how long to train.", hint="Add `steps: 50` or `epochs: 1`."
        )
    parse_name(recipe.name)
    if recipe.start_from is not None:
        parse_pointer(recipe.start_from)
    _check_together(recipe)
    return recipe


def _check_together(recipe: Recipe) -> None:
    """UsageError for values that are right alone and wrong together: what was asked for could never happen.

    What merely has no effect is no fault; `remarks` tells it.
    """
    _check_kind(recipe)
    _check_objective(recipe)
    _check_scoring(recipe)
    if recipe.init != "default" and recipe.method == "qlora":
        raise UsageError(
            f"The recipe has both method: qlora and init: {recipe.init}.",
            why="This init moves part of the base's weights into the factors, and what is left would be rounded to 4 bits"
            " again: the adapter could not be carried back to the unchanged base.",
            hint="Use method: lora, or init: default.",
        )
    if recipe.start_from and recipe.init != "default":
        raise UsageError(
            f"The recipe has both start_from and init: {recipe.init}.",
            why="The factors begin where the adapter's training ended.",
            hint="Keep one of them.",
        )


def _check_kind(recipe: Recipe) -> None:
    if recipe.kind in ("lora", "dora"):
        return
    for wrong, what, hint in (
        (recipe.init != "default", f"init: {recipe.init}", "init: default"),
        (recipe.use_rslora, "use_rslora: true", "use_rslora: false"),
        (recipe.loraplus_ratio, "a loraplus_ratio", "loraplus_ratio: null"),
        (recipe.start_from, "start_from", "a fresh adapter, without start_from"),
    ):
        if wrong:
            raise UsageError(
                f"The recipe's kind is {recipe.kind}, which can't have {what}.",
                hint=f"Use {hint}, or kind: lora.",
            )


def _check_objective(recipe: Recipe) -> None:
    shape = recipe.data.format
    if recipe.objective == "dpo" and recipe.data.replay is not None:
        raise UsageError(
            "The recipe replays data in a preference training.",
            why="Replayed rows have one answer each, and preferences need two.",
            hint="Leave out data.replay.",
        )
    if recipe.objective == "dpo" and shape not in (None, "preference"):
        raise UsageError(
            f"The recipe's objective is dpo, and data.format is {shape}.",
            why="DPO compares a chosen and a rejected answer, which only preference rows have.",
            hint="Use data.format: preference, or objective: sft.",
        )
    if recipe.objective == "dpo" and recipe.kind not in ("lora", "dora"):
        raise UsageError(
            f"The recipe's objective is dpo, and its kind is {recipe.kind}.",
            why="Preferences are trained against the adapter as it was, which is kept for LoRA and DoRA alone.",
            hint="Use kind: lora, or objective: sft.",
        )
    if recipe.objective == "dpo" and recipe.neftune_alpha is not None:
        raise UsageError(
            "The recipe's objective is dpo, which can't have a neftune_alpha.",
            why="Its noise would move the reference as well, another way each time.",
            hint="Use neftune_alpha: null.",
        )
    if recipe.objective == "sft" and shape == "preference":
        raise UsageError(
            "The recipe's data.format is preference, and its objective is sft.",
            why="Of two answers it doesn't say which one to train.",
            hint="Use objective: dpo.",
        )


def _check_scoring(recipe: Recipe) -> None:
    scores = recipe.eval
    unscored = (
        "data.held_out is 0"
        if recipe.data.held_out == 0
        else "eval.rows is 0"
        if scores.rows == 0
        else ""
    )
    if scores.patience is not None and unscored:
        raise UsageError(
            f"The recipe's eval.patience is {scores.patience}, and {unscored}.",
            why="Patience waits for a better score on rows held out, and none is scored.",
            hint="Hold some out (data.held_out: 0.1, eval.rows: 64), or use eval.patience: null.",
        )
    if scores.samples and recipe.data.held_out == 0:
        raise UsageError(
            f"The recipe's eval.samples is {scores.samples}, and data.held_out is 0.",
            why="Samples are answers to questions that were held out.",
            hint="Hold some out (data.held_out: 0.1), or use eval.samples: 0.",
        )
    late = recipe.steps is not None and scores.every is not None and scores.every >= recipe.steps
    if scores.patience is not None and late:
        raise UsageError(
            f"The recipe's eval.every is {scores.every}, and the training has {recipe.steps} steps.",
            why=f"With eval.patience: {scores.patience} it should end early, and there is no evaluation before its end.",
            hint="Evaluate more often, or use eval.patience: null.",
        )


def _located(recipe: Recipe, folder: Path, typed: Collection[str]) -> Recipe:
    """The recipe with the paths of its file taken from its own folder; addresses (`hf://...`) stay as they are.

    Raises NotFoundError where the template is no file.
    """

    def beside(path: str, key: str) -> str:
        if "://" in path or any(key == one or key.startswith(f"{one}.") for one in typed):
            return path
        return str(folder / typed_path(path))

    paths = recipe.data.path
    changes: dict[str, Any] = {
        "path": beside(paths, "data.path")
        if isinstance(paths, str)
        else [beside(path, "data.path") for path in paths]
    }
    if recipe.data.replay is not None:
        replay = recipe.data.replay
        changes["replay"] = msgspec.structs.replace(
            replay, path=beside(replay.path, "data.replay.path")
        )
    changes = {"data": msgspec.structs.replace(recipe.data, **changes)}
    if recipe.template is not None:
        template = beside(recipe.template, "template")
        if not Path(template).is_file():
            raise NotFoundError(
                f"There is no template {template}.",
                why="The recipe's template is a file with a chat template in Jinja.",
                hint="template: null  uses the base's own",
            )
        changes["template"] = template
    base = folder / typed_path(recipe.base)
    if "base" not in typed and base.is_dir():
        changes["base"] = str(base)
    return msgspec.structs.replace(recipe, **changes)


_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "": Recipe,
    "data.": DataSpec,
    "data.replay.": ReplaySpec,
    "eval.": EvalSpec,
    "dpo.": DpoSpec,
}
_DOTTED = tuple(
    prefix + field for prefix, kind in _SECTIONS.items() for field in kind.__struct_fields__
)
"""Every key of a recipe: `rank`, `data`, `data.path`, ..."""


def _section(document: Any, prefix: str) -> Any:
    for key in prefix.split(".")[:-1]:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def _put(document: dict[str, Any], parts: Sequence[str], value: object) -> None:
    """Sets a value inside; a section that is null becomes one, and anything else in its place is left to be refused."""
    for part in parts[:-1]:
        inner = document.get(part)
        if inner is not None and not isinstance(inner, Mapping):
            return
        section = dict(inner or {})
        document[part] = section
        document = section
    document[parts[-1]] = value


def _length_from(document: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """`document` without `epochs` where `steps` was given, and the other way round."""
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if key in given and other not in given:
            document.pop(other, None)
    return document


def _check_keys(document: Mapping[str, Any], kind: type[msgspec.Struct], prefix: str) -> None:
    known = kind.__struct_fields__
    for key in document:
        if key not in known:
            raise UsageError(
                f"The recipe has an unknown key: {prefix}{briefly(key)}.",
                why=_nearest(f"{prefix}{key}"),
                hint=f"Known here: {', '.join(known)}.",
            )


def _nearest(key: str) -> str:
    """Where a key that isn't known may belong: to another section, or it is misspelt."""
    last = key.rpartition(".")[2]
    elsewhere = [one for one in _DOTTED if one.rpartition(".")[2] == last]
    if elsewhere:
        return f"There is {' and '.join(elsewhere)}."
    return did_you_mean(key, _DOTTED) or did_you_mean(last, _DOTTED)


def _check_finite(document: Mapping[str, Any]) -> None:
    """UsageError for `.inf` and `.nan`, which YAML takes as numbers and no training can use."""
    for key, value in _leaves(document, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(
                f"The recipe's {key} is {shown(value)}, which can't be taken.",
                why="Accepted: a finite number.",
            )


def _leaves(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
