"""`eval --harness`: a table for each task of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapterhub.cli.command import Context
from adapterhub.cli.eval_words import in_words
from adapterhub.words import counted, short

_EMPTY = ("perplexity", "against base", "tokens", "tokens/s")
"""Columns that tasks of the harness have nothing for."""


def harness(
    ctx: Context,
    names: Sequence[str],
    tasks: Sequence[str],
    *,
    folder: Path | None,
    few_shot: int | None,
    chat: bool,
    how: Mapping[str, Any],
) -> None:
    """Asks every name every task."""
    from adapterhub.evaluate.harness import evaluate_with_harness

    with ctx.out.progress("Evaluating", len(dict.fromkeys(names))) as progress:
        found = evaluate_with_harness(
            ctx.store,
            names,
            tasks,
            folder=folder,
            few_shot=few_shot,
            chat=chat,
            progress=progress,
            **how,
        )
    if ctx.out.mode == "json":
        told = [
            {"task": one.task, "data": one.digest, **asdict(row)}
            for one in found
            for row in one.rows
        ]
        ctx.out.table(told, ())
        return
    for one in found:
        columns, lines = in_words(one.rows)
        kept = [column for column in columns if column not in _EMPTY]
        ctx.out.table(lines, kept, title=f"{one.task}, data sha256:{short(one.digest)}")
        if one.truncated:
            ctx.out.note(
                f"{one.task}: {counted(one.truncated, 'request')} cut on the left to what the model can read."
            )
