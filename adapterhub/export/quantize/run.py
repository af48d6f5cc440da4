"""`export --quantize gptq|awq`: the unquantised model first, beside the target, then what llm-compressor makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.base import read_base
from adapterhub.export.card import CARD_NAME, RECORD_NAME, model_card
from adapterhub.export.estimate import base_of
from adapterhub.export.quantize.calibrated import (
    Method,
    find_python,
    quantise_calibrated,
    read_calibration,
)
from adapterhub.export.run import Exported, ProgressFactory, export
from adapterhub.fsio import new_folder, remove, require_free
from adapterhub.merge.recipe import Recipe
from adapterhub.runs import running
from adapterhub.store import Resolved, Store


@dataclass(frozen=True)
class Rows:
    """Where calibration rows come from: a data file, its format where it isn't told from the first row, and how many."""

    data: Path
    fmt: str | None = None
    most: int = 128


def export_calibrated(
    store: Store,
    parents: Sequence[Resolved],
    recipe: Recipe,
    folder: Path,
    method: Method,
    rows: Rows,
    *,
    base: str | None,
    progress: ProgressFactory,
    overwrite: bool = False,
    warn: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Exported:
    """As `export`, with the linears in 4 bits by `method`. The unquantised model is on the disk meanwhile.

    Args:
        settings: further ones of `export`.

    Also raises MissingDependencyError without llm-compressor's environment, ExternalToolError where it fails, and what
    `read_calibration` raises; all but ExternalToolError before anything is written.
    """
    python = find_python(store.home, store.settings.tools.quantize)
    model = base_of(store, parents, base)
    keep = (model.path, store.home)
    hint = "Choose another folder, or say --overwrite."
    require_free(folder, overwrite, keep=keep, hint=hint)
    calibration = read_calibration(rows.data, model.path, fmt=rows.fmt, most=rows.most)
    unquantised = folder.absolute().with_name(f".{folder.name}.unquantised")
    try:
        done = export(
            store,
            parents,
            recipe,
            unquantised,
            base=base,
            progress=progress,
            overwrite=True,
            warn=warn,
            **settings,
        )
        record = json.loads((unquantised / RECORD_NAME).read_bytes())
        with (
            running(store.runs_dir, "quantize", {"folder": str(folder), "method": method}) as run,
            progress(f"Quantising {folder.name}", None) as bar,
            new_folder(folder, overwrite=overwrite) as building,
        ):

            def stage(name: str) -> None:
                bar.update(f"Quantising {folder.name}: {name}")
                run.event("stage", name=name)

            report = quantise_calibrated(
                unquantised,
                building,
                method,
                calibration,
                python=python,
                log=run.path / "llm-compressor.log",
                stage=stage,
            )
            record = {**record, "quantize": report}
            (building / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
            (building / CARD_NAME).write_text(model_card(record, model.path))
    finally:
        remove(unquantised)
    size = sum(shard.stat().st_size for shard in read_base(folder).shards)
    return replace(done, folder=folder, size=size, quantized=report)
