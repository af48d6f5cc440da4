"""Attestations for `show`: evaluations with their numbers, the rest in a line each.

`show --json` and `show --attestations` have them whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub import evaluated
from adapterhub.manifest import Attestation
from adapterhub.tolerant import inner, mapping
from adapterhub.words import short

_MOST = 8
"""Evaluations that are told; of the older ones how many there are."""


def for_people(attestations: Sequence[Attestation]) -> dict[str, list[dict[str, Any]]]:
    """Evaluations, the newest first, and everything else that is attested, as `show` prints both."""
    found = [(item, evaluated.evaluation_of(item)) for item in attestations]
    evaluations = [one for _, one in reversed(found) if one is not None]
    told: list[dict[str, Any]] = [
        {
            "created": one.created[:19],
            "on": one.place,
            "numbers": dict(evaluated.in_words(one)),
        }
        for one in evaluations[:_MOST]
    ]
    if len(evaluations) > _MOST:
        told.append({"older": f"{len(evaluations) - _MOST} older ones: --attestations"})
    rest = [
        {"type": item.type, "created": item.created[:19], "said": in_a_line(item)}
        for item, one in found
        if one is None
    ]
    return {**({"evaluations": told} if told else {}), "attestations": rest}


def in_a_line(attestation: Attestation) -> str:
    """What one attestation says, as a sentence without its type and time."""
    body = attestation.body
    match attestation.type, body.get("event"):
        case "provenance", "merged":
            return _merged(body)
        case "provenance", "trained":
            return _trained(body)
        case "provenance", _:
            claimed = body.get("claimed_base")
            return f"{body.get('event', 'recorded')}{f'; its author names the base {claimed}' if claimed else ''}"
        case "base", _:
            return f"{short(str(body.get('fingerprint')))} {body.get('repo') or ''} ({body.get('how', 'recorded')})"
        case "eval", "exported":
            return _exported(body)
        case "eval", evaluated.PAIR:
            return evaluated.pair_in_words(body)
        case "note", "gate":
            return _ungated(body)
        case "template", _:
            return f"chat template {short(str(body.get('digest')))}"
    return ", ".join(f"{key} {value}" for key, value in body.items())


def _merged(body: Mapping[str, Any]) -> str:
    recipe, report = inner(body, "recipe"), inner(body, "report")
    known = body.get("parents")
    parents = [mapping(one) for one in known] if isinstance(known, list) else []
    names = {one.get("digest"): str(one.get("name")) for one in parents}
    inputs, weights, steps = (recipe.get(key) for key in ("parents", "weights", "steps"))
    if isinstance(steps, list):
        told, how = list(names.values()), f" in {len(steps)} steps"
    else:
        digests = inputs if isinstance(inputs, list) else []
        told, how = [names.get(one, "?") for one in map(str, digests)], ""
        if isinstance(weights, list) and weights:
            told = [f"{n} ({_weight(w)})" for n, w in zip(told, weights, strict=False)]
    parameters = "".join(f", {key} {value}" for key, value in inner(recipe, "parameters").items())
    return (
        f"{recipe.get('method')}{how} of {', '.join(told)}{parameters}; rank {report.get('rank')},"
        f" energy kept {report.get('energy_kept')}, error {report.get('error')}"
    )


def _weight(value: object) -> str:
    return "by module" if isinstance(value, list) else _number(value)


def _trained(body: Mapping[str, Any]) -> str:
    recipe, data = inner(body, "recipe"), inner(body, "data")
    held_out = inner(inner(body, "metrics"), "held_out")
    how = [recipe.get("method"), recipe.get("kind"), recipe.get("objective")]
    told = [str(word) for word in how if word not in (None, "lora", "sft")] or ["lora"]
    kept, steps = inner(body, "kept").get("step"), body.get("steps")
    at = f"step {kept} of {steps}" if kept not in (None, steps) else f"{steps} steps"
    what = "pairs" if recipe.get("objective") == "dpo" else "rows"
    text = f"{', '.join(told)}, {at} on {data.get('train_rows')} {what} ({short(str(data.get('digest')))})"
    start = body.get("parents")
    if isinstance(start, list) and start:
        text += f", from {mapping(start[0]).get('name')}"
    if "chosen" in str(inner(body, "kept").get("why")):
        text += "; a checkpoint that wasn't chosen"
    if held_out:
        what = "accuracy" if "accuracy_after" in held_out else "perplexity"
        text += f"; held-out {what} {_number(held_out.get(f'{what}_before'))} -> {_number(held_out.get(f'{what}_after'))}"
    return text


def _exported(body: Mapping[str, Any]) -> str:
    result, base = inner(body, "result"), inner(body, "base")
    loss, share = (
        inner(result, "bake_loss").get("total"),
        inner(result, "logits").get("share_lost"),
    )
    of = base.get("repo") or short(str(base.get("fingerprint")))
    dtype = inner(result, "weights").get("dtype")
    told = f"exported into {of}: rounding to {dtype} adds noise of {_percent(loss)} of the delta's size"
    return told if share is None else f"{told}, {_percent(share)} of its effect on the logits"


def _percent(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else "an unknown part"


def _ungated(body: Mapping[str, Any]) -> str:
    """`support/tone:prod given without its gate; not met: forgetting: ... (never evaluated on that)`."""
    told = body.get("without_gates")
    findings = [mapping(one) for one in told] if isinstance(told, list) else []
    unmet = [f"{one.get('demand')} ({one.get('found')})" for one in findings if not one.get("held")]
    return f"{body.get('name')} given without its gate; not met: {'; '.join(unmet)}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
