"""`add`: adapters into the store, from folders, single files, whole trees of checkpoints, and the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.errors import AdapterHubError, ExitCode, UsageError
from adapterhub.formats.folders import Found, find_tree
from adapterhub.fsio import in_words
from adapterhub.remote.address import is_hub
from adapterhub.store import Added
from adapterhub.words import short


@command
def add(
    ctx: Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A folder written by PEFT or a trainer, a .safetensors file, or hf://org/repo[@revision][/folder].",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            help="[namespace/]name[:tag]; by default the folder's name. With --recursive: what all names begin with.",
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            help="Add every adapter in SRC and below it: out/checkpoint-100 becomes out:checkpoint-100.",
        ),
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Folder or repository of the base model to check it against.")
    ] = None,
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-mismatch", help="Add it although it doesn't fit the base; this is recorded."
        ),
    ] = False,
    move: Annotated[
        bool, typer.Option("--move", help="Point an existing name at the new adapter.")
    ] = False,
) -> ExitCode:
    """Put an adapter into the store.

    Only the adapter comes in: optimizer states, logs, whole models and other checkpoints stay behind, and that is said.

    Example: adapterhub add ./tone-lora --name support/tone --base ./my-base
    """
    flags: dict[str, Any] = {"base": base, "allow_mismatch": allow_mismatch, "move": move}
    if recursive:
        return _add_tree(ctx, source, name, flags)
    if is_hub(source):
        from adapterhub.remote.hub import add_from_hub

        # no bar around it: on a terminal the Hub's library shows its own for every file
        added = add_from_hub(ctx.store, source, name=name, note=ctx.out.note, **flags)
    else:
        with ctx.out.progress(f"Adding {source}"):
            added = ctx.store.add_folder(Path(source), name=name, note=ctx.out.note, **flags)
    report(ctx, added)
    return ExitCode.OK


def report(ctx: Context, added: Added) -> None:
    """Says what was added, and whether it was there already."""
    if not added.created:
        then = "what was damaged of it is mended" if added.mended else "nothing changed"
        ctx.out.note(f"{added.name} was this adapter already; {then}")
    ctx.out.record(
        {
            "name": str(added.name),
            "digest": added.digest,
            "created": added.created,
            "notes": list(added.notes),
        },
        ids=("digest",),
    )


def _add_tree(ctx: Context, source: str, name: str | None, flags: dict[str, Any]) -> ExitCode:
    """Every adapter by itself: one that is refused doesn't keep the others out."""
    if is_hub(source):
        raise UsageError(
            "--recursive looks into folders of this machine only.",
            hint=f"One folder of the repository at a time: adapterhub add {source}/FOLDER",
        )
    found = find_tree(Path(source), name=name, note=ctx.out.note)
    if flags["base"] is not None:
        ctx.store.bases.open(flags["base"])  # a base that isn't there is one error, not one each
    rows: list[dict[str, Any]] = []
    with ctx.out.progress(f"Adding {len(found)} adapters", len(found)) as bar:
        for item in found:
            try:
                rows.append(_add_one(ctx, item, flags))
            except KeyboardInterrupt:
                kept = sum(row["error"] is None for row in rows)
                raise KeyboardInterrupt(
                    f"{kept} of {len(found)} are in the store. The same command goes on with the others."
                ) from None
            bar.advance()
    added = [row for row in rows if row["error"] is None]
    shown = {"json": rows, "quiet": added, "human": [_for_people(row) for row in rows]}
    ctx.out.table(shown[ctx.out.mode], ("name", "digest", "created", "error"), ids="digest")
    created = sum(row["created"] for row in added)
    if created > 1:
        ctx.out.note(f"To take all of them back: adapterhub undo {created}")
    if len(added) < len(rows):
        ctx.out.note(f"{len(added)} of {len(rows)} are in the store; the others were refused")
    return ExitCode.OK if len(added) == len(rows) else ExitCode.PARTLY if added else ExitCode.FAILED


def _add_one(ctx: Context, item: Found, flags: dict[str, Any]) -> dict[str, Any]:
    row = {"name": item.name, "path": str(item.path)}
    try:
        added = ctx.store.add_folder(
            item.path,
            name=item.name,
            note=lambda text: ctx.out.note(f"{item.name}: {text}"),
            **flags,
        )
    except (AdapterHubError, OSError) as raised:
        error = in_words(raised) if isinstance(raised, OSError) else raised
        ctx.out.error(error)
        refused = {"what": error.what, "why": error.why, "hint": error.hint}
        return {**row, "digest": None, "created": False, "notes": [], "error": refused}
    return {
        **row,
        "digest": added.digest,
        "created": added.created,
        "notes": list(added.notes),
        "error": None,
    }


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    digest, error = row["digest"], row["error"]
    return {**row, "digest": digest and short(digest), "error": error and error["what"]}
