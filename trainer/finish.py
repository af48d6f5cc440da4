"""The end of a training: the adapter that was worth keeping goes into the store under its name, the others without one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import AdapterHubError
from adapterhub.store.adding import manifest_of
from adapterhub.trainer.provenance import Finished, provenance_body
from adapterhub.trainer.watch import checkpoint_folder

if TYPE_CHECKING:
    from adapterhub.cli.output import Output
    from adapterhub.runs import Run
    from adapterhub.store import Added, Store


def put_into_store(store: Store, run: Run, finished: Finished, out: Output, *, move: bool) -> Added:
    """Adds the kept adapter under the recipe's name and the other checkpoints without one, then empties the run's folder.

    On any failure everything stays in the run, and the error says where.
    """
    folder = checkpoint_folder(run, finished.kept)
    try:
        others = [
            {"step": step, "digest": _keep(store, run, finished, step), **_loss(finished, step)}
            for step in sorted(finished.history.saved)
            if step != finished.kept
        ]
        body = provenance_body(finished) | {"checkpoints": others}
        added = _add(store, finished, folder, body, out, move=move, named=True)
    except (
        AdapterHubError
    ) as error:  # the name was taken while we trained, say, or the disk is full
        error.why = f"{error.why} The trained adapter is kept in {folder}.".strip()
        error.hint = f"adapterhub add {folder} --name NAME --base {finished.base.path}"
        raise
    # The name of a local base says nothing; remembered, later commands find it by its fingerprint.
    store.bases.remember(finished.base)
    for used in ("checkpoints", "scratch"):
        shutil.rmtree(run.path / used, ignore_errors=True)
    return added


def _keep(store: Store, run: Run, finished: Finished, step: int) -> str:
    """A checkpoint that wasn't chosen: in the store without a name, so until gc sweeps it away."""
    folder = checkpoint_folder(run, step)
    digest = manifest_of(folder).digest
    if store.layout.manifest(digest).is_file():  # known already, and what is known of it is its own
        return digest
    body = provenance_body(finished, step)
    return _add(store, finished, folder, body, None, move=False, named=False).digest


def _loss(finished: Finished, step: int) -> dict[str, float]:
    score = finished.history.at(step)
    return {} if score is None else {"loss": score.loss}


def _add(
    store: Store, finished: Finished, folder: Path, body: Mapping[str, Any], out: Output | None,
    *, move: bool, named: bool,
) -> Added:  # fmt: skip
    base, template = finished.base, finished.tokens.template

    def note(remark: str) -> None:
        if out is None or (base.repo is None and "which base" in remark):
            return  # it is this base, and that is attested
        out.note(remark)

    return store.add_folder(
        folder,
        name=finished.recipe.name,
        base=str(base.path),
        move=move,
        provenance=body,
        attestations=[("template", {"digest": template, "event": "trained"})] if template else [],
        why=f"train {finished.recipe.name}",
        op="train",
        note=note,
        named=named,
    )
