"""Attestations in words: where an adapter came from, how it did, what was noted.

What is written by this project is told in its own way; whatever else a body holds follows field by field, so a newer
version's facts are shown too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from adapterhub.cli.output import clean
from adapterhub.evaluated import PAIR
from adapterhub.manifest import Attestation
from adapterhub.tolerant import finite
from adapterhub.tui.facts import Fact, Names, Section, listed, moment, said, tell
from adapterhub.tui.library.evaluated import Body, evaluated, paired, take
from adapterhub.words import human_count, human_size

"""A copy that a teller takes from; what it leaves is told field by field."""

_EVENTS = {
    "imported": "Imported",
    "trained": "Trained",
    "merged": "Merged",
    "converted": "Converted",
    PAIR: "Compared",
}
_TYPES = {
    "eval": "Evaluated",
    "note": "Note",
    "template": "Chat template",
    "provenance": "Came from",
}
# Told elsewhere in the pane: notes have their own section, the base too.
_ELSEWHERE = ("event", "notes", "claimed_base", "base")
# Of a training's recipe: said of the adapter itself, or of this training.
_SAID_ABOVE = (
    "name",
    "base",
    "rank",
    "alpha",
    "target_modules",
    "use_rslora",
    "seed",
    "steps",
    "epochs",
    "eval",
)
_MOST_CHARACTERS = 120
"""Of a training's settings, in the pane."""
_BOOKKEEPING = ("training", "template", "mask", "engine", "versions", "hardware")


def sections(attestations: Sequence[Attestation], names: Names) -> Iterator[Section]:
    """What is known about an adapter: its origin, then evaluations from the newest, then the rest. Bases are told elsewhere."""
    for kind in ("provenance", "eval"):
        for item in reversed([item for item in attestations if item.type == kind]):
            yield _section(item, names)
    for item in attestations:
        if item.type not in ("provenance", "eval", "base"):
            yield _section(item, names)


def _section(item: Attestation, names: Names) -> Section:
    body = {
        key: value
        for key, value in item.body.items()
        if key not in _ELSEWHERE and value not in (None, [], {})
    }
    told = item.body.get("event")
    event = str(told) if item.type == "provenance" or told == PAIR else ""
    title = _EVENTS.get(event) or _TYPES.get(item.type) or clean(item.type)
    teller = _TELLERS.get(event or item.type)
    facts = list(teller(body, names)) if teller else []
    last = {key: said(body.pop(key), names) for key in _BOOKKEEPING if key in body}
    facts += [*tell(body, names), *(Fact(key, text) for key, text in last.items())]
    return Section(
        f"{title} {moment(item.created)}",
        tuple(facts) or (Fact("", "from a PEFT folder" if event == "imported" else "–"),),
    )


def _merged(body: Body, names: Names) -> Iterator[Fact]:
    recipe, report = take(body, "recipe"), take(body, "report")
    known: dict[object, object] = {
        one.get("digest"): one for one in _list(body, "parents") if isinstance(one, Mapping)
    }
    if "method" in recipe:
        yield Fact("method", said(recipe.pop("method")), "strong")
    yield from listed("parents", _inputs(recipe, known, names) or _all(known, names), {})
    for step in _list(recipe, "steps"):
        if isinstance(step, Mapping):
            told = ", ".join(_inputs(dict(step), known, names))
            yield Fact(
                f"step {clean(step.get('name') or '')}".strip(),
                f"{said(step.get('method'))} of {told}",
            )
    if parameters := take(recipe, "parameters"):
        yield Fact("parameters", said(parameters))
    if isinstance(energy := report.pop("energy_kept", None), int | float):
        error = report.pop("error", None)
        yield Fact(
            "energy kept",
            f"{energy:.2%}" + (f", error {said(error)}" if error is not None else ""),
            "strong",
        )
    rank, wanted = report.pop("rank", None), recipe.pop("rank", None)
    if rank is not None:
        yield Fact(
            "rank", said(rank) + (f" ({said(wanted)})" if wanted not in (None, rank) else "")
        )
    modules = take(report, "modules")
    kept = {
        name: facts.get("energy_kept")
        for name, facts in modules.items()
        if isinstance(facts, Mapping)
    }
    if worst := sorted(
        (share, name) for name, share in kept.items() if isinstance(share, float) and share < 1
    )[:3]:
        yield from listed("least kept", [f"{share:.1%} {clean(name)}" for share, name in worst], {})
    yield from tell({**recipe, **report}, names)


