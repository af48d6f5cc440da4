"""`export`: adapters baked into their base, as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.cli.parameters import (
    AllowMismatch,
    Device,
    MemoryBudget,
    Method,
    NamesOrRecipe,
    SavedFrom,
    Seed,
    Semantics,
    Weights,
    Workers,
    asked_for,
    resources_of,
    with_parameters,
)
from adapterhub.errors import UsageError
from adapterhub.export.options import check_options
from adapterhub.fsio import typed_path
from adapterhub.words import human_size

if TYPE_CHECKING:
    from adapterhub.export.run import Exported
    from adapterhub.store import Resolved


_FORM, _SAFETY = "What is written", "Safety"


@command
@with_parameters
def export(
    ctx: Context,
    names: NamesOrRecipe,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="Folder or repository. Default: the adapters' own."),
    ] = None,
    method: Method = None,
    weights: Weights = None,
    semantics: Semantics = None,
    seed: Seed = None,
    saved_from: SavedFrom = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", rich_help_panel=_SAFETY, help="Replace the folder.")
    ] = False,
    base_view: Annotated[
        str | None,
        typer.Option(
            "--base-view",
            metavar="VIEW",
            rich_help_panel=_FORM,
            help="original (default): add to the base's weights as they are, which is what `eval` and `serve` do."
            " trained: to those that a QLoRA adapter was trained on, in 4 bits and dequantised. nf4 or fp4: the same,"
            " where the adapter doesn't say it.",
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            rich_help_panel=_FORM,
            help="nf4: a bitsandbytes checkpoint. gptq or awq: by llm-compressor, which needs rows to calibrate with.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_FORM,
            help="Rows for gptq and awq, in a format of training data.",
        ),
    ] = None,
    calibration_rows: Annotated[
        int,
        typer.Option(
            "--calibration-rows",
            min=1,
            metavar="N",
            rich_help_panel=_FORM,
            help="At most so many of them.",
        ),
    ] = 128,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=_SAFETY, help="Go on with an export that was cut short."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            rich_help_panel=_SAFETY,
            help="Read the weights again, compare them with a second computation, and tell what rounding lost; up to 1B"
            " parameters compare the logits with PEFT's too. Nothing is kept where it fails.",
        ),
    ] = True,
    verify_all: Annotated[
        bool,
        typer.Option(
            "--verify-all",
            rich_help_panel=_SAFETY,
            help="Every row and the logits, however large the model.",
        ),
    ] = False,
    parameters: dict[str, Any],
    allow_mismatch: AllowMismatch = False,
    workers: Workers = None,
    memory: MemoryBudget = "256MB",
    device: Device = "cpu",
) -> None:
    """Write base + adapter as a full model; several adapters are merged on the way, untruncated."""
    parents, recipe, _, its_base = asked_for(
        ctx,
        names,
        parameters,
        method=method,
        weights=weights,
        semantics=semantics,
        seed=seed,
        saved_from=saved_from,
    )
    base = base or its_base
    if verify_all and not verify:
        raise UsageError(
            "--verify-all and --no-verify contradict each other.", hint="Leave one of them out."
        )
    check_options(
        quantize, calibrated=calibration is not None, resume=resume, everything=verify_all
    )
    require_extra("torch", "merge")
    done = _exporting(quantize, calibration, calibration_rows, resume)(
        ctx.store,
        parents,
        recipe,
        output,
        base=base,
        base_view=base_view,
        progress=ctx.out.progress,
        transfer=ctx.out.transfer,
        overwrite=overwrite,
        verify="all" if verify_all else "sized" if verify else "none",
        allow_mismatch=allow_mismatch,
        resources=resources_of(workers, memory, device),
        note=ctx.out.note,
        warn=ctx.out.warn,
    )
    ctx.out.record(_told(done, parents, words=ctx.out.mode == "human"), ids=("folder",))


def _told(done: Exported, parents: Sequence[Resolved], *, words: bool) -> dict[str, Any]:
    """What was written, as a document or for people."""
    from adapterhub.export.told import in_words

    changed, total = done.tensors_changed, done.tensors_total
    view = done.view.record()
    return {
        "folder": str(done.folder),
        "base": done.base.label,
        "adapters": [parent.label for parent in parents],
        "changed": f"{changed} of {total} tensors" if words else {"tensors": changed, "of": total},
        "size": human_size(done.size) if words else done.size,
        "untied": done.untied,
        "base_view": view["view"] if words and not view["trained_on"] else view,
        "quantized": done.quantized,
        "verified": in_words(done.verified) if words else done.verified,
    }


def _exporting(
    quantize: str | None, calibration: Path | None, rows: int, resume: bool
) -> Callable[..., Exported]:
    """What exports in the form asked for."""
    from adapterhub.export.run import export as run_export

    if quantize is None or quantize == "nf4":
        return partial(run_export, quantize=None if quantize is None else "nf4", resume=resume)
    from adapterhub.export.quantize.calibrated import METHODS
    from adapterhub.export.quantize.run import Rows, export_calibrated

    assert calibration is not None, "checked with the options"
    source = Rows(typed_path(str(calibration)), None, rows)
    return partial(export_calibrated, method=METHODS[quantize], rows=source)
