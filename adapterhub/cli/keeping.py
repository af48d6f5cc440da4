"""`gc` and `fsck`: what the store may forget, and whether it holds what it recorded."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.errors import ExitCode, NotFoundError, StoreDamagedError, UsageError
from adapterhub.store.checking import Report, check
from adapterhub.store.garbage import Collected, Item, collect, make_plan
from adapterhub.store.reading import Reading
from adapterhub.store.repair import Mended
from adapterhub.store.repair import repair as mend
from adapterhub.store.tidying import graces, reach, size_of, spared, taken
from adapterhub.words import counted, human_size, short


@command
def gc(
    ctx: Context,
    grace: Annotated[
        str | None,
        typer.Option(help="Spare what is younger, and what `undo` needs for so long: 12h, 14d."),
    ] = None,
    trash_grace: Annotated[
        str | None, typer.Option(help="How long the trash keeps what was taken: 30d.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be taken, and why; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Move what no name, lease or recent change leads to into the trash.

    `adapterhub undo` brings it back for as long as the trash keeps it. The defaults are 14d and 30d, or what config.toml says.
    """
    keep, keep_trash = graces(ctx.store, grace, trash_grace)
    if dry_run:
        plan = make_plan(ctx.store, grace=keep, trash_grace=keep_trash)
        _report(ctx, Collected(plan, None), dry_run=True)
        return
    ctx.out.confirm(
        "Move garbage to the trash, and delete what has been there long enough?", yes=yes
    )
    with ctx.out.progress("Collecting garbage"):
        done = collect(ctx.store, grace=keep, trash_grace=keep_trash)
    _report(ctx, done, dry_run=False)


def _report(ctx: Context, done: Collected, *, dry_run: bool) -> None:
    plan = done.plan
    if ctx.out.mode == "json":
        ctx.out.record(
            {
                "dry_run": dry_run,
                "trash": done.trash,
                "bytes": size_of(plan.garbage),
                "deleted_bytes": size_of(plan.deleted),
                **{
                    part: [_row(item) for item in getattr(plan, part)]
                    for part in ("garbage", "spared", "deleted")
                },
            }
        )
        return
    if ctx.out.mode == "quiet":
        ctx.out.table([_row(item) for item in plan.garbage], (), ids="path")
        return
    if dry_run and (plan.garbage or plan.deleted):
        rows = [_row(item) for item in [*plan.garbage, *plan.deleted]]
        shown = [
            {**row, "size": human_size(row["size"]), "digest": short(row["digest"])} for row in rows
        ]
        ctx.out.table(shown, ("kind", "digest", "size", "why"))
    for line in (*taken(plan, done=not dry_run), *spared(plan)):
        ctx.out.note(line)
    if done.trash:
        ctx.out.note("To have it back: adapterhub undo")


def _row(item: Item) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "digest": item.digest,
        "size": item.size,
        "path": str(item.path),
        "why": item.why,
    }


@command
def fsck(
    ctx: Context,
    read_data: Annotated[
        str | None,
        typer.Option(
            "--read-data",
            metavar="[=N/T|X%]",
            help="Hash the files' bytes again: all, the n-th of t parts, or the x% checked longest ago.",
        ),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(help="With --read-data: skip what was verified within this time: 7d."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend from other copies; set aside what can't be mended."),
    ] = False,
    elsewhere: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", help="Another store's home, or a folder, to look for lost files in."
        ),
    ] = None,
) -> ExitCode:
    """Check that the store holds what it recorded: exit 6 where it doesn't.

    `--read-data=1/7` on Monday to `--read-data=7/7` on Sunday reads everything once a week.
    """
    choose = Reading.parse(read_data, max_age)
    if repair and choose is None:
        choose = Reading(
            max_age=inf
        )  # what was sound when it was read, and hasn't been touched since
    for place in elsewhere or ():
        if not place.is_dir():
            raise NotFoundError(f"There is no folder {place} to look in.", hint="--from FOLDER")
    if elsewhere and not repair:
        raise UsageError(
            "--from is where --repair looks.", hint="adapterhub fsck --repair --from FOLDER"
        )
    with ctx.out.transfer("Checking the store") as bar:
        report = check(ctx.store, choose.of(ctx.store) if choose else None, bar.advance)
    mended = []
    if repair:
        ctx.store.prepare()  # gives a store its id, if that is missing
    if repair and report.damages:
        from adapterhub.remote.again import fetch_again

        mended = mend(ctx.store, report, elsewhere or (), fetch_again)
    command = "adapterhub fsck --repair" + (" --read-data" if read_data else "")
    _tell(ctx, report, mended, mending=None if repair else command)
    bad = [outcome for outcome in mended if not outcome.mended] if repair else report.damages
    return ExitCode.DAMAGED if bad else ExitCode.OK


def _tell(ctx: Context, report: Report, mended: list[Mended], *, mending: str | None) -> None:
    outcomes = {outcome.damage.path: outcome for outcome in mended}
    rows, reaches, paths = [], list[str](), {damage.path for damage in report.damages}
    # A repair may have found more: what a lost manifest leads to, for one.
    found = [outcome.damage for outcome in mended if outcome.damage.path not in paths]
    for damage in [*report.damages, *found]:
        touched, outcome = report.touched(damage), outcomes.get(damage.path)
        rows.append(
            {
                "kind": damage.kind,
                "what": damage.what,
                "path": str(damage.path),
                "names": list(touched.names),
                "merges": list(touched.merges),
                "users": list(touched.users),
                "mended": outcome.mended if outcome else False,
                "how": outcome.how if outcome else None,
            }
        )
        reaches.append(reach(damage.path, touched))
    remarks = [{"what": remark.what, "size": remark.size} for remark in report.remarks]
    counts = {
        "adapters": report.adapters,
        "blobs": report.blobs,
        "blobs_read": report.read,
        "bytes_read": report.bytes_read,
    }
    if ctx.out.mode == "json":
        ctx.out.record({**counts, "damages": rows, "remarks": remarks})
        return
    if ctx.out.mode == "quiet":
        ctx.out.table(rows, (), ids="path")
        return
    for row, reached in zip(rows, reaches, strict=True):
        if row["mended"]:
            ctx.out.note(f"mended: {row['what']}; {row['how']}")
        else:
            what = str(row["what"]).rstrip(".")
            ctx.out.error(StoreDamagedError(f"{what}.", why=reached, hint=str(row["how"] or "")))
    for remark in report.remarks:
        size = f" ({human_size(remark.size)})" if remark.size else ""
        ctx.out.note(f"note: {remark.what}{size}")
    if any(not outcome.mended for outcome in mended):
        ctx.out.note(
            "Another store's home or a folder to look in: adapterhub fsck --repair --from FOLDER"
        )
    if rows and mending:
        ctx.out.note(f"To mend it from other copies on this machine: {mending}")
    read = f", {report.read} of them read ({human_size(report.bytes_read)})" if report.read else ""
    verdict = f"damaged in {counted(len(rows), 'place')}" if rows else "no damage"
    if mended:
        verdict += f", {sum(outcome.mended for outcome in mended)} of them mended"
    checked = f"{counted(report.adapters, 'adapter')}, {counted(report.blobs, 'file')}"
    ctx.out.text(f"{checked}{read}: {verdict}")
