"""The columns of the table of adapters: what each says of a row, and how they share the width that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter

from rich.cells import cell_len

from adapterhub.cli.output import clean
from adapterhub.store.consequences import Use
from adapterhub.tui.facts import said
from adapterhub.tui.library.rows import Row, usual_rows
from adapterhub.words import human_size

GAP = 2
"""Cells between two columns."""
_USUAL = ("q", "k", "v", "o", "gate", "up", "down")
OTHER = "~"
"""Before a score on other rows than most adapters were evaluated on."""
_AGES = ((365 * 86400, "y"), (7 * 86400, "w"), (86400, "d"), (3600, "h"), (60, "m"))

Uses = Mapping[str, tuple[Use, ...]]


@dataclass(frozen=True)
class Seen:
    """What a cell may depend on beside its row."""

    uses: Uses
    now: float
    scored_on: str = ""
    """Digest of the rows that most were evaluated on."""


@dataclass(frozen=True)
class Column:
    """A column: what it says of a row, by what of it, and between which widths (in cells) it may be."""

    key: str
    title: str
    of: Callable[[Row], object]
    say: Callable[[Row, Seen], str]
    least: int
    most: int
    right: bool = False
    optional: bool = False
    """Not there at all where no row has anything to say in it."""


def _targets(row: Row, _: Seen) -> str:
    """`q_proj` and `v_proj` as `q v`, in the order in which a block uses them; the detail pane has the full names."""
    names = [target.removesuffix("_proj") for target in row.targets]
    return clean(
        " ".join(
            sorted(names, key=lambda name: _USUAL.index(name) if name in _USUAL else len(_USUAL))
        )
    )


def _base(row: Row, _: Seen) -> str:
    if row.problem is not None:
        return "damaged" if row.problem.damage else "unknown"
    return clean(row.base) or "–"


def _age(row: Row, seen: Seen) -> str:
    return age(row.added, seen.now)


def age(added: str, now: float) -> str:
    """How long ago that was, in the largest unit that fits: `3d`, `2w`."""
    try:
        seconds = now - datetime.fromisoformat(added).timestamp()
    except ValueError:
        return "–"
    for length, unit in _AGES:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return "now"


def _size(row: Row, _: Seen) -> str:
    return "–" if row.size is None else human_size(row.size)


def _score(row: Row, seen: Seen) -> str:
    """What was measured on other rows than most is no number to compare: `~` says so."""
    if row.score is None:
        return ""
    metric = "ppl" if row.metric == "perplexity" else clean(row.metric)[:6]
    return f"{'' if row.scored_on == seen.scored_on else OTHER}{metric} {said(row.score)}"


def _served(row: Row, seen: Seen) -> str:
    """The servers that have it; of other work, what it is."""
    uses = seen.uses.get(row.digest, ())
    return clean(
        " ".join(dict.fromkeys(use.where if use.kind == "serve" else use.kind for use in uses))
    )


COLUMNS = (
    Column("name", "name", attrgetter("name"), lambda row, _: clean(row.name), 15, 48),
    Column("tag", "tag", attrgetter("tag"), lambda row, _: clean(row.tag), 4, 12, optional=True),
    Column("base", "base", attrgetter("base", "problem"), _base, 12, 40),
    Column("rank", "rank", attrgetter("rank"), lambda row, _: said(row.rank), 4, 5, right=True),
    Column(
        "targets",
        "targets",
        attrgetter("targets"),
        lambda row, seen: _targets(row, seen) or "–",
        8,
        24,
    ),
    Column("size", "size", attrgetter("size"), _size, 7, 8, right=True),
    Column("kind", "kind", attrgetter("kind"), lambda row, _: clean(row.kind) or "–", 4, 8),
    Column("added", "age", attrgetter("added"), _age, 3, 4, right=True),
    Column(
        "eval", "eval", attrgetter("metric", "score", "scored_on"), _score, 8, 14, optional=True
    ),
    Column("served", "in use", attrgetter("digest"), _served, 6, 16, optional=True),
)
# Where room is short these go, in this order; the name stays.
DROPPED_FIRST = ("tag", "kind", "targets", "size", "added", "eval", "base", "rank", "served")
# ... and these get the room that is left over.
WIDENED = ("name", "served", "eval", "rank", "size", "added", "kind", "base", "tag", "targets")


def natural_widths(rows: Sequence[Row], uses: Uses, now: float) -> dict[str, int]:
    """How wide the longest text of each column is, 0 where no row has any."""
    seen = Seen(uses, now, usual_rows(rows))
    found = {"name": max((len(row.name) for row in rows), default=0)}  # names are ASCII
    for column in COLUMNS:
        if column.key not in found:
            # Each distinct value once: ten thousand adapters have a few bases and ranks.
            different = {column.of(row): row for row in rows}.values()
            texts = {column.say(row, seen) for row in different}
            found[column.key] = max(map(cell_len, texts), default=0)
    return found


def fit(width: int, natural: Mapping[str, int]) -> dict[Column, int]:
    """The columns that fit into `width` cells, and how wide each is."""
    there = [column for column in COLUMNS if not column.optional or natural.get(column.key)]
    wanted = {
        column: min(
            column.most,
            max(cell_len(column.title) + 1, natural.get(column.key, 0)),  # and the arrow
        )
        for column in there
    }
    widths = {column: min(column.least, wanted[column]) for column in there}
    for key in DROPPED_FIRST:
        if _total(widths.values()) <= width:
            break
        widths = {column: least for column, least in widths.items() if column.key != key}
    for column in sorted(widths, key=lambda column: WIDENED.index(column.key)):
        widths[column] += max(
            0, min(width - _total(widths.values()), wanted[column] - widths[column])
        )
    return widths


def _total(widths: Iterable[int]) -> int:
    return sum(width + GAP for width in widths) - GAP


def shorten_repo(repo: str, width: int) -> str:
    """A repository id in `width` cells: the model's name says more than the owner's."""
    return repo if cell_len(repo) <= width else repo.rpartition("/")[2]
