"""What to type so that a gate gets its answer: the evaluations that its demands ask for, one command for all of one task."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from adapterhub.evaluate.measures import MADE
from adapterhub.settings import Demand
from adapterhub.words import short

_USUAL = Demand()
"""What `eval` does by itself, a demand asks for by itself."""


def commands(demands: Sequence[Demand], digest: str, current: str | None) -> list[str]:
    """One command for each task, with the measures that its demands ask for. A data file is known by its digest alone: `FILE`.

    Args:
        digest: of the adapter.
        current: of what the name means now, which has to be in the same table where a demand compares with it.
    """
    tasks: dict[tuple[str, ...], list[Demand]] = {}
    for demand in demands:
        tasks.setdefault(_task(demand), []).append(demand)
    return [_command(task, asked, digest, current) for task, asked in tasks.items()]


def _task(demand: Demand) -> tuple[str, ...]:
    """The options that say on what."""
    if "/" in demand.measure:
        return "--harness", demand.measure.partition("/")[0]
    if demand.suite is not None:
        return "--suite", demand.suite
    told = ["--data", "FILE"]
    if demand.held_out != _USUAL.held_out:
        told += ["--held-out", f"{demand.held_out:g}"]
    if demand.split_seed != _USUAL.split_seed:
        told += ["--split-seed", str(demand.split_seed)]
    if demand.by is not None:
        told += ["--by", demand.by]
    return tuple(told)


def _command(
    task: tuple[str, ...], asked: Sequence[Demand], digest: str, current: str | None
) -> str:
    beside = [current] if current and any(one.than == "current" for one in asked) else []
    words = ["adapterhub", "eval", "base", *(f"@{short(one)}" for one in (digest, *beside)), *task]
    answers = [one for one in asked if one.measure.partition("=")[0] in MADE]
    for measure in dict.fromkeys(one.measure for one in answers):
        words += ["--measure", measure]
    most = max(one.max_new_tokens for one in asked)
    if most != _USUAL.max_new_tokens and (answers or task[0] == "--suite"):
        words += ["--max-new-tokens", str(most)]
    if any(one.measure.partition("=")[0] == "judge" for one in asked):
        words += ["--judge", "URL", "--judge-model", "NAME", "--rubric", "RUBRIC"]
    return shlex.join(words)
