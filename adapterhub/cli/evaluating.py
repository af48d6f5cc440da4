"""`eval`: held-out perplexity of the base, adapters and exported models, side by side."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from adapterhub.cli.command import Context, command, require_extra


@command
def evaluate(
    ctx: Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Adapters, the word `base`, or folders of exported models."
        ),
    ],
    data: Annotated[Path, typer.Option(help="The data file of the task.")],
    base: Annotated[
        str | None, typer.Option(help="Folder or repository; by default the first adapter's own.")
    ] = None,
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="alpaca, messages, sharegpt or text; by default told from the first row.",
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the rows held out, as in the recipe.")
    ] = 0.1,
    split: Annotated[
        Literal["held_out", "all"], typer.Option(help="Score the held-out rows, or all.")
    ] = "held_out",
    split_seed: Annotated[int, typer.Option(help="Seed of the split, as in the recipe.")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="Use only so many rows of the file, as in the recipe.", min=1)
    ] = None,
    max_rows: Annotated[int | None, typer.Option(help="Score at most so many rows.", min=1)] = None,
    max_length: Annotated[int, typer.Option(help="Tokens a row is cut to.", min=8)] = 1024,
    prompt: Annotated[str | None, typer.Option(help="Let each of them answer this, too.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of that answer.", min=1)] = 64,
    dtype: Annotated[
        str, typer.Option(help="Compute in float32, bfloat16 or float16.")
    ] = "float32",
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Go on although one doesn't fit the base.")
    ] = False,
) -> None:
    """Score adapters on rows they were never trained on: perplexity, and one answer each."""
    for package in ("torch", "transformers", "peft"):
        require_extra(package, "train")
    from adapterhub.evaluate import evaluate as run_evaluate

    with ctx.out.progress("Evaluating", len(names)) as progress:
        rows = run_evaluate(
            ctx.store,
            names,
            base=base,
            data=data,
            fmt=fmt,
            held_out=held_out,
            split=split,
            split_seed=split_seed,
            limit=limit,
            max_rows=max_rows,
            max_length=max_length,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            allow_mismatch=allow_mismatch,
            progress=progress,
        )
    columns = ["name", "kind", "perplexity", "loss", "tokens", "rows"] + (
        ["answer"] if prompt is not None else []
    )
    ctx.out.table([asdict(row) for row in rows], columns)
