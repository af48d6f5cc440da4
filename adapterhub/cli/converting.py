"""`convert`: a pickled adapter as safetensors, read where it can do no harm."""

from __future__ import annotations

import tempfile
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from adapterhub.cli.adding import report
from adapterhub.cli.command import Context, command, require_extra
from adapterhub.errors import UsageError
from adapterhub.formats.convert import Converted, convert_into
from adapterhub.fsio import new_folder, require_free
from adapterhub.names import parse_name


@command
def convert(
    ctx: Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A folder with adapter_config.json and adapter_model.bin, or that file.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", "-n", help="Put the result into the store under this name."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    move: Annotated[
        bool, typer.Option("--move", help="Point an existing name at the new adapter.")
    ] = False,
) -> None:
    """Turn pickled weights (adapter_model.bin) into safetensors.

    The pickle is read in a process of its own that makes tensors and runs nothing else; SRC stays as it is.

    Example: adapterhub convert ./old-lora --name support/old
    """
    again = f"adapterhub convert {quote(str(source))}"
    if output is None and name is None:
        raise UsageError(
            "It isn't said where the result should go.",
            hint=f"{again} -o FOLDER   or, into the store:  {again} --name NAME",
        )
    if name is not None:
        parse_name(name)  # before anything is read
    require_extra("torch", "merge")
    if output is None:
        with tempfile.TemporaryDirectory(prefix="adapterhub-") as place:
            _store(ctx, source, Path(place), _convert(ctx, source, Path(place)), name, move)
        return
    require_free(
        output,
        overwrite,
        keep=(source, ctx.store.home),
        hint=f"{again} -o {quote(str(output))} --overwrite",
    )
    with new_folder(output, overwrite=overwrite) as building:
        done = _convert(ctx, source, building)
    if name is not None:
        _store(ctx, source, output, done, name, move)
    else:
        ctx.out.record(
            {
                "folder": str(output),
                "tensors": done.tensors,
                "from_sha256": done.from_sha256,
                "notes": list(done.notes),
            },
            ids=("folder",),
        )


def _convert(ctx: Context, source: Path, building: Path) -> Converted:
    with ctx.out.progress(f"Converting {source}"):
        done = convert_into(source, building)
    for remark in done.notes:
        ctx.out.note(remark)
    return done


def _store(
    ctx: Context, source: Path, folder: Path, done: Converted, name: str | None, move: bool
) -> None:
    added = ctx.store.add_folder(
        folder,
        name=name,
        move=move,
        provenance=done.provenance(),
        why=f"convert {source}",
        note=ctx.out.note,
    )
    report(ctx, added)
