"""`adapterhub recipe preview`: rows of a recipe as the model will see them; cheap to import."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli.command import Context, command

if TYPE_CHECKING:
    from adapterhub.trainer.preview import Piece, PreviewedRow

_TRAINED, _MASKED, _CUT = "bold green", "bright_black", "red strike"
_BRACKETS = ("⟦⟧", "⟪⟫", "⦃⦄", "⦗⦘", "«»", "‹›")
"""Pairs that mark pieces where there is no colour; two are taken that the rows don't contain."""


@command
def preview(
    ctx: Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many rows to show.")] = 3,
    row: Annotated[
        int | None, typer.Option("--row", min=1, help="Show the row with this number in its file.")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Show rows that are never trained on.")
    ] = False,
) -> None:
    """Show rows as the model will see them: what is trained, what is masked, what max_length cuts off."""
    # The base is on this machine or is refused; nothing a library might look up on the Hub is wanted.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from adapterhub.trainer.libraries import logged_to, require_libraries
    from adapterhub.trainer.recipe import load_recipe

    checked = load_recipe(recipe)
    require_libraries()
    from adapterhub.trainer.preview import preview_rows

    with ctx.out.progress("reading the data"), logged_to(None):
        found = preview_rows(
            checked,
            ctx.store.bases.open(checked.base),
            count=rows,
            number=row,
            held_out=held_out,
        )
    if ctx.out.mode != "human":
        ctx.out.table([item.record for item in found], ("row", "tokens", "trained"), ids="row")
    elif ctx.out.width is None or "NO_COLOR" in os.environ:
        ctx.out.text("\n\n".join(_plain(found)))
    else:
        ctx.out.pieces(coloured(found))


def _plain(found: Sequence[PreviewedRow]) -> Iterable[str]:
    """The legend and the rows with brackets in place of colours: what lies in none is masked."""
    texts = "".join(piece.text for row in found for piece in row.pieces)
    trained, cut = sorted(_BRACKETS, key=lambda pair: not set(texts).isdisjoint(pair))[:2]
    yield f"{trained[0]}trained{trained[1]}  masked  {cut[0]}cut off by max_length{cut[1]}"
    for row in found:
        text = ""
        kind = ""
        for piece in row.pieces:
            wanted = cut if piece.cut else trained if piece.trained else ""
            if wanted != kind:
                text += kind[1:] + wanted[:1]
                kind = wanted
            text += piece.text
        yield f"{row.headline}\n{text}{kind[1:]}"


def coloured(found: Sequence[PreviewedRow]) -> list[list[tuple[str, str]]]:
    """The legend and the rows as lines of (text, style)."""
    names = (("trained", _TRAINED), ("masked", _MASKED), ("cut off by max_length", _CUT))
    legend = [part for name, style in names for part in ((name, style), ("  ", ""))]
    lines = [[*legend, ("control token", "reverse"), ("  ↵ line feed", "")]]
    for row in found:
        lines += [[], *_coloured(row)]
    return lines


def _coloured(row: PreviewedRow) -> list[list[tuple[str, str]]]:
    lines: list[list[tuple[str, str]]] = [[(row.headline, "bold")], []]
    for piece in row.pieces:
        first, *others = piece.text.split("\n")
        style = _style(piece)
        lines[-1].append((first, style))
        for other in others:
            lines[-1].append(("↵", style))
            lines.append([(other, style)])
    return lines


def _style(piece: Piece) -> str:
    style = _CUT if piece.cut else _TRAINED if piece.trained else _MASKED
    return f"{style} reverse" if piece.control else style
