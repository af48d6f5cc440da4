"""`ls`: what is in the store, filtered by everything the catalogue knows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.errors import AdapterHubError, ExitCode, UsageError
from adapterhub.store.catalogue.search import (
    SORTS,
    Found,
    Query,
    damage,
    labels_of,
    parse_ranks,
    search,
    targets_of,
)
from adapterhub.words import did_you_mean, human_count, human_size, short

if TYPE_CHECKING:
    import sqlite3

    from adapterhub.base import BaseRegistry
    from adapterhub.store.catalogue.measured import Measured

COLUMNS = (
    "name", "digest", "kind", "base", "rank", "alpha", "targets", "size", "added", "revision", "claimed", "fingerprint",
    "modules", "parameters", "dtype", "content", "event", "method", "license", "metric", "score", "match",
)  # fmt: skip
"""Everything `--columns` may name beside `eval:MEASURE`; without it, the first nine."""
_DEFAULT = COLUMNS[:9]
_MEASURED = "eval:"
"""Before a measure, as `adapterhub.store.catalogue.measured` keeps them."""
_ELSEWHERE = "~ "
"""Before a number on other rows than most adapters were evaluated on."""
_FIELDS = {"base": "label", "match": "note"}
_SHOWN: dict[str, Callable[[Any], Any]] = {
    "digest": short,
    "content": short,
    "fingerprint": short,
    "targets": lambda text: _listed(targets_of(text)),
    "size": human_size,
    "parameters": human_count,
}
"""How people read a column, where its value isn't read as it is."""


@command
def ls(
    ctx: Context,
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...",
            help="Part of a name, or words (their beginnings will do) from names, bases, targets, model cards, provenance and notes.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Of this base: org/name[@revision], a folder, or the beginning of a fingerprint."
        ),
    ] = None,
    fits: Annotated[
        str | None, typer.Option(metavar="BASE", help="Whatever fits this base model.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Changing this module, such as q_proj; repeat it for all of several."),
    ] = None,
    rank: Annotated[str | None, typer.Option(help="Of this rank: 8, 8..64, '>=16'.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Made this way: merged, trained, imported, or a method such as ties."),
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="NAME", help="Made from this adapter, directly.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Of this kind: lora, dora, ...")] = None,
    unused: Annotated[
        str | None,
        typer.Option(
            metavar="30d",
            help="Not named, served, merged, exported, evaluated or checked for so long.",
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            help="By name, added, size, rank or base; or by what evaluations measured, the best first: eval:perplexity,"
            " eval:json, eval:forgetting.passed."
        ),
    ] = "name",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="What to show, in this order; eval:MEASURE, too."),
    ] = None,
) -> ExitCode:
    """List the adapters. What is given must all hold."""
    shown = _columns(columns, with_match=base is not None or fits is not None)
    keys = [one.removeprefix(_MEASURED) for one in (*shown, sort) if one.startswith(_MEASURED)]
    wanted = Found._fields if ctx.out.mode == "json" else [_field(column) for column in shown]
    problems: list[AdapterHubError] = []
    query = Query(
        text=" ".join(text or ()),
        fits=_bases(ctx).open(fits) if fits is not None else None,
        targets=tuple(target or ()),
        ranks=None if rank is None else parse_ranks(rank),
        method=method,
        parent=None if parent is None else ctx.store.resolve(parent).digest,
        kind=kind,
        sort="name" if sort.startswith(_MEASURED) else _sort(sort),
        reverse=reverse and not sort.startswith(_MEASURED),
        **_unused(ctx, unused),
    )

    measured: dict[str, dict[str, Measured]] = {}

    def find(db: sqlite3.Connection) -> tuple[list[Found], list[tuple[str, AdapterHubError]]]:
        problems[:] = _read_shapes(ctx, db) if base is not None or fits is not None else []
        found = search(
            db, _with_base(ctx, db, query, base), labels_of(db, lambda: _bases(ctx)), wanted
        )
        measured.update(_measured(db, keys, every=ctx.out.mode == "json"))
        return found, damage(db)

    rows, damaged = ctx.catalogue.ask(find)
    problems += [error for _, error in damaged]
    if sort.startswith(_MEASURED):
        rows = _best_first(rows, measured[sort.removeprefix(_MEASURED)], reverse=reverse)
    if not rows and not problems:
        asked = any((text, base, fits, target, rank, method, parent, kind, unused))
        ctx.out.note(
            "No adapter matches."
            if asked
            else f"The store at {ctx.catalogue.layout.home} is empty. Add an adapter: adapterhub add FOLDER"
        )
    if ctx.out.mode == "json":
        ctx.out.table([_record(row, measured) for row in rows], shown)
    else:
        ctx.out.table(_cells(rows, shown, measured), shown)
    _remark_rows(ctx, rows, {key: measured[key] for key in keys})
    for error in problems:
        ctx.out.error(error)
    return ExitCode.DAMAGED if problems else ExitCode.OK


def _field(column: str) -> str:
    return _FIELDS.get(column, column)


