"""`adapterhub train`: the command; cheap to import, so that `adapterhub --help` stays instant."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adapterhub.cli.command import Context, command
from adapterhub.cli.output import Output
from adapterhub.errors import ExitCode
from adapterhub.trainer.options import Base, Name, Sets

if TYPE_CHECKING:
    from adapterhub.trainer.launch import Sharding
    from adapterhub.trainer.recipe import Recipe


@command
def train(
    ctx: Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    name: Name = None,
    base: Base = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, instead of the recipe's steps or epochs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed, instead of the recipe's.")] = None,
    sets: Sets = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the newest unfinished run of this very training."
        ),
    ] = False,
    move: Annotated[
        bool, typer.Option("--move", help="Point the name at the new adapter if it is taken.")
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Train again though the store has this very result.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; train nothing.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train in so many processes: one for each GPU, or some on CPUs.",
            rich_help_panel="Several processes",
        ),
    ] = None,
    sharding: Annotated[
        Literal["none", "fsdp"],
        typer.Option(
            help="What each process holds: the whole base (none) or a part of it (fsdp).",
            rich_help_panel="Several processes",
        ),
    ] = "none",
    accelerate_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the configuration for `accelerate launch`; train nothing.",
            rich_help_panel="Several processes",
        ),
    ] = None,
) -> ExitCode:
    """Train a LoRA or QLoRA adapter; the result is in the store with its provenance."""
    from adapterhub.trainer.launch import check_sharding
    from adapterhub.trainer.libraries import require_libraries
    from adapterhub.trainer.ranks import here, launched
    from adapterhub.trainer.recipe import load_recipe

    flags = {"name": name, "base": base, "steps": steps, "seed": seed}
    checked = load_recipe(recipe, flags, sets or ())
    if not any("://" in path for path in checked.data.sources):
        # The base is on this machine or is refused; nothing a library might look up on the Hub is wanted.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if dry_run:
        require_libraries()
        from adapterhub.trainer.plan import print_plan

        print_plan(ctx.store, checked, ctx.out, move=move)
        return ExitCode.OK
    several = accelerate_config is not None or sharding != "none" or (processes or 1) > 1
    if several and not launched():
        return _in_several(ctx, checked, processes, sharding, accelerate_config)
    from adapterhub.trainer.train import follow
    from adapterhub.trainer.train import train as run_training

    require_libraries()
    ranks = here()
    check_sharding(checked, "fsdp" if ranks.sharded else "none")
    if not ranks.first:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            follow(ctx.store, checked, Output("quiet", stderr=nowhere))
        return ExitCode.OK
    with ranks.told_of_losses():
        trained = run_training(
            ctx.store, checked, ctx.out, move=move, redo=redo, resume=resume, typed=_typed()
        )
    if trained.reused:
        ctx.out.note(
            f"{trained.name} is the result of this very training already; --redo trains again."
        )
    ctx.out.record(trained.record, ids=("digest",))
    return ExitCode.OK


def _in_several(
    ctx: Context, recipe: Recipe, processes: int | None, sharding: Sharding, file: Path | None
) -> ExitCode:
    """Starts the processes and waits for them, or writes to `file` how to start them."""
    from adapterhub.trainer import launch
    from adapterhub.trainer.libraries import require_libraries
    from adapterhub.trainer.model import choose_device

    require_libraries(several=True)
    device = choose_device()
    launch.check_sharding(recipe, sharding)
    if file is None and sharding == "fsdp" and device.kind == "cpu":
        raise launch.no_sharding_here()
    config = launch.accelerate_config(
        launch.processes_for(processes, sharding, device), sharding, device
    )
    if file is None:
        return launch.launch(config, _arguments())
    launch.write_config(file, config)
    ctx.out.record({"file": str(file), "command": launch.command_for(file, _arguments())})
    return ExitCode.OK


def _arguments() -> list[str]:
    """What was typed after `train`."""
    return sys.argv[sys.argv.index("train") + 1 :]


def _typed() -> str:
    """The command line as it was typed, without `--resume`."""
    from adapterhub.trainer import launch
    from adapterhub.trainer.ranks import FOLDER, launched

    if launched() and FOLDER not in os.environ:
        return launch.command_for(Path("FILE"), _arguments())
    return shlex.join(["adapterhub", *(word for word in sys.argv[1:] if word != "--resume")])
