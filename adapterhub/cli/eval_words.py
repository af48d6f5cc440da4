"""What an evaluation found, as people read it: the table of its lines, and what should be known before they are relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.words import counted

if TYPE_CHECKING:
    from adapterhub.cli.command import Context
    from adapterhub.evaluate import EvalRow
    from adapterhub.evaluate.table import Measured, Part

FEW = 10
"""Rows below which an interval is hardly one."""


def models(names: Sequence[str], how: Mapping[str, Any]) -> int:
    """How many lines are computed, those of the base asked otherwise among them."""
    return len(set(names)) + sum(how[key] is not None for key in ("system", "contexts"))


def remarks(ctx: Context, rows: Sequence[EvalRow]) -> None:
    """What should be known before the numbers are relied on."""
    from adapterhub.evaluate import judge

    for row in rows:
        if row.trained_on:
            ctx.out.warn(
                f"{row.name} was trained on {row.trained_on} of the {counted(row.rows, 'row')}: what it says there it may"
                " have learned by heart. No gate takes that; evaluate with the split of its recipe."
            )
    if left_out := rows[0].left_out:
        ctx.out.note(
            f"Left out for all: {counted(left_out, 'row')} whose answer has no room within --max-length."
        )
    for text in judge.in_words(rows):
        ctx.out.note(text)


def in_words(rows: Sequence[EvalRow]) -> tuple[list[str], list[dict[str, Any]]]:
    """The table for people: a line a model, and below it one for each part of the data."""
    measures = list(rows[0].measures)
    columns = ["name", "kind", "perplexity"]
    if any(row.versus_base for row in rows):
        columns.append("against base")
    columns += [*measures, "tokens", "rows"]
    if measures:
        columns.append("tokens/s")
    if any(row.answer is not None for row in rows):
        columns.append("answer")
    lines = []
    for row in rows:
        lines.append(
            {
                "name": row.name,
                "kind": row.kind,
                "tokens": row.tokens,
                "tokens/s": row.tokens_per_second,
                "answer": row.answer,
                **_cells(row),
            }
        )
        lines += [
            {"name": f"  {name or 'the rest'}", "kind": None, **_cells(part)}
            for name, part in row.parts.items()
        ]
    return columns, lines


def _cells(part: EvalRow | Part) -> dict[str, Any]:
    """What a model and a part of the data are told alike."""
    from adapterhub.perplexity import loss_in_words

    versus = part.versus_base
    return {
        "perplexity": part.perplexity,
        "rows": part.rows,
        "against base": loss_in_words(versus.verdict, versus.difference, versus.low, versus.high)
        if versus
        else None,
        **{name: _measured(one) for name, one in part.measures.items()},
    }


def _measured(one: Measured) -> str:
    """`0.62 (better)`."""
    word = one.versus_base.verdict if one.versus_base else None
    return f"{one.value:.3g}" + (f" ({word})" if word else "")
