"""`merge` and `rebuild`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.cli.parameters import (
    AllowMismatch,
    Base,
    Device,
    Dora,
    MemoryBudget,
    Method,
    NamesOrRecipe,
    SavedFrom,
    Seed,
    Semantics,
    Weights,
    Workers,
    asked_for,
    resources_of,
    with_parameters,
)
from adapterhub.errors import ExitCode
from adapterhub.merge.recipe import Recipe, Step
from adapterhub.merge.schedule import Schedule
from adapterhub.words import hanging, short, word_of

if TYPE_CHECKING:
    from adapterhub.merge.run import MergeOutcome
    from adapterhub.store import Resolved

_PLAN = ("rank", "dtype", "seed", "dora", "saved_from")
_MEANINGS = {
    "retained": "what the result holds of each: 1 all of it, 0 nothing, below 0 its opposite",
    "subspace": "the share of each that lies within the result's directions",
}


@command
@with_parameters
def merge(
    ctx: Context,
    names: NamesOrRecipe,
    *,
    method: Method = None,
    weights: Weights = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="RANK",
            help="auto (default): the smallest that vLLM serves and that keeps 99%; full; a number; energy=0.99.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="DTYPE", help="float32, bfloat16, float16. Default: the adapters'."),
    ] = None,
    semantics: Semantics = None,
    seed: Seed = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            metavar="NAME",
            help="Of the result. Default: made of the adapters' names.",
        ),
    ] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Point a name that is taken at the result.")
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Merge again although the result is in the store.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe and change nothing.")
    ] = False,
    parameters: dict[str, Any],
    base: Base = None,
    saved_from: SavedFrom = None,
    dora: Dora = None,
    allow_mismatch: AllowMismatch = False,
    workers: Workers = None,
    memory: MemoryBudget = "512MB",
    device: Device = "cpu",
) -> None:
    """Merge adapters into a new one, exactly, on their deltas.

    Parameters are shown with the methods that have them, and their defaults; `adapterhub methods NAME` says more.
    A recipe does all that the flags do, also module by module and in several steps.
    """
    parents, recipe, its_name, its_base = asked_for(
        ctx, names, parameters, method=method, weights=weights, rank=rank, dtype=dtype,
        semantics=semantics, dora=dora, saved_from=saved_from, seed=seed,
    )  # fmt: skip
    name, base = name or its_name, base or its_base
    if dry_run:
        _show_plan(ctx, parents, recipe, name, move=move, allow_mismatch=allow_mismatch)
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
        redo=redo,
        base=base,
        allow_mismatch=allow_mismatch,
        resources=resources_of(workers, memory, device),
        note=ctx.out.note,
        warn=ctx.out.warn,
    )
    if not outcome.created and outcome.report:
        ctx.out.note(f"{outcome.name} is @{short(outcome.digest)}, which this recipe gave before")
    if ctx.out.mode == "human":
        _say(ctx, _words(outcome, parents, recipe))
    else:
        ctx.out.record(_document(outcome, parents, recipe), ids=("digest",))


def _show_plan(
    ctx: Context,
    parents: list[Resolved],
    recipe: Recipe,
    name: str | None,
    *,
    move: bool,
    allow_mismatch: bool,
) -> None:
    """What `--dry-run` tells; refused is what the merge would refuse before it opens the parents."""
    from adapterhub.merge.naming import result_name
    from adapterhub.same_base import shared_base

    for remark in shared_base(ctx.store, parents, allow_mismatch=allow_mismatch).remarks:
        ctx.out.warn(remark)
    target = str(result_name(ctx.store, parents, recipe, name, move=move).name)
    document = recipe.document()
    if ctx.out.mode == "human":
        labels = {parent.digest: parent.label for parent in parents}
        said = {key: document[key] for key in _PLAN if document.get(key) is not None}
        rest = [(f"{key.replace('_', ' ')}  ", labels.get(v, str(v))) for key, v in said.items()]
        _say(ctx, [("name    ", target), *_steps(parents, recipe, {}), *rest])
    else:
        labelled = {"name": target, **document, "parents": [one.label for one in parents]}
        ctx.out.record(labelled, ids=("name",))


def _say(ctx: Context, lines: Sequence[tuple[str, str]]) -> None:
    """(heading, text), the text going on under itself where the terminal is too narrow."""
    for head, text in lines:
        ctx.out.text("\n".join(hanging(head, text, ctx.out.width)))


def _document(outcome: MergeOutcome, parents: list[Resolved], recipe: Recipe) -> dict[str, Any]:
    """The result of a merge, for programs. Lists of `modules` are in the order of `parents`."""
    report = outcome.report
    shares = {key: report.get(key) for key in ("retained", "subspace")}
    rows = [
        {
            "name": parent.label,
            "digest": parent.digest,
            **{key: values[place] if values else None for key, values in shares.items()},
        }
        for place, parent in enumerate(parents)
    ]
    return {
        "name": str(outcome.name),
        "digest": outcome.digest,
        "created": outcome.created,
        "method": recipe.method,
        "parents": rows,
        "recipe": recipe.document(),
        **{key: report.get(key) for key in ("rank", "energy_kept", "error")},
        "steps": report.get("steps", {}),
        "modules": report.get("modules", {}),
    }


def _words(outcome: MergeOutcome, parents: list[Resolved], recipe: Recipe) -> list[tuple[str, str]]:
    """The result of a merge, for people."""
    report = outcome.report
    lines = [(f"{outcome.name}  ", f"@{short(outcome.digest)}"), *_steps(parents, recipe, report)]
    if "energy_kept" not in report:  # a name for an adapter that was there
        return lines
    rank, kept, modules = report["rank"], report["energy_kept"], report.get("modules", {})
    cost = "nothing is cut off"
    if kept < 1 or report["error"] > 0:
        worst = min(modules, key=lambda module: modules[module]["energy_kept"])
        least = f"{modules[worst]['energy_kept']:.2%}"
        told = f"{kept:.2%}" if kept < 0.99995 else "over 99.99%"
        cost = (
            f"keeps {told} of the energy (error {report['error']:.2g}); least of {worst}: {least}"
        )
    lines.append(("rank    ", f"{rank}: {cost}"))
    shares = [key for key in _MEANINGS if report.get(key)]
    width = max(len(parent.label) for parent in parents)
    lines += [("", ""), ("", " " * width + "".join(f"{key:>10}" for key in shares))]
    for place, label in enumerate(parent.label for parent in parents):
        lines.append(
            ("", f"{label:<{width}}" + "".join(_share(report[key][place]) for key in shares))
        )
    return [*lines, ("", ""), *((f"{key}  ", _MEANINGS[key]) for key in shares)]  # fmt: skip


def _share(value: float | None) -> str:
    return f"{'–' if value is None else f'{value:.4g}':>10}"


def _steps(
    parents: list[Resolved], recipe: Recipe, report: Mapping[str, Any]
) -> list[tuple[str, str]]:
    labels = {parent.digest: parent.label for parent in parents}
    cuts = report.get("steps", {})
    return [
        (
            f"step {step.name}  " if step.name else "method  ",
            _step(step, labels, cuts.get(step.name, {}).get("energy_kept")),
        )
        for step in recipe.steps
    ]


def _step(step: Step, labels: Mapping[str, str], kept: float | None) -> str:
    """The method, its inputs with their weights, its parameters, and what its own rank kept."""
    inputs = []
    for place, one in enumerate(step.inputs):
        name = labels[one.digest] if one.digest is not None else f"step {one.step}"
        inputs.append(f"{name} ({_number(step.weights[place])})" if step.weights else name)
    numbers = ", ".join(f"{key} {_number(value)}" for key, value in step.parameters.items())
    cut = f"; cut to rank {step.rank}" if step.rank is not None else ""
    cut += f", which keeps {kept:.2%}" if kept is not None else ""
    return f"{step.method} of {', '.join(inputs)}" + (f"; {numbers}" if numbers else "") + cut


def _number(value: object) -> str:
    return "by module" if isinstance(value, Schedule) else word_of(value)


@command
def rebuild(
    ctx: Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A merged adapter, or its @digest.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE", help="Folder or repository, where the recipe needs its weights."
        ),
    ] = None,
    workers: Workers = None,
    memory: MemoryBudget = "512MB",
) -> ExitCode:
    """Derive a merged adapter again from its recipe and compare the tensors."""
    require_extra("torch", "merge")
    from adapterhub.merge.rebuild import rebuild as run_rebuild

    done = run_rebuild(
        ctx.store,
        ctx.store.resolve(name),
        base=base,
        progress=ctx.out.progress,
        resources=resources_of(workers, memory, "cpu"),
        warn=ctx.out.warn,
    )
    ctx.out.record(
        {
            "name": name,
            "same": done.same,
            "content": done.content,
            "rebuilt": done.rebuilt,
            "engine": done.engine,
        },
        ids=("rebuilt",),
    )
    if done.same:
        return ExitCode.OK
    ctx.out.warn(done.why)
    return ExitCode.FAILED
