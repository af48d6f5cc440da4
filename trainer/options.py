"""Options that every command on a recipe has."""

from __future__ import annotations

from typing import Annotated

import typer

Name = Annotated[str | None, typer.Option(help="The adapter's name, instead of the recipe's.")]
Base = Annotated[
    str | None,
    typer.Option(help="Folder or repository of the base model, instead of the recipe's."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for any key of the recipe: --set eval.every=50.",
    ),
]
