"""Writing the merged model: shards, what lies beside them, the index and a record, as one folder that appears whole.

Each shard has the layout of its base shard; untouched tensors are copied as bytes, changed ones are widened to float32,
added to, and rounded once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapterhub.base import INDEX_NAME, SINGLE_NAME, BaseModel
from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.errors import VerificationError
from adapterhub.export.card import CARD_NAME, RECORD_NAME, model_card
from adapterhub.export.layout import Shard, require_true_index, weight_map
from adapterhub.export.partial import Partial, building, digest_of_file
from adapterhub.export.plan import ExportPlan
from adapterhub.export.stream import Budget, write_shards
from adapterhub.lora.rows import Rows


@dataclass(frozen=True)
class Listener:
    """Who wants to know: of bytes written, of every finished shard (name, whether it was there before), and warnings."""

    advance: Callable[[int], None] = lambda _: None
    finished: Callable[[str, bool], None] = lambda _, __: None
    warn: Callable[[str], None] = lambda _: None


class Writer(Protocol):
    """Writes shards, as `stream.write_shards` does."""

    def __call__(
        self,
        shards: Sequence[Shard],
        folder: Path,
        delta_of: Callable[[str], Rows],
        *,
        budget: Budget,
        finished: Callable[[Shard, Path, bool], None],
        advance: Callable[[int], None],
    ) -> None: ...


def bake(
    plan: ExportPlan,
    shards: Sequence[Shard],
    delta_of: Callable[[str], Rows],
    folder: Path,
    *,
    files: Mapping[str, Path],
    record: Mapping[str, Any],
    budget: Budget,
    overwrite: bool = False,
    resume: bool = False,
    write: Writer = write_shards,
    configuration: Mapping[str, Any] | None = None,
    listener: Listener = Listener(),
    check: Callable[[Path], Mapping[str, Any]] = lambda _: {},
) -> None:
    """Writes the model into `folder`; `adapterhub.export.partial` tells what a failure leaves.

    Args:
        shards: the layouts of the plan.
        delta_of: gives the delta of a module in the plan, as (out, in) rows.
        files: what comes along unchanged, by its name in the model.
        record: what was exported, written beside the model as adapterhub.json.
        check: looks at the whole model before it gets its name, and gives what is added to the record. Where it raises
            VerificationError nothing is kept.
        configuration: keys of config.json that are other than the base's.
    """
    index = _index(plan, shards)
    with building(
        folder,
        _identity(record, shards, plan.base),
        shards=len(shards),
        overwrite=overwrite,
        resume=resume,
        workers=budget.workers,
        warn=listener.warn,
    ) as partial:
        for name, size in partial.kept.items():
            listener.finished(name, True)
            listener.advance(size)
        write(
            [shard for shard in shards if shard.name not in partial.kept],
            partial.model,
            delta_of,
            budget=budget,
            finished=_noting(partial, listener),
            advance=listener.advance,
        )
        _copy_beside(plan, files, partial.model, configuration or {})
        if index is not None:
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (partial.model / INDEX_NAME).write_text(text)
        try:
            record = {**record, **check(partial.model)}
        except VerificationError:
            shutil.rmtree(partial.model)  # shards that are wrong are no start for a --resume
            raise
        text = json.dumps(dict(record), indent=2, default=str) + "\n"
        (partial.model / RECORD_NAME).write_text(text)
        (partial.model / CARD_NAME).write_text(model_card(record, plan.base.path))


def _noting(partial: Partial, listener: Listener) -> Callable[[Shard, Path, bool], None]:
    def finished(shard: Shard, path: Path, more: bool) -> None:
        if more:  # else the whole export ends now: noting it would take longer than it could save
            partial.note(shard.name, shard.size, digest_of_file(path))
        listener.finished(shard.name, False)

    return finished


def _identity(
    record: Mapping[str, Any], shards: Sequence[Shard], base: BaseModel
) -> dict[str, Any]:
    """What makes two exports the same, bit for bit."""
    layout = {
        shard.name: [digest_of(shard.header), [[p.start, p.size] for p in shard.pieces]]
        for shard in shards
    }
    found = {
        "base": record["base"]["fingerprint"],
        "adapters": [adapter["digest"] for adapter in record["adapters"]],
        "recipe": record["recipe"],
        "versions": record["engine"],
        "base_view": record.get("base_view"),
        "quantize": record.get("quantize"),
        "layout": digest_of(canonical_bytes(layout)),
        "shards": [
            [path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in base.shards
        ],
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def _index(plan: ExportPlan, shards: Sequence[Shard]) -> dict[str, Any] | None:
    """The index to write; None where the base needs none. FormatError where the base's own leads astray."""
    path = plan.base.path / INDEX_NAME
    if (plan.base.path / SINGLE_NAME).is_file() or not path.is_file():
        return None
    index: dict[str, Any] = json.loads(path.read_bytes())
    require_true_index(index.get("weight_map", {}), plan)
    found = weight_map(shards)
    if plan.tensors != plan.base.tensors:
        metadata = index.setdefault("metadata", {})
        metadata["total_size"] = sum(tensor.size for shard in shards for tensor in shard.tensors)
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(info.count for info in plan.tensors.values())
    return {**index, "weight_map": found}


def _copy_beside(
    plan: ExportPlan, files: Mapping[str, Path], building: Path, configuration: Mapping[str, Any]
) -> None:
    for name, path in files.items():
        shutil.copyfile(path, building / name)
    config = {**plan.base.config, **plan.configuration, **configuration}
    if config != plan.base.config:
        (building / "config.json").write_text(json.dumps(config, indent=2) + "\n")
