"""`eval --pair`: QLoRA beside LoRA of the same recipe, as a table, a verdict and what each training cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.cli.eval_words import in_words
from adapterhub.errors import UsageError

if TYPE_CHECKING:
    from adapterhub.cli.command import Context


def pair(
    ctx: Context,
    names: Sequence[str],
    data: Sequence[Path],
    *,
    suite: str | None,
    margin: float | None,
    how: Mapping[str, Any],
) -> None:
    """Evaluates the two, and prints everything that was found. `how`: as `evaluate` takes it."""
    from adapterhub.evaluate.pair import MARGIN, evaluate_pair
    from adapterhub.evaluate.subjects import BASE
    from adapterhub.evaluated import Difference, difference_in_words

    if len(data) > 1:
        raise UsageError("A pair is evaluated on one data file.", hint="Name one --data FILE.")
    adapters = [name for name in names if name != BASE]  # which is in the table in any case
    with ctx.out.progress("Evaluating", 3) as progress:
        found = evaluate_pair(
            ctx.store,
            adapters,
            data=data[0] if data else None,
            suite=suite,
            margin=MARGIN if margin is None else margin,
            progress=progress,
            **how,
        )
    if ctx.out.mode != "human":
        ctx.out.record(asdict(found), ids=("word",))
        return
    columns, lines = in_words(found.rows)
    ctx.out.table(lines, columns)
    told = {"verdict": found.verdict}
    for name, one in found.measures.items():
        beside = Difference(one.difference, one.low, one.high, one.verdict)
        told[f"{name}, less LoRA's"] = difference_in_words(name, beside)
    ctx.out.record({**told, "cost": found.cost_in_words})
    for difference in found.differences:
        ctx.out.warn(f"they differ in more than the method: {difference}")
    for remark in found.remarks:
        ctx.out.note(remark)
