"""`base add`, `base ls` and `fit`: which bases lie where on this machine, and who fits them."""

from __future__ import annotations

from typing import Annotated

import typer

from adapterhub.base import read_base
from adapterhub.cli.command import Context, command
from adapterhub.errors import ExitCode, UsageError
from adapterhub.formats.peft_config import looks_like_repo
from adapterhub.fsio import is_folder, typed_path
from adapterhub.manifest import is_commit
from adapterhub.words import human_count, short

app = typer.Typer(
    help="Remember and list base models.", no_args_is_help=True, rich_markup_mode=None
)


@command
def base_add(
    ctx: Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_REPO", help="A model folder, or a repository in the Hub's cache."
        ),
    ],
    repo: Annotated[
        str | None, typer.Option(help="The repository a plain folder came from: org/name.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The commit it came from (40 hexadecimal digits).")
    ] = None,
) -> None:
    """Remember where a base model lies, with the fingerprint of its weights."""
    if repo is not None and not looks_like_repo(repo):
        raise UsageError(f"'{repo}' is not a repository.", hint="It looks like org/name.")
    if revision is not None and not is_commit(revision):
        raise UsageError(
            f"'{revision}' is not a commit.",
            why="A branch or tag can move.",
            hint="Give all 40 hexadecimal digits.",
        )
    folder = typed_path(source)
    if is_folder(folder):
        model = read_base(folder, repo=repo, revision=revision)
    else:
        model = ctx.store.bases.open(source, repo=repo, revision=revision)
    record = ctx.store.bases.remember(model)
    ctx.out.record(record, ids=("fingerprint",))


@command
def base_ls(ctx: Context) -> None:
    """List the base models remembered on this machine."""
    rows = ctx.store.bases.records()
    if not rows:
        ctx.out.note("No base models yet. Remember one: adapterhub base add FOLDER --repo org/name")
    if ctx.out.mode == "human":
        rows = [
            {
                **row,
                "revision": row["revision"] and short(row["revision"]),
                "fingerprint": short(row["fingerprint"]),
                "parameters": human_count(row["parameters"]),
            }
            for row in rows
        ]
    ctx.out.table(
        rows, ("repo", "revision", "fingerprint", "parameters", "architecture", "path"), ids="path"
    )


@command
def fit(
    ctx: Context,
    name: Annotated[str, typer.Argument(help="A name, or @digest.")],
    base: Annotated[
        str | None, typer.Option(help="Folder or repository; by default the adapter's own.")
    ] = None,
) -> ExitCode:
    """Say whether an adapter fits a base model, reading all its values; exit 5 when it doesn't."""
    from adapterhub.fitting import examine

    resolved = ctx.store.resolve(name)
    model = ctx.store.base_for(resolved, base)
    found = examine(ctx.store, resolved, model)
    verdict = found.verdict
    ctx.out.record(
        {
            "name": resolved.label,
            "base": model.label,
            "fits": found.ok,
            "modules": f"{verdict.modules_found}/{verdict.modules_total}",
            "fingerprint": verdict.fingerprint,
            "kind": found.facts.kind,
            "rank": found.rank,
            "template": found.template,
            "reasons": [*found.misfits, *found.unsound],
            "remarks": list(found.remarks),
        },
        ids=("fits",),
    )
    return ExitCode.OK if found.ok else ExitCode.INCOMPATIBLE


app.command("add")(base_add)
app.command("ls")(base_ls)