def _measured(
    db: sqlite3.Connection, keys: list[str], *, every: bool
) -> dict[str, dict[str, Measured]]:
    """What evaluations measured, by key and digest: of the keys that were asked for, or `every` one there is.

    UsageError where nothing was measured by one of them.
    """
    if not keys and not every:
        return {}
    from adapterhub.store.catalogue.measured import known_keys, numbers_by, require_known

    for key in keys:
        require_known(db, key)
    return {key: numbers_by(db, key) for key in (known_keys(db) if every else keys)}


def _best_first(
    rows: list[Found], numbers: Mapping[str, Measured], *, reverse: bool
) -> list[Found]:
    from adapterhub.store.catalogue.measured import best_first

    return [rows[at] for at in best_first([row.digest for row in rows], numbers, reverse=reverse)]


def _usual(rows: list[Found], numbers: Mapping[str, Measured]) -> str | None:
    """The digest of the rows that most of these adapters were measured on, each adapter once."""
    told = Counter(
        numbers[digest].scored_on for digest in {row.digest for row in rows} if digest in numbers
    )
    return max(told, key=lambda one: (told[one], str(one)), default=None)


def _remark_rows(
    ctx: Context, rows: list[Found], measured: Mapping[str, Mapping[str, Measured]]
) -> None:
    """A remark where numbers that stand in one column, or decide the order, are of different rows."""
    for key, numbers in measured.items():
        known = {
            digest: numbers[digest] for digest in {r.digest for r in rows} if digest in numbers
        }
        others = len({one.scored_on for one in known.values()}) - 1
        if others > 0:
            ctx.out.note(
                f"{key}: those with {_ELSEWHERE.strip()} are of other rows than most, and don't compare."
            )


def _cells(
    rows: list[Found],
    columns: tuple[str, ...],
    measured: Mapping[str, Mapping[str, Measured]],
) -> list[dict[str, Any]]:
    """The rows as people read them; always with the name, which -q prints."""
    found: dict[str, list[Any]] = {"name": [row.name for row in rows]}
    for column in columns:
        if column.startswith(_MEASURED):
            found[column] = _numbers(rows, measured[column.removeprefix(_MEASURED)])
            continue
        values = list(map(attrgetter(_field(column)), rows))
        show = _SHOWN.get(column)
        if show is not None:  # each distinct value once: ten thousand adapters have a few sizes
            texts = {value: None if value is None else show(value) for value in set(values)}
            values = [texts[value] for value in values]
        found[column] = values
    return [dict(zip(found, cells, strict=True)) for cells in zip(*found.values(), strict=True)]


def _numbers(rows: list[Found], numbers: Mapping[str, Measured]) -> list[str | None]:
    """`6.12 (better, -13.5% (-15 to -12.1))`, marked where it is of other rows than most."""
    usual = _usual(rows, numbers)
    told = [numbers.get(row.digest) for row in rows]
    return [one and ("" if one.scored_on == usual else _ELSEWHERE) + one.words for one in told]


def _listed(targets: list[str] | str | None) -> str | None:
    return ", ".join(targets) if isinstance(targets, list) else targets


def _record(row: Found, measured: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    """One row for programs: everything, whole."""
    record = row._asdict()
    record["targets"] = targets_of(row.targets)
    record["base_label"] = record.pop("label")
    record["match"] = record.pop("note")
    del record["shape"]
    record["evaluations"] = [
        numbers[row.digest]._asdict() for numbers in measured.values() if row.digest in numbers
    ]
    return record


def _columns(text: str | None, *, with_match: bool) -> tuple[str, ...]:
    if text is None:
        return (*_DEFAULT, "match") if with_match else _DEFAULT
    columns = tuple(part.strip() for part in text.split(",") if part.strip())
    for column in columns:
        if column not in COLUMNS and not column.startswith(_MEASURED):
            raise UsageError(
                f"There is no column '{column}'.",
                why=did_you_mean(column, COLUMNS),
                hint="The columns are " + ",".join(COLUMNS),
            )
    if not columns:
        raise UsageError("--columns names none.", hint="The columns are " + ",".join(COLUMNS))
    return columns


def _sort(text: str) -> str:
    if text not in SORTS:
        raise UsageError(
            f"Adapters can't be sorted by '{text}'.",
            why=did_you_mean(text, SORTS),
            hint="--sort takes " + ", ".join(SORTS) + ", or eval:MEASURE, such as eval:perplexity",
        )
    return text


def _unused(ctx: Context, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    from adapterhub.settings import duration
    from adapterhub.store.catalogue.use import in_use

    since = time.time() - duration(text, "for --unused")
    return {"unused_since": since, "in_use": in_use(ctx.store)}


def _bases(ctx: Context) -> BaseRegistry:
    from adapterhub.base import BaseRegistry

    return BaseRegistry(ctx.catalogue.layout.bases)


def _read_shapes(ctx: Context, db: sqlite3.Connection) -> list[AdapterHubError]:
    from adapterhub.store.catalogue.shapes import fill_shapes

    return fill_shapes(db, ctx.catalogue.layout, ctx.out.progress)


def _with_base(ctx: Context, db: sqlite3.Connection, query: Query, text: str | None) -> Query:
    if text is None:
        return query
    from dataclasses import replace

    from adapterhub.store.catalogue.belonging import wanted_base

    return replace(query, base=wanted_base(db, _bases(ctx), text))
