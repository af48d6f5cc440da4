"""`eval --interactions`: a table a task, and what a merge kept of each adapter beside what the weights promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.cli.eval_words import in_words, models, remarks

if TYPE_CHECKING:
    from adapterhub.cli.command import Context


def interactions(
    ctx: Context, names: Sequence[str], merged: str, data: Sequence[Path], how: dict[str, Any]
) -> None:
    """A table a task, and what was kept beside what the weights promised."""
    from adapterhub.evaluate.interactions import interactions as run_interactions
    from adapterhub.evaluate.subjects import BASE

    units = models([BASE, *names, merged], how) * len(data)
    with ctx.out.progress("Evaluating", units) as progress:
        found = run_interactions(ctx.store, names, merged, data, progress=progress, **how)
    if ctx.out.mode == "json":
        ctx.out.table([asdict(one) for one in found], ())
        return
    for one in found:
        columns, lines = in_words(one.rows)
        ctx.out.table(lines, columns, title=one.data)
        remarks(ctx, one.rows)
    told = [
        {
            "adapter": one.adapter,
            "gain": one.gain,
            "kept of it": None if one.kept is None else f"{one.kept:.0%}",
            "held of its weights": None if one.retained is None else f"{one.retained:.0%}",
            "nearest cosine": one.cosine,
        }
        for one in found
    ]
    ctx.out.table(told, list(told[0]), ids="adapter", title=f"What {merged} kept")
