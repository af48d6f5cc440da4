"""What `merge` and `export` take alike: adapters or a recipe, a method, its parameters, and what it may use.

The parameters' flags are made from the method specs, so a new method brings its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context
from adapterhub.errors import UsageError
from adapterhub.fsio import typed_path
from adapterhub.merge.recipe import Recipe, check_dora, make_recipe, parse_weights
from adapterhub.merge.recipe_file import is_recipe, read_recipe
from adapterhub.merge.specs import MethodSpec, check_parameters, methods
from adapterhub.merge.specs import method as method_spec
from adapterhub.settings import size
from adapterhub.words import word_of

if TYPE_CHECKING:
    from adapterhub.merge.run import Resources
    from adapterhub.store import Resolved

NamesOrRecipe = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME... | RECIPE.yaml", help="Names or @digests of adapters, or one recipe."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method", "-m", metavar="NAME", help="How: `adapterhub methods` tells. Default: linear."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="W,W", help="A number an adapter: 0.7,0.3. Default: 1/K for means, else 1."),
]  # fmt: skip
Semantics = Annotated[
    str | None,
    typer.Option(
        metavar="WHOSE", help="Whose defaults the parameters have: paper (default), peft, mergekit."
    ),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Of the random methods. Default: 0.", min=0)
]

_BASE_PANEL = "Bases, and adapters with more than low-rank pairs"
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch",
        help="Go on although the bases are known to differ; this is recorded.",
        rich_help_panel=_BASE_PANEL,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="Folder or repository: for DoRA, and for whole weights and biases that are no mean.",
        rich_help_panel=_BASE_PANEL,
    ),
]
SavedFrom = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Take whole weights (modules_to_save) and biases from this adapter alone.",
        rich_help_panel=_BASE_PANEL,
    ),
]
Dora = Annotated[
    str | None,
    typer.Option(
        metavar="approximate",
        help="Take DoRA adapters as the nearest plain LoRA on their base.",
        rich_help_panel=_BASE_PANEL,
    ),
]

_SUMS, _ELEMENTWISE = "Parameters of sums", "Parameters of element-wise methods"
_KINDS = {"number": float, "integer": int, "choice": str, "flag": bool}

_RESOURCE_PANEL = "Resources: they change the time a merge takes, not its result"
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Cores to use. Default: all.", min=1, rich_help_panel=_RESOURCE_PANEL
    ),
]
MemoryBudget = Annotated[
    str,
    typer.Option(
        "--memory", metavar="SIZE", help="Dense deltas held at a time.", rich_help_panel=_RESOURCE_PANEL
    ),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option(
        metavar="WHERE",
        help="cpu, cuda (may round otherwise), or auto: a GPU where it pays.",
        rich_help_panel=_RESOURCE_PANEL,
    ),
]


def with_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `function` a flag for every parameter of every method, in place of its argument `parameters`."""
    users: dict[str, list[MethodSpec]] = {}
    for spec in methods().values():
        for one in spec.parameters:
            users.setdefault(one.name, []).append(spec)
    # By family, and within it first what most methods have.
    found = sorted(users, key=lambda name: (_panel(users[name]) != _SUMS, -len(users[name])))

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(f"parameter_{name}") for name in found}
        chosen = {name: value for name, value in given.items() if value is not None}
        return function(*args, parameters=chosen, **kwargs)

    signature = inspect.signature(function, eval_str=True)
    flags = [
        inspect.Parameter(
            f"parameter_{name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_flag(name, users[name]),
        )
        for name in found
    ]
    all_of_them: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        all_of_them += flags if parameter.name == "parameters" else [parameter]
    run.__name__, run.__doc__, run.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    run.__signature__ = signature.replace(parameters=all_of_them)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in all_of_them}
    return run


def _panel(used_by: Sequence[MethodSpec]) -> str:
    elementwise = sum(spec.family == "elementwise" for spec in used_by)
    return _SUMS if elementwise * 2 < len(used_by) else _ELEMENTWISE


def _flag(name: str, used_by: Sequence[MethodSpec]) -> Any:
    parameter = used_by[0].require(name)
    names = [parameter.flag]
    if parameter.kind == "flag":
        names = [f"{parameter.flag}/--no-{parameter.flag.removeprefix('--')}"]
    option = typer.Option(
        *names,
        metavar={"number": "X", "integer": "N", "choice": "WORD", "flag": None}[parameter.kind],
        help=f"{_meaning(name, used_by)} [{_defaults(name, used_by)}]",
        show_default=False,
        rich_help_panel=_panel(used_by),
    )
    return Annotated[_KINDS[parameter.kind] | None, option]


