"""What is said beside a merge: what its numbers alone would let pass, and the command that tells it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from shlex import quote
from typing import Any

from adapterhub.lora.adapter import Adapter
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.schedule import Schedule
from adapterhub.words import word_of

_LOST = 0.5
"""A parent of which the result's directions hold less than this share was cut off, not merged."""


def strangers(adapters: Sequence[Adapter]) -> Iterator[str]:
    """Pairs that change no module in common, which adapters of one model seldom do."""
    for one, other in combinations(adapters, 2):
        if not set(one.modules) & set(other.modules):
            yield f"{one.label} and {other.label} change no module in common: are they for one model?"


def lost_parents(recipe: Recipe, report: Mapping[str, Any], labels: Sequence[str]) -> Iterator[str]:
    """Parents that the rank cuts off, however much of the total energy it keeps: weak ones beside strong ones."""
    for place, share in enumerate(report.get("subspace", ())):
        if share is not None and share < _LOST and _counts(recipe, place):
            yield (
                f"rank {report['rank']} leaves out most of {labels[place]}: its directions hold {share:.1%} of it"
                " (weak beside the others, or spread too wide). A larger --rank keeps more; full keeps all"
            )


def command_of(recipe: Recipe, labels: Mapping[str, str]) -> str:
    """How the merge is called in the journal: its inputs, weights, and the parameters that aren't the defaults."""
    steps = list(recipe.steps)
    if len(steps) > 1:
        methods = ", ".join(step.method for step in steps)
        return f"merge {' '.join(map(quote, labels.values()))} by a recipe of {len(steps)} steps ({methods})"
    step = steps[0]
    words = ["merge", *(quote(labels[str(one.digest)]) for one in step.inputs)]
    words += ["--method", step.method]
    if step.weights:
        words += ["--weights", ",".join(_word(weight) for weight in step.weights)]
    defaults = step.spec.defaults()
    for name, value in step.parameters.items():
        flag = name.replace("_", "-")
        if value == defaults[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", _word(value)]
    return " ".join([*words, "--rank", str(recipe.rank)])


def _counts(recipe: Recipe, place: int) -> bool:
    """Whether the parent was wanted: a weight of 0 leaves it out on purpose."""
    step = recipe.steps[-1]
    if len(recipe.steps) > 1 or not step.weights:
        return True
    digest = recipe.parents[place]
    return any(
        weight != 0
        for one, weight in zip(step.inputs, step.weights, strict=True)
        if one.digest == digest
    )


def _word(value: object) -> str:
    if isinstance(value, Schedule):
        return "by-module"
    return word_of(value)
