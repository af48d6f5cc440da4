"""`diff`: how adapters relate, before they are merged."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adapterhub.cli.command import Context, command
from adapterhub.cli.output import clean
from adapterhub.words import human_count

if TYPE_CHECKING:  # these load numpy, which must first be told how many threads to take
    from adapterhub.compare.grid import Measure
    from adapterhub.compare.similarity import Comparison, Module, Pair, Selection
    from adapterhub.compare.verdict import Verdict

_WIDE = 110
"""Columns of a terminal that has room for a whole row of `--modules`."""

MeasureName = Literal["cosine", "conflict", "norm-ratio", "overlap"]


@command
def diff(
    ctx: Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A name, or @digest.")],
    second: Annotated[str, typer.Argument(metavar="B", help="A name, or @digest.")],
    others: Annotated[
        list[str] | None, typer.Argument(metavar="[C]...", help="More of them.", show_default=False)
    ] = None,
    measure: Annotated[
        MeasureName, typer.Option("--measure", help="What the heatmap shows.")
    ] = "cosine",
    modules: Annotated[
        bool, typer.Option("--modules", help="One row a module instead of the heatmap.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Count sign conflicts in all rows, not in a sample of them."),
    ] = False,
) -> None:
    """Compare adapters: settings, norms, angles, sign conflicts, and what that means for a merge."""
    # One BLAS thread: more of them only wait for each other on matrices this small, and change the last digits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from adapterhub.compare.document import document
    from adapterhub.compare.run import compare_stored

    done = compare_stored(
        ctx.store,
        [first, second, *(others or [])],
        ctx.out.progress,
        exact=exact,
        warn=ctx.out.warn,
        note=ctx.out.note,
    )
    comparison, verdict = done.comparison, done.verdict
    if ctx.out.mode == "json":
        digests = [parent.digest for parent in done.parents]
        ctx.out.record(document(comparison, verdict, digests))
    elif ctx.out.mode == "quiet":
        cosines = [comparison.whole.cosine(pair) for pair in comparison.pairs]
        ctx.out.table([{"cosine": cosine} for cosine in cosines], ("cosine",), ids="cosine")
    else:
        _show(ctx, comparison, verdict, measure, by_module=modules)


def _show(
    ctx: Context, comparison: Comparison, verdict: Verdict, measure: str, *, by_module: bool
) -> None:
    from adapterhub.compare.document import matrices
    from adapterhub.compare.grid import MEASURES

    labels = comparison.labels
    ctx.out.table(_adapters(comparison), ("", *labels))
    if ctx.out.width is None:  # a table on a terminal ends with an empty line
        ctx.out.text("")
    rows: list[dict[str, Any]]
    if len(labels) == 2:
        ctx.out.record(_numbers(comparison))
    else:
        for title, measured in matrices(comparison):
            rows = [
                {title: label, **dict(zip(labels, row, strict=True))}
                for label, row in zip(labels, measured, strict=True)
            ]
            ctx.out.table(rows, (title, *labels))
            if ctx.out.width is None:
                ctx.out.text("")
    ctx.out.note(_looked_at(comparison))
    ctx.out.text("")
    if by_module:
        _rows(ctx, comparison)
    else:
        _heatmap(ctx, comparison, MEASURES[measure])
    ctx.out.text("")
    for finding in verdict.findings:
        _say(ctx, finding.text)
    ctx.out.text("")
    if verdict.line is None:
        _say(ctx, f"No merge to recommend: {verdict.reason}.")
    else:
        _say(ctx, f"Try this ({verdict.reason}):")
        ctx.out.text(f"  {verdict.line}")


def _say(ctx: Context, sentence: str) -> None:
    """A sentence, broken between words where it is longer than the terminal is wide."""
    wide = ctx.out.width
    if wide is not None:
        sentence = textwrap.fill(sentence, wide, break_on_hyphens=False, break_long_words=False)
    ctx.out.text(sentence)


def _adapters(comparison: Comparison) -> list[dict[str, Any]]:
    """Settings that differ, then norms and ranks: one row a fact, one column an adapter."""
    from adapterhub.compare.document import mean_rank

    whole = comparison.whole
    rows: dict[str, Sequence[Any]] = dict(comparison.settings)
    places = range(len(comparison.labels))
    rows["norm of ΔW"] = [whole.norm(place) for place in places]
    rows["effective rank"] = [mean_rank(whole, place) for place in places]
    shown = []
    for name, values in rows.items():
        cells = [_words(value) for value in values]
        shown.append({"": name, **dict(zip(comparison.labels, cells, strict=True))})
    return shown


def _numbers(comparison: Comparison) -> dict[str, Any]:
    """What there is to say of two adapters as wholes."""
    whole, (pair,) = comparison.whole, comparison.pairs
    first, second = comparison.labels
    shared = whole.shared(pair)
    inside = whole.inside(pair)
    angles = [meeting.pairs[pair].angles for meeting in shared.modules]
    return {
        "shared modules": f"{len(shared.modules)} of {len(comparison.modules)}",
        "cosine": whole.cosine(pair),
        "sign conflict": _rate(whole, pair, exact=comparison.exact),
        "  among both top 20%": whole.top_conflict(pair),
        f"{first} inside {second}": inside[0],
        f"{second} inside {first}": inside[1],
        "angles of columns": _angles([angle for each in angles for angle in each.angles_out]),
        "angles of rows": _angles([angle for each in angles for angle in each.angles_in]),
    }


def _rate(whole: Selection, pair: Pair, *, exact: bool) -> str | None:
    rate = whole.conflict(pair)
    if rate is None:
        return None
    error = whole.conflict_error(pair)
    return f"{rate:.4g}" if exact or error == 0 else f"{rate:.4g} ± {error:.1g}"


def _angles(angles: Sequence[float]) -> str | None:
    """Smallest and mean principal angle, in degrees."""
    if not angles:
        return None
    return f"from {min(angles):.3g}°, on average {sum(angles) / len(angles):.3g}°"


def _looked_at(comparison: Comparison) -> str:
    from adapterhub.compare.document import sample

    counts = sample(comparison)
    if comparison.exact or counts["elements"] == counts["of_elements"]:
        return "signs counted in all rows"
    return (
        f"signs sampled: {counts['rows_a_module']} rows of each module,"
        f" {human_count(counts['elements'])} of {human_count(counts['of_elements'])} elements (--exact: all)"
    )


def _heatmap(ctx: Context, comparison: Comparison, measure: Measure) -> None:
    from adapterhub.cli.heatmap import heatmap, legend
    from adapterhub.compare.grid import grid

    found = grid(comparison, measure)
    columns = tuple(map(clean, found.columns))  # parts of foreign names, and headers
    if ctx.out.width is not None:
        several = f"; {measure.worst}" if len(comparison.labels) > 2 else ""
        ctx.out.pieces([[(measure.name, "bold"), (f"  {measure.meaning}{several}", "dim")]])
        if "NO_COLOR" not in os.environ:
            ctx.out.pieces([legend(measure.name)])
        ctx.out.pieces(heatmap(replace(found, columns=columns), measure.name, ctx.out.width))
        return
    rows = [*found.rows, ("all", found.total)] if found.rows else []
    if rows:
        table = [{"layer": name, **dict(zip(columns, row, strict=True))} for name, row in rows]
        ctx.out.table(table, ("layer", *columns))
    if found.outside:
        if rows:
            ctx.out.text("")
        outside = [{"module": name, measure.name: value} for name, value in found.outside]
        ctx.out.table(outside, ("module", measure.name))


def _rows(ctx: Context, comparison: Comparison) -> None:
    """One row a module: every number for a pipe, as many short ones as there is room for on a terminal."""
    rows = [_row(comparison, module) for module in comparison.modules]
    columns = tuple(rows[0])
    if ctx.out.width is not None:
        rows = [{key: _short(key, value) for key, value in row.items()} for row in rows]
        if ctx.out.width < _WIDE:
            who = ("worst_pair",) if "worst_pair" in columns else ("norm_a", "norm_b")
            columns = ("module", *who, "cosine", "conflict")
    ctx.out.table(rows, columns)


def _short(key: str, value: Any) -> Any:
    """Three digits behind the point, but for norms, which may all be tiny."""
    rounded = isinstance(value, float) and not key.startswith("norm")
    return round(value, 3) + 0.0 if rounded else value


def _row(comparison: Comparison, module: Module) -> dict[str, Any]:
    """A module as one row: of two adapters, or the pair of lowest cosine among more."""
    from adapterhub.compare.grid import MEASURES, worst_pair
    from adapterhub.compare.similarity import Selection

    here, several = Selection([module]), len(comparison.labels) > 2
    worst = worst_pair(MEASURES["cosine"], here, comparison.pairs)
    pair = worst[0] if worst else comparison.pairs[0]
    meeting = module.pairs.get(pair)
    first, second = (module.strengths[place] for place in pair)
    row: dict[str, Any] = {"module": module.name}
    if several:
        row["worst_pair"] = " ".join(comparison.labels[place] for place in pair) if worst else None
    return {
        **row,
        "norm_a": first.norm,
        "norm_b": second.norm,
        "cosine": here.cosine(pair),
        "conflict": here.conflict(pair),
        "overlap": here.overlap(pair),
        "angle": min(*meeting.angles.angles_out, *meeting.angles.angles_in) if meeting else None,
        "rank_a": first.effective_rank,
        "rank_b": second.effective_rank,
    }


def _words(value: object) -> Any:
    """A setting in a cell."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return value
