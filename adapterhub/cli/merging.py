"""`merge` and `methods`. The parameters' flags are made from the method specs, so a new method brings its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.merge.recipe import Recipe, make_recipe, parse_weights
from adapterhub.merge.specs import MethodSpec, ParameterSpec, method
from adapterhub.merge.specs import methods as all_methods
from adapterhub.words import short

Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or @digests of adapters.")
]
Method = Annotated[
    str, typer.Option("--method", "-m", help="How to merge; see `adapterhub methods`.")
]
Weights = Annotated[
    str | None,
    typer.Option(help="One number an adapter: 0.7,0.3. Default: 1/K each for means, else 1 each."),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch", help="Go on although the bases are known to differ; this is recorded."
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Cores to use; the result doesn't depend on it.", min=1)
]


def with_parameters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `function` a flag for every parameter of every method; they arrive together as `parameters`."""
    found: dict[str, tuple[ParameterSpec, list[str]]] = {}
    for spec in all_methods().values():
        for parameter in spec.parameters:
            found.setdefault(parameter.name, (parameter, []))[1].append(spec.name)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(f"parameter_{name}") for name in found}
        return function(
            *args,
            parameters={name: value for name, value in given.items() if value is not None},
            **kwargs,
        )

    signature = inspect.signature(function, eval_str=True)
    own = [
        parameter for parameter in signature.parameters.values() if parameter.name != "parameters"
    ]
    extra = []
    for name, (parameter, used_by) in found.items():
        kind = str if parameter.choices else float
        text = f"{parameter.help} {parameter.range[0].upper()}{parameter.range[1:]}. [{', '.join(used_by)}; default {parameter.default}]"
        option = typer.Option(
            parameter.flag,
            help=text,
            show_default=False,
            rich_help_panel="Parameters of the method",
        )
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        extra.append(
            inspect.Parameter(
                f"parameter_{name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=annotation,
            )
        )
    run.__name__, run.__doc__, run.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    run.__signature__ = signature.replace(parameters=[*own, *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*own, *extra)}
    return run


def recipe_for(
    ctx: Context,
    names: list[str],
    method_name: str,
    weights: str | None,
    parameters: dict[str, Any],
    rank: str = "auto",
    dtype: str | None = None,
) -> tuple[list[Any], Recipe]:
    """The parents, resolved, and the complete recipe."""
    spec = method(method_name)
    numbers = parse_weights(weights) if weights is not None else None
    spec.check_parameters(parameters)
    parents = [ctx.store.resolve(name) for name in names]
    digests = [parent.digest for parent in parents]
    recipe = make_recipe(
        spec.name, digests, weights=numbers, parameters=parameters, rank=rank, dtype=dtype
    )
    return parents, recipe


@command
@with_parameters
def merge(
    ctx: Context,
    names: Names,
    method: Method = "linear",
    weights: Weights = None,
    rank: Annotated[
        str,
        typer.Option(
            help="auto, full, or a number. auto: the smallest servable rank that keeps 99%."
        ),
    ] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by default the parents'.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Name of the result; made of the parents by default."),
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Point an existing name at the result.")
    ] = False,
    allow_mismatch: AllowMismatch = False,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and change nothing.")
    ] = False,
    *,
    parameters: dict[str, Any],
) -> None:
    """Merge adapters into a new one, exactly, on their deltas."""
    parents, recipe = recipe_for(ctx, names, method, weights, parameters, rank, dtype)
    if dry_run:
        ctx.out.record(
            {"parents": [parent.label for parent in parents], **recipe.document()}, ids=("method",)
        )
        return
    require_extra("torch", "merge")
    from adapterhub.merge.run import merge as run_merge

    outcome = run_merge(
        ctx.store,
        parents,
        recipe,
        name=name,
        progress=ctx.out.progress,
        move=move,
        allow_mismatch=allow_mismatch,
        workers=workers,
        note=ctx.out.note,
        warn=ctx.out.warn,
    )
    if not outcome.created:
        ctx.out.note(f"{outcome.name} is this merge already; nothing changed")
    modules = outcome.report.get("modules", {})
    worst = min(modules.items(), key=lambda item: item[1]["energy_kept"], default=None)
    record: dict[str, Any] = {
        "name": str(outcome.name),
        "digest": outcome.digest,
        "created": outcome.created,
        "method": recipe.method,
        "parents": [f"{parent.label} @{short(parent.digest)}" for parent in parents],
        "weights": list(recipe.weights),
        **recipe.parameters,
        "rank": outcome.report.get("rank"),
        "energy_kept": outcome.report.get("energy_kept"),
        "error": outcome.report.get("error"),
    }
    if worst is not None:
        record["worst_module"] = f"{worst[0]} ({worst[1]['energy_kept']:.4g})"
    if ctx.out.mode == "json":
        record["modules"] = modules
    ctx.out.record(record, ids=("digest",))


@command
def methods(
    ctx: Context,
    name: Annotated[str | None, typer.Argument(help="One method, in full.")] = None,
) -> None:
    """List the merge methods, or explain one."""
    if name is None:
        ctx.out.table(
            [_row(spec) for spec in all_methods().values()], ("name", "title", "good_for")
        )
        return
    ctx.out.record(_row(method(name)), ids=("name",))


def _row(spec: MethodSpec) -> dict[str, Any]:
    row = asdict(spec)
    del row["kernel"]
    row["parameters"] = [
        {"flag": p.flag, "default": p.default, "range": p.range, "help": p.help}
        for p in spec.parameters
    ]
    row["laws"], row["spaces"] = list(spec.laws), list(spec.spaces)
    return row