def _inputs(step: Body, known: Mapping[object, object], names: Names) -> list[str]:
    """What a step takes, each with its weight: adapters, or earlier steps. Takes both out of `step`."""
    inputs, weights = _list(step, "parents"), _list(step, "weights")
    return [
        _input(one, known, names) + (f" × {said(weight)}" if weight is not None else "")
        for one, weight in zip_longest(inputs, weights[: len(inputs)])
    ]


def _input(one: object, known: Mapping[object, object], names: Names) -> str:
    if isinstance(one, Mapping) and "step" in one:
        return f"step {said(one['step'])}"
    return _parent(known.get(one, one) if isinstance(one, str) else one, names)


def _all(known: Mapping[object, object], names: Names) -> list[str]:
    return [_parent(one, names) for one in known.values()]


def _parent(parent: object, names: Names) -> str:
    """A parent by the name it has now, else by its digest and the name it had then."""
    digest, then = (
        (parent.get("digest"), parent.get("name"))
        if isinstance(parent, Mapping)
        else (parent, None)
    )
    if now := names.get(str(digest)):
        return now
    return said(digest) + (
        f" (was {clean(then)})" if then and not str(then).startswith("@") else ""
    )


def _trained(body: Body, names: Names) -> Iterator[Fact]:
    recipe, data, metrics = take(body, "recipe"), take(body, "data"), take(body, "metrics")
    held_out = take(metrics, "held_out")
    if "method" in recipe:
        yield Fact("method", said(recipe.pop("method")), "strong")
    on = f"on {said(held_out.pop('rows', None))} held-out rows"
    for measure in ("perplexity", "accuracy"):
        yield from _change(measure, held_out, f"{measure}_before", f"{measure}_after", on)
    yield from _change("loss", metrics, "first_loss", "last_loss", "from first to last step")
    took = [(body.pop(key, None), key) for key in ("steps", "epochs", "seconds")]
    spent = [f"{said(amount)} {unit}" for amount, unit in took if amount is not None]
    if (memory := finite(body.pop("peak_memory", None))) is not None:
        spent.append(human_size(memory))
    if spent:
        yield Fact("took", ", ".join(spent))
    path = take(recipe, "data").get("path")
    told = [said(path) if path else ""]
    if "train_rows" in data:
        told.append(f"{said(data.pop('train_rows'))} of {said(data.pop('rows', None))} rows")
    if isinstance(tokens := data.pop("trained_tokens", None), int):
        told.append(f"{human_count(tokens)} trained tokens")
    if any(told):
        yield Fact("data", ", ".join(part for part in told if part))
    settings = {key: value for key, value in recipe.items() if key not in _SAID_ABOVE}
    for label, table in (
        ("rows", data),
        ("settings", settings),
        ("measured", {**metrics, **held_out}),
    ):
        if table:
            yield Fact(label, _shortly(table, names))


def _shortly(table: Mapping[str, Any], names: Names) -> str:
    """As much of a table as fits a few lines, and how much more there is."""
    told: list[str] = []
    for key, value in table.items():
        told.append(said({key: value}, names))
        if len(told) > 1 and sum(map(len, told)) > _MOST_CHARACTERS:
            told.pop()
            return ", ".join([*told, f"… {len(table) - len(told)} more: adapterhub show"])
    return ", ".join(told)


def _change(label: str, body: Body, before: str, after: str, what: str) -> Iterator[Fact]:
    """`8.01 → 6.21`, where both are known."""
    if body.get(before) is not None and body.get(after) is not None:
        yield Fact(label, f"{said(body.pop(before))} → {said(body.pop(after))} {what}", "strong")


_TELLERS: dict[str, Callable[[Body, Names], Iterator[Fact]]] = {
    "merged": _merged,
    "trained": _trained,
    "eval": evaluated,
    PAIR: paired,
}


def _list(body: Body, key: str) -> list[Any]:
    return list(body.pop(key)) if isinstance(body.get(key), list) else []
