"""`tag`, `rm`, `log`, `undo`, `rollback`: names and their history."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from adapterhub.cli.command import Context, command
from adapterhub.errors import NotFoundError
from adapterhub.names import Name, parse_name
from adapterhub.words import short


@command
def tag(
    ctx: Context,
    source: Annotated[str, typer.Argument(metavar="NAME", help="A name, or @digest.")],
    target: Annotated[
        str,
        typer.Argument(metavar="NEW_NAME", help="Another name or tag: tone:prod, support/tone."),
    ],
    move: Annotated[
        bool, typer.Option("--move", help="Move the new name if another adapter has it.")
    ] = False,
    without_gates: Annotated[
        bool,
        typer.Option(
            "--without-gates",
            help="Give the name although evaluations that config.toml asks for are missing; this is recorded.",
        ),
    ] = False,
) -> None:
    """Give an adapter another name or tag."""
    resolved, name = ctx.store.resolve(source), parse_name(target)
    created = ctx.store.tag(resolved, name, move=move, without_gates=without_gates)
    if not created:
        ctx.out.note(f"{name} was this adapter already; nothing changed")
    ctx.out.record(
        {"name": str(name), "digest": resolved.digest, "created": created}, ids=("digest",)
    )


@command
def rm(
    ctx: Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="name (all its tags) or name:tag.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Remove names. The adapters themselves stay in the store."""
    targets: list[Name] = []
    for text in names:
        name = parse_name(text)
        found = [name] if ":" in text else ctx.store.tags_of(name.path)
        if not found:
            ctx.store.refs.require(name)
        targets += [entry for entry in found if entry not in targets]
    if not yes:
        for consequence in _consequences(ctx, targets):
            ctx.out.note(consequence)
    ctx.out.confirm(f"Remove {', '.join(map(str, targets))}?", yes=yes)
    removed = ctx.store.remove(targets)
    for name, digest in removed:
        ctx.out.note(f"{name} was @{short(digest)}")
    ctx.out.note("To have it back: adapterhub undo")
    ctx.out.table(
        [{"name": str(name), "digest": digest} for name, digest in removed], ("name", "digest")
    )


def _consequences(ctx: Context, names: list[Name]) -> tuple[str, ...]:
    from adapterhub.store.consequences import of_removing

    return ctx.catalogue.ask(lambda db: of_removing(ctx.store, db, names)).words


@command
def log(
    ctx: Context,
    name: Annotated[
        str | None, typer.Argument(help="Only the changes of this name, all tags.")
    ] = None,
) -> None:
    """Show every change of a name, newest first."""
    wanted = parse_name(name) if name else None
    rows = [asdict(change) for change in reversed(ctx.store.log(wanted))]
    if wanted is not None and not rows:
        ctx.store.refs.require(wanted)
        raise NotFoundError(f"The journal knows nothing of {wanted}.")
    if ctx.out.mode == "human":
        rows = [
            {**row, **{key: short(row[key]) if row[key] else None for key in ("before", "after")}}
            for row in rows
        ]
    ctx.out.table(rows, ("time", "op", "ref", "before", "after", "who", "why"), ids="ref")


@command
def undo(
    ctx: Context,
    count: Annotated[
        int,
        typer.Argument(metavar="[N]", min=1, help="How many operations, from the last one back."),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be taken back; change nothing.")
    ] = False,
) -> None:
    """Take back what was done last: tag, rm, add, merge, gc, rollback, or an undo.

    An undo is an operation like the others, so `adapterhub undo` again does the thing again; to go further back,
    say how far: `adapterhub undo 3`.
    """
    from adapterhub.store import history

    undone = (history.plan_undo if dry_run else history.undo)(ctx.store, count)
    for operation in undone.operations:
        ctx.out.note(f"{'would take' if dry_run else 'took'} back: {operation.why or operation.op}")
    rows = [
        {"name": str(move.name), "before": move.before, "after": move.after}
        for move in undone.moves
    ]
    if ctx.out.mode == "human":
        rows = [
            {key: short(value) if value and key != "name" else value for key, value in row.items()}
            for row in rows
        ]
    if rows or ctx.out.mode == "json":
        ctx.out.table(rows, ("name", "before", "after"))
    if not undone.moves and not undone.abouts:
        ctx.out.note("Together they change nothing: one takes back the other")
    elif not dry_run:
        ctx.out.note("To take this back: adapterhub undo")


@command
def rollback(
    ctx: Context,
    name: Annotated[str, typer.Argument(help="name or name:tag.")],
) -> None:
    """Give a name the adapter it had before. Again: the one before that."""
    from adapterhub.store.history import rollback as go_back

    before, now = go_back(ctx.store, parse_name(name))
    ctx.out.note(f"{now.name} was @{short(before)}. To take this back: adapterhub undo")
    ctx.out.record({"name": str(now.name), "digest": now.digest, "before": before}, ids=("digest",))
