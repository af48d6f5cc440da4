"""`lineage`, `duplicates`, `affected-by`: how adapters hang together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.base import BaseRegistry
from adapterhub.cli.command import Context, command
from adapterhub.errors import ExitCode, UsageError
from adapterhub.store.catalogue.belonging import WantedBase, wanted_base
from adapterhub.store.catalogue.family import drawn
from adapterhub.store.catalogue.kinship import Affected, Lineage, affected_by
from adapterhub.store.catalogue.kinship import lineage as family
from adapterhub.store.catalogue.shapes import fill_shapes
from adapterhub.store.catalogue.twins import Same, Twin, fill_prints, near_twins, same_content
from adapterhub.words import short

if TYPE_CHECKING:
    import sqlite3

    from adapterhub.errors import AdapterHubError


@command
def lineage(
    ctx: Context,
    name: Annotated[str, typer.Argument(help="A name, or @digest.")],
    dot: Annotated[
        bool, typer.Option("--dot", help="Print a graph for Graphviz, parents above children.")
    ] = False,
) -> None:
    """Show what an adapter was made from, and what was made from it."""
    resolved = ctx.store.resolve(name)
    found = ctx.catalogue.ask(lambda db: family(db, resolved.digest))
    if ctx.out.mode == "json":
        ctx.out.record(_family_record(found))
    elif ctx.out.mode == "quiet":
        ctx.out.table([{"digest": one} for one in found.relatives], ("digest",), ids="digest")
    elif dot:
        ctx.out.text("\n".join(_dot(found)))
    else:
        ctx.out.text("\n".join(drawn(found)))
    gone = [one for one in found.relatives.values() if not one.here]
    if gone:
        ctx.out.note(
            f"{len(gone)} of them {'is' if len(gone) == 1 else 'are'} not in this store; what is known of"
            " them comes from the adapters made from them"
        )


@command
def duplicates(
    ctx: Context,
    min_share: Annotated[
        float,
        typer.Option(
            "--min-share",
            help="Near twins share at least so much of their tensors or bytes (0 to 1).",
        ),
    ] = 0.5,
) -> ExitCode:
    """Find adapters that are the same twice, or nearly.

    The same: equal tensors under other metadata or another layout of keys. Nearly: tensors in common, bit by bit, with
    the older adapter that shares most. The first time this reads all weights.
    """
    if not 0 < min_share <= 1:
        raise UsageError(f"--min-share is {min_share:g}.", why="It must be above 0 and at most 1.")
    problems: list[AdapterHubError] = []

    def find(db: sqlite3.Connection) -> tuple[list[Same], list[Twin]]:
        problems[:] = fill_prints(db, ctx.catalogue.layout, ctx.out.progress)
        return same_content(db), near_twins(db, min_share)

    same, near = ctx.catalogue.ask(find)
    rows = list(_duplicate_rows(same, near))
    if not rows and not problems:
        ctx.out.note("No two adapters have so much in common.")
    if ctx.out.mode != "json":
        rows = [_shares_shown(row) for row in rows]
    ctx.out.table(rows, ("name", "like", "what", "tensors", "bytes"), ids="digest")
    for error in problems:
        ctx.out.error(error)
    return ExitCode.DAMAGED if problems else ExitCode.OK


@command
def affected_by_base(
    ctx: Context,
    base: Annotated[
        str,
        typer.Argument(
            metavar="BASE", help="org/name[@revision], a folder, or the beginning of a fingerprint."
        ),
    ],
) -> ExitCode:
    """Show what another version of a base model would invalidate.

    Adapters trained on it or checked against it, those that claim it or may mean it, what was made from any of these, and
    which of them a server, merge or export is using now.
    """
    problems: list[AdapterHubError] = []
    bases = BaseRegistry(ctx.catalogue.layout.bases)

    def find(db: sqlite3.Connection) -> tuple[WantedBase, list[Affected]]:
        problems[:] = fill_shapes(db, ctx.catalogue.layout, ctx.out.progress)
        wanted = wanted_base(db, bases, base)
        return wanted, affected_by(db, wanted)

    wanted, found = ctx.catalogue.ask(find)
    using: dict[str, list[str]] = {}
    for lease in ctx.store.leases.live():
        for digest in lease.digests:
            using.setdefault(digest, []).append(f"{lease.kind} {lease.pid}@{lease.host}")
    labels = {one.digest: _label(one.digest, one.names) for one in found}
    rows = [
        {
            "name": labels[one.digest],
            "digest": one.digest,
            "names": list(one.names),
            "how": one.how,
            "why": f"{one.why} from {labels[one.parent]}" if one.parent else one.why,
            "parent": one.parent,
            "used by": using.get(one.digest, []),
        }
        for one in found
    ]
    if wanted.model is None:
        ctx.out.note(
            f"{base} is not registered on this machine, so adapters that may mean it without saying so were not compared"
            " with it (adapterhub base add FOLDER_OR_REPO)"
        )
    if not rows:
        ctx.out.note("Nothing here depends on it.")
    ctx.out.table(rows, ("name", "how", "why", "used by"), ids="digest")
    for error in problems:
        ctx.out.error(error)
    return ExitCode.DAMAGED if problems else ExitCode.OK


def _label(digest: str, names: tuple[str, ...]) -> str:
    return names[0] if names else f"@{short(digest)}"


def _duplicate_rows(same: list[Same], near: list[Twin]) -> Iterator[dict[str, Any]]:
    """One row for each adapter that is like an older one."""
    for group in same:
        (first, first_names), *others = group.adapters
        for digest, names in others:
            yield {
                "name": _label(digest, names),
                "digest": digest,
                "like": _label(first, first_names),
                "like_digest": first,
                "what": "same content",
                "tensors": 1.0,
                "bytes": 1.0,
            }
    for twin in near:
        yield {
            "name": _label(twin.digest, twin.names),
            "digest": twin.digest,
            "like": _label(twin.other, twin.other_names),
            "like_digest": twin.other,
            "what": "near twin",
            "tensors": twin.tensors,
            "bytes": twin.bytes,
        }


def _shares_shown(row: dict[str, Any]) -> dict[str, Any]:
    """Shares in per cent, rounded down: 100% is all of it."""
    return {**row, **{key: f"{int(row[key] * 1000) / 10:g}%" for key in ("tensors", "bytes")}}


def _family_record(found: Lineage) -> dict[str, Any]:
    return {
        "digest": found.digest,
        "relatives": [
            {
                "digest": one.digest,
                "names": list(one.names),
                "here": one.here,
                "made": one.made or None,
                "called": one.called or None,
            }
            for one in found.relatives.values()
        ],
        "edges": [
            {"child": edge.child, "parent": edge.parent, "position": edge.position, "how": edge.how}
            for edge in found.edges
        ],
    }


def _dot(found: Lineage) -> Iterator[str]:
    yield "digraph lineage {"
    yield "  node [shape=box];"
    for digest, one in sorted(found.relatives.items()):
        style = "" if one.here else ", style=dashed"
        bold = ", penwidth=2" if digest == found.digest else ""
        label = _quoted(f"{one.label}\n{one.made}".rstrip())
        yield f'  "{short(digest)}" [label={label}{style}{bold}];'
    for edge in found.edges:
        yield f'  "{short(edge.parent)}" -> "{short(edge.child)}" [label={_quoted(edge.how)}];'
    yield "}"


def _quoted(text: str) -> str:
    inner = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{inner}"'
