"""`adapterhub train`: the command; cheap to import, so that `adapterhub --help` stays instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.command import Context, command


@command
def train(
    ctx: Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    name: Annotated[
        str | None, typer.Option(help="The adapter's name, instead of the recipe's.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or repository of the base model, instead of the recipe's."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, instead of the recipe's steps or epochs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed, instead of the recipe's.")] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Point the name at the new adapter if it is taken.")
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Train again though the store has this very result.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; train nothing.")
    ] = False,
) -> None:
    """Train a LoRA or QLoRA adapter; the result is in the store with its provenance."""
    # The base is on this machine or is refused; nothing a library might look up on the Hub is wanted.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from adapterhub.trainer.libraries import logged_to, require_libraries
    from adapterhub.trainer.recipe import load_recipe

    checked = load_recipe(recipe, {"name": name, "base": base, "steps": steps, "seed": seed})
    if dry_run:
        require_libraries()
        from adapterhub.trainer.plan import make_plan

        with ctx.out.progress("reading the data and the base"), logged_to(None):
            plan = make_plan(checked, ctx.store.bases.open(checked.base))
        ctx.out.record(plan.record, ids=("steps",))
        return
    from adapterhub.trainer.train import train as run_training

    trained = run_training(ctx.store, checked, ctx.out, move=move, redo=redo)
    if trained.reused:
        ctx.out.note(
            f"{trained.name} is the result of this very training already; --redo trains again."
        )
    ctx.out.record(trained.record, ids=("digest",))
