"""`export`: adapters baked into their base, as a model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.cli.merging import (
    AllowMismatch,
    Method,
    Names,
    Weights,
    Workers,
    recipe_for,
    with_parameters,
)
from adapterhub.words import human_size


@command
@with_parameters
def export(
    ctx: Context,
    names: Names,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")],
    base: Annotated[
        str | None, typer.Option(help="Folder or repository; by default the adapters' own.")
    ] = None,
    method: Method = "linear",
    weights: Weights = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    allow_mismatch: AllowMismatch = False,
    workers: Workers = None,
    *,
    parameters: dict[str, Any],
) -> None:
    """Write base + adapter as a full model; several adapters are merged on the way, untruncated."""
    parents, recipe = recipe_for(ctx, names, method, weights, parameters)
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
        workers=workers,
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
