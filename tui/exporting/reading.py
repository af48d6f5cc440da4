"""What the export screen asks the hub; everything here reads files and runs in a thread."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from adapterhub.errors import UsageError
from adapterhub.export.estimate import Estimate, estimate
from adapterhub.export.options import check_options
from adapterhub.fsio import typed_path
from adapterhub.handover import RESULT
from adapterhub.merge.recipe import make_recipe, parse_weights
from adapterhub.pace import Pace
from adapterhub.runs import RunRecord, find_run, read_run
from adapterhub.store import Store
from adapterhub.tui.exporting.model import PLAIN, Wanted


def look(store: Store, wanted: Wanted) -> Estimate:
    """What the export would write. Raises what it would be refused for."""
    if not wanted.folder.strip():
        raise UsageError("No folder is named.", hint="Say where the model goes.")
    quantize = None if wanted.quantize == PLAIN else wanted.quantize
    check_options(
        quantize,
        calibrated=wanted.calibrates and bool(wanted.calibration.strip()),
        resume=wanted.resume,
        everything=wanted.verify == "all",
    )
    parents = [store.resolve(name) for name in wanted.names]
    weights = parse_weights(wanted.weights) if wanted.merges and wanted.weights.strip() else None
    method = wanted.method if wanted.merges else "linear"
    make_recipe(method, [parent.digest for parent in parents], weights=weights)
    return estimate(
        store,
        parents,
        typed_path(wanted.folder.strip()),
        base=wanted.base.strip() or None,
        quantize=quantize,
        overwrite=wanted.overwrite,
    )


class Watch:
    """One run of an export, looked at from time to time."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self._path: Path | None = None
        self._pace = Pace()
        self._what = ""

    def look(self) -> tuple[RunRecord, float | None, float | None]:
        """The run, bytes a second, and seconds left."""
        if self._path is None:
            self._path = find_run(self._store.runs_dir, self._run).path
        record = read_run(self._path)
        progress = record.progress
        if progress is None or progress.unit != "bytes":
            return record, None, None
        if progress.what != self._what:  # verifying is another piece of work than writing
            self._what, self._pace = progress.what, Pace()
        self._pace.see(progress.done, time.monotonic())
        return record, self._pace.speed, self._pace.left(progress.total)


def result_of(record: RunRecord) -> dict[str, Any]:
    """What the export said when it was done."""
    try:
        found = json.loads((record.path / RESULT).read_text("utf-8"))
    except (OSError, ValueError):
        return dict(record.result)
    return found if isinstance(found, dict) else {}