def _meaning(name: str, used_by: Sequence[MethodSpec]) -> str:
    """What it means to most methods."""
    told = [spec.require(name).help for spec in used_by]
    return max(told, key=told.count)


def _defaults(name: str, used_by: Sequence[MethodSpec]) -> str:
    """`ties 0.2; dare* 0.8`: methods that begin alike and have the same default are told as one."""
    rows = [(word_of(spec.require(name).default), spec.name) for spec in used_by]
    parts = []
    for default, group in groupby(rows, key=lambda row: row[0]):
        parts.append(f"{', '.join(_short([n for _, n in group]))}: {default}")
    return "; ".join(parts)


def _short(names: Iterable[str]) -> list[str]:
    given = list(names)
    stems = dict.fromkeys(name.partition("_")[0] for name in given)
    found = []
    for stem in stems:
        mine = [name for name in given if name.partition("_")[0] == stem]
        everyone = [name for name in methods() if name.partition("_")[0] == stem]
        found += [f"{stem}*"] if len(mine) > 1 and mine == everyone else mine
    return found


def asked_for(
    ctx: Context, names: Sequence[str], parameters: Mapping[str, Any], **flags: Any
) -> tuple[list[Resolved], Recipe, str | None, str | None]:
    """The parents, the recipe, and the name and base that a recipe file gives: from that file, or from names and flags."""
    if len(names) == 1 and is_recipe(names[0]):
        typed = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
        return _from_file(ctx, names[0], typed, parameters)
    return *_from_flags(ctx, names, parameters=parameters, **flags), None, None


def _from_flags(
    ctx: Context,
    names: Sequence[str],
    *,
    method: str | None,
    weights: str | None,
    parameters: Mapping[str, Any],
    semantics: str | None = None,
    seed: int | None = None,
    rank: str | None = None,
    dtype: str | None = None,
    dora: str | None = None,
    saved_from: str | None = None,
) -> tuple[list[Resolved], Recipe]:
    """The parents, resolved and each once, and the complete recipe."""
    if recipe_names := [name for name in names if is_recipe(name) and typed_path(name).is_file()]:
        raise UsageError(
            f"{recipe_names[0]} is a recipe, and stands alone.",
            why="It names the adapters itself.",
            hint=f"adapterhub merge {recipe_names[0]}",
        )
    spec = method_spec(method or "linear")
    numbers = parse_weights(weights) if weights is not None else None
    check_parameters(spec, parameters)
    check_dora(dora)
    parents = [ctx.store.resolve(name) for name in names]
    recipe = make_recipe(
        spec.name,
        [parent.digest for parent in parents],
        weights=numbers,
        parameters=parameters,
        semantics=semantics or "paper",
        rank=rank,
        dtype=dtype,
        seed=seed or 0,
    )
    keeper = None
    if saved_from is not None:
        keeper = ctx.store.resolve(saved_from).digest
        if keeper not in recipe.parents:
            raise UsageError(
                f"--saved-from {saved_from} is none of the adapters.",
                why=f"They are {', '.join(names)}.",
            )
    return _each_once(parents), replace(recipe, dora=dora, saved_from=keeper)


def _from_file(
    ctx: Context, path: str, given: Mapping[str, object], parameters: Mapping[str, object]
) -> tuple[list[Resolved], Recipe, str | None, str | None]:
    """The parents and the recipe of a file, and the name and base it gives. UsageError for a flag that the file decides."""
    flags = [flag for flag, value in given.items() if value is not None]
    flags += [f"--{name.replace('_', '-')}" for name in parameters]
    if flags:
        raise UsageError(
            f"{' and '.join(flags)} can't be given beside a recipe.",
            why=f"{path} says what is merged and how.",
            hint=f"Write it into {path}.",
        )
    file = read_recipe(typed_path(path))
    parents = {name: ctx.store.resolve(name) for name in file.adapters}
    recipe = file.recipe({name: parent.digest for name, parent in parents.items()})
    return _each_once(parents.values()), recipe, file.name, file.base


def _each_once(parents: Iterable[Resolved]) -> list[Resolved]:
    return list({parent.digest: parent for parent in parents}.values())


def resources_of(workers: int | None, memory: str, device: str) -> Resources:
    """What the flags of the panel Resources say."""
    from adapterhub.merge.run import Resources

    return Resources(workers=workers, memory=size(memory, "for --memory"), device=device)
