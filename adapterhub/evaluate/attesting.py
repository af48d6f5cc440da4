"""What an evaluation leaves in the store about each adapter: the numbers, and everything that they depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from adapterhub.data import dataset_digest, template_digest
from adapterhub.evaluate.backend import Backend
from adapterhub.evaluate.measures import Measure
from adapterhub.evaluate.table import EvalRow
from adapterhub.evaluate.task import Asked, Chosen, Settings

if TYPE_CHECKING:
    from adapterhub.base import BaseModel


def facts_of(
    base: BaseModel,
    tokenizer: Any,
    chosen: Chosen,
    asked: Asked,
    backend: Backend,
    settings: Settings,
    measures: Sequence[Measure],
    max_new_tokens: int,
    further: Mapping[str, Any],
) -> dict[str, Any]:
    """What all numbers of one evaluation have in common. No path, host or time: the same facts, the same body."""
    how = asdict(settings) | dict(further)
    if measures or "judge" in further:
        how |= {"measures": [one.identity for one in measures], "max_new_tokens": max_new_tokens}
    return {
        "metric": "perplexity",
        **({"suite": chosen.suite} if chosen.suite else {}),
        "data": {
            "digest": chosen.digest,
            "rows_digest": dataset_digest(chosen.rows),
            "truncated": asked.truncated,
            "dropped": asked.dropped,
        },
        "settings": how,
        "base": {
            "repo": base.repo,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "config": base.config_digest,
        },
        "template": template_digest(tokenizer),
        "versions": backend.identity["versions"],
    }


def body_of(
    row: EvalRow, table: Sequence[EvalRow], facts: Mapping[str, Any], prompt: str | None
) -> dict[str, Any]:
    reference = next((r for r in table if r.kind == "base"), None)
    numbers = {
        "loss": row.loss,
        "perplexity": row.perplexity,
        "tokens": row.tokens,
        "rows": row.rows,
        "base_perplexity": reference.perplexity if reference else None,
        "versus_base": asdict(row.versus_base) if row.versus_base else None,
    }
    told = asdict(replace(row, answer=None))
    for key in ("measures", "parts", "versus", "judged"):
        if told[key]:
            numbers[key] = told[key]
    baselines = {
        one.kind: {
            "perplexity": one.perplexity,
            "measures": {name: measured.value for name, measured in one.measures.items()},
        }
        for one in table
        if one.kind in ("prompted", "retrieved")
    }
    if baselines:
        numbers["baselines"] = baselines
    if row.trained_on:
        facts = {**facts, "data": {**facts["data"], "trained_on": row.trained_on}}
    said = {"prompt": prompt, "answer": row.answer} if prompt is not None else None
    return {**facts, "result": _finite(numbers), "said": said}


def _finite(value: Any) -> Any:
    """The same without numbers that JSON doesn't know: the perplexity of a model that has diverged is infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
