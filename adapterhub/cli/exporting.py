"""`export`: adapters baked into their base, as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.cli.parameters import (
    AllowMismatch,
    Device,
    MemoryBudget,
    Method,
    NamesOrRecipe,
    Seed,
    Semantics,
    Weights,
    Workers,
    asked_for,
    resources_of,
    with_parameters,
)
from adapterhub.words import human_size


@command
@with_parameters
def export(
    ctx: Context,
    names: NamesOrRecipe,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="Folder or repository. Default: the adapters' own."),
    ] = None,
    method: Method = None,
    weights: Weights = None,
    semantics: Semantics = None,
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    parameters: dict[str, Any],
    allow_mismatch: AllowMismatch = False,
    workers: Workers = None,
    memory: MemoryBudget = "512MB",
    device: Device = "cpu",
) -> None:
    """Write base + adapter as a full model; several adapters are merged on the way, untruncated."""
    parents, recipe, _, its_base = asked_for(
        ctx, names, parameters, method=method, weights=weights, semantics=semantics, seed=seed
    )
    base = base or its_base
    require_extra("torch", "merge")
    from adapterhub.export.run import export as run_export

    done = run_export(
        ctx.store,
        parents,
        recipe,
        output,
        base=base,
        progress=ctx.out.progress,
        overwrite=overwrite,
        allow_mismatch=allow_mismatch,
        resources=resources_of(workers, memory, device),
        warn=ctx.out.warn,
    )
    ctx.out.record(
        {
            "folder": str(done.folder),
            "base": done.base.label,
            "adapters": [parent.label for parent in parents],
            "changed": f"{done.tensors_changed} of {done.tensors_total} tensors",
            "size": human_size(done.size),
            "untied": done.untied,
        },
        ids=("folder",),
    )
