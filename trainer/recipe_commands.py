"""`adapterhub recipe`: write, check, preview and import training recipes; cheap to import."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.cli.output import Output
from adapterhub.errors import ConflictError, UsageError
from adapterhub.trainer.options import Base, Name, Sets
from adapterhub.trainer.preview_command import preview

app = typer.Typer(
    no_args_is_help=True,
    help="Write, check, preview and import training recipes.",
    rich_markup_mode=None,
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file.")]


@command
def init(
    ctx: Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to write it; left out, it is printed."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="WHICH", help="quick, production or quality.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or repository of the base model.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A file or folder of training data; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the adapter will be called.")] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="WHICH", help="sft, or dpo for preferences.")
    ] = None,
    sets: Sets = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a recipe in which every key is explained."""
    from adapterhub.trainer.recipe import apply_overrides
    from adapterhub.trainer.writing import example_document, path_from, recipe_text

    folder = file.parent if file is not None else Path()
    given: dict[str, Any] = {"preset": preset, "name": name, "objective": objective}
    if base is not None:
        given["base"] = path_from(folder, base)
    if data:
        paths = [path_from(folder, path) for path in data]
        given["data"] = {"path": paths[0] if len(paths) == 1 else paths}
    if (
        objective == "dpo"
    ):  # pairs aren't packed, and ten times the usual rate undoes what the base knows
        given |= {"packing": False, "learning_rate": 1e-5}
    document = apply_overrides(
        {key: value for key, value in given.items() if value is not None}, sets or ()
    )
    _check(example_document(document))
    _put_out(ctx, recipe_text(document, _called(file)), file, overwrite=overwrite)
    if file is not None:
        ctx.out.note(f"Check it with: adapterhub recipe check {file}")


@command
def check(
    ctx: Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    name: Name = None,
    base: Base = None,
    sets: Sets = None,
) -> None:
    """Print what a training would do, and what there is to say about it; train nothing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from adapterhub.trainer.recipe import load_recipe

    checked = load_recipe(recipe, {"name": name, "base": base}, sets or ())
    from adapterhub.trainer.libraries import require_libraries

    require_libraries()
    from adapterhub.trainer.plan import print_plan

    print_plan(ctx.store, checked, ctx.out)


@command
def import_(
    ctx: Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A configuration of Axolotl or LLaMA-Factory.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write the recipe; left out, it is printed.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the adapter will be called; left out, as the file.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or repository of the base, instead of the file's.")
    ] = None,
    tool: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WHICH",
            help="axolotl or llama-factory; left out, told from the keys.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a recipe of another trainer's configuration, and say what became of every key."""
    from adapterhub.trainer.foreign import import_file
    from adapterhub.trainer.writing import path_from, recipe_text

    if tool not in (None, "axolotl", "llama-factory"):
        raise UsageError(
            f"--from {tool} is no trainer known here.", hint="axolotl or llama-factory"
        )
    found = import_file(file, tool=tool, name=name, base=base)
    folder = output.parent if output is not None else Path()
    document = dict(found.document)
    paths = document["data"]["path"]
    moved = [
        path_from(folder, path, file.parent)
        for path in ([paths] if isinstance(paths, str) else paths)
    ]
    document["data"] = {**document["data"], "path": moved[0] if isinstance(paths, str) else moved}
    for key in ("base", "template"):
        if isinstance(document.get(key), str):
            document[key] = path_from(folder, document[key], file.parent)
    _check(document)
    _put_out(
        ctx, recipe_text(document, _called(output)), output, overwrite=overwrite,
        more={"tool": found.tool, "keys": [line.record for line in found.lines]},
    )  # fmt: skip
    _tell(ctx.out, found)


def _check(document: dict[str, Any]) -> None:
    """Raises what is wrong with a recipe that is about to be written."""
    from adapterhub.trainer.recipe import parse_recipe

    parse_recipe(document)


def _called(file: Path | None) -> str:
    return file.name if file is not None else "recipe.yaml"


def _put_out(
    ctx: Context,
    text: str,
    file: Path | None,
    *,
    overwrite: bool,
    more: dict[str, Any] | None = None,
) -> None:
    """Writes the recipe to `file`, or prints it."""
    from adapterhub.fsio import write_file

    if file is None:
        if ctx.out.mode == "json":
            ctx.out.record({"recipe": text, **(more or {})})
        else:
            lines = [{"line": line} for line in text.splitlines()]
            Output("quiet").table(lines, ("line",), ids="line")
        return
    if file.exists() and not (overwrite and file.is_file()):
        raise ConflictError(
            f"{file} exists.", hint="Give another name, or replace it with --overwrite."
        )
    if not file.parent.is_dir():
        raise UsageError(f"There is no folder {file.parent} to write {file.name} to.")
    write_file(file, text.encode("utf-8"), file.parent)
    if ctx.out.mode == "json":
        ctx.out.record({"path": str(file), "recipe": text, **(more or {})})
    else:
        ctx.out.record({"path": str(file)}, ids=("path",))


def _tell(out: Output, found: Any) -> None:
    """What became of each key, on stderr: the recipe itself may be on stdout."""
    if out.mode == "human":
        rows = [
            {**line.record, "key": line.key or "(not given)"}
            for line in sorted(found.lines, key=lambda line: _ORDER.index(line.verdict))
            if line.verdict != "empty"
        ]
        Output("human", stdout=sys.stderr).table(rows, ("key", "value", "verdict", "became", "why"))
        empty = [line.key for line in found.lines if line.verdict == "empty"]
        if empty:
            out.note(f"Keys that say nothing: {', '.join(empty)}")
    differing = ", ".join(line.key for line in found.differing)
    if differing:
        out.warn(f"The result won't be {found.tool}'s in all: look at {differing}.")


_ORDER = ("differs", "unknown", "kept", "default", "ignored", "empty")

app.command("init")(init)
app.command("check")(check)
app.command("preview")(preview)
app.command("import")(import_)
