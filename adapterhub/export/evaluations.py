"""What is attested of how well adapters did, for the card of the model they were baked into.

The numbers are of the adapter attached to the base, in the precision that is told with them; what rounding to the model's
own dtype makes of that, the export's check has measured. Only evaluations on the very base of the export count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.evaluated import (
    PERPLEXITY,
    Evaluation,
    Number,
    difference_in_words,
    evaluation_in,
    said,
)
from adapterhub.export.markdown import code, plain
from adapterhub.words import short

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_HEAD = (
    "| on | rows | measure | base | adapter | less the base |",
    "|---|---|---|---|---|---|",
)


def section(record: Mapping[str, Any]) -> str:
    """The section of the card: a table an adapter, and what the numbers depend on. It says so where nothing is known."""
    told = []
    for adapter in record["adapters"]:
        found = _evaluations(adapter, record)
        if not found:
            continue
        name = f"{code(adapter['name'])} attached to the base:\n\n"
        lines = [line for one in found for line in _lines(one)]
        told.append(name + "\n".join([*_HEAD, *lines]))
        told.append("\n".join(_depends(one) for one in found))
    if not told:
        return "## Evaluation\n\nNothing is attested of how well it does on this base."
    remarks = ["In brackets lie the 95% intervals of a paired bootstrap over the rows."]
    if len(record["adapters"]) > 1:
        remarks.append(
            "The adapters were evaluated one by one; their merge, which this is, was not."
        )
    if record.get("quantize"):
        remarks.append("They were evaluated on the base as it is, not in 4 bits.")
    return "\n\n".join(["## Evaluation", *told, " ".join(remarks)])


def results(record: Mapping[str, Any]) -> list[EvalResult]:
    """What the Hub may list as the model's own numbers: none unless the model is one adapter on the base, unquantised."""
    from huggingface_hub import EvalResult

    recipe, view = record["recipe"], record.get("base_view") or {}
    alone = len(record["adapters"]) == 1 and recipe.get("weights") == [1.0]
    if not alone or record.get("quantize") or view.get("view") not in (None, "original"):
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="custom",
            dataset_name=plain(one.on),
            dataset_revision=plain(one.rows_digest),
            metric_type=plain(name),
            metric_value=number.value,
            metric_name=plain(f"{name}, adapter attached to the base in {_dtype(one)}"),
        )
        for one in _evaluations(record["adapters"][0], record)
        if one.rows_digest is not None
        for name, number in one.numbers.items()
    ]


def _evaluations(adapter: Mapping[str, Any], record: Mapping[str, Any]) -> list[Evaluation]:
    """The newest evaluation of an adapter on each set of rows, attached to the record's base."""
    newest: dict[tuple[str | None, str | None], Evaluation] = {}
    for document in adapter.get("attestations", ()):
        if document["type"] != "eval":
            continue
        found = evaluation_in(document["body"], document["created"])
        if found is not None and found.base == record["base"]["fingerprint"]:
            newest[found.task, found.rows_digest] = found
    return list(newest.values())


def _lines(found: Evaluation) -> Iterator[str]:
    rows = "" if found.rows is None else str(found.rows)
    yield from _measures(found.numbers, _on(found), rows, found.base_perplexity)
    for name, numbers in found.parts.items():
        yield from _measures(numbers, f"· {code(name) or 'the rest'}", "", None)


def _measures(
    numbers: Mapping[str, Number], on: str, rows: str, base_perplexity: float | None
) -> Iterator[str]:
    for name, number in numbers.items():
        versus = number.versus_base
        base = base_perplexity if name == PERPLEXITY else None
        if name != PERPLEXITY and versus is not None:
            base = number.value - versus.estimate
        beside = difference_in_words(name, versus) if versus is not None else ""
        shown = "" if base is None else said(base)
        yield f"| {on} | {rows} | {code(name)} | {shown} | {said(number.value)} | {beside} |"


def _on(found: Evaluation) -> str:
    if found.task is not None:
        return f"{'suite' if found.suite is not None else 'task'} {code(found.task)}"
    return f"data {code(short(found.data or '?'))}"


def _depends(found: Evaluation) -> str:
    """Data, settings and versions in a line of a list."""
    told = [
        f"{key} {_value(value)}"
        for key, value in found.settings.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    versions = [f"{key} {_value(value)}" for key, value in found.versions.items()]
    parts = [code(", ".join(one)) for one in (told, versions) if one]
    rows = f"rows {code(found.rows_digest)}" if found.rows_digest else "rows unknown"
    return f"- {_on(found)}, {rows}: " + "; ".join(parts)


def _value(value: object) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else said(value)
    )


def _dtype(found: Evaluation) -> str:
    return said(found.settings.get("dtype") or "an unknown dtype")
