"""What is wrong with serving an adapter through vLLM, told before vLLM is started.

vLLM refuses some adapters half a minute later and with a traceback, and serves others as if they were the plain base.
Every check here names what it found; all problems of all adapters are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from adapterhub.base import BaseModel, Verdict
from adapterhub.errors import AdapterHubError, FormatError, IncompatibleError, UnsupportedError
from adapterhub.formats.peft import AdapterFacts, scan_values
from adapterhub.merge.recipe import SERVABLE_RANKS
from adapterhub.store import Resolved, Store
from adapterhub.words import some

HEADS = frozenset({"classifier", "score"})
"""The only modules vLLM takes whole from an adapter (`modules_to_save`)."""

_NEEDED = ("r", "lora_alpha", "target_modules")
"""Fields of adapter_config.json that PEFT has defaults for and vLLM has not."""


@dataclass(frozen=True)
class Problem:
    """One reason why the adapter `who` can't be served. "unfit" ones give way to --allow-mismatch."""

    who: str
    kind: Literal["unfit", "unsupported"]
    text: str


@dataclass(frozen=True)
class Checked:
    """What the checks of one adapter found. `rank` is the one vLLM must be prepared for."""

    rank: int
    verdict: Verdict
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]


def check(store: Store, adapter: Resolved, label: str, base: BaseModel) -> Checked:
    """Judges one adapter against `base` and against what vLLM can do, reading every value once."""
    facts = store.facts(adapter)
    verdict = store.fit(adapter, base)
    rank = served_rank(facts)
    unsupported = unsupported_by_vllm(facts)
    if rank > SERVABLE_RANKS[-1]:
        unsupported.append(f"it has rank {rank}; vLLM serves {SERVABLE_RANKS[-1]} at most")
    effect: list[str] = []
    try:
        with store.tensors(adapter, verify=True) as weights:
            effect = scan_values(facts, weights)[1]
    except FormatError as error:
        unsupported.append(error.what)
    if facts.modules and all(module.scaling == 0 for module in facts.modules.values()):
        effect.append("alpha is 0: this adapter changes nothing")
    problems = [Problem(label, "unsupported", text) for text in unsupported]
    if not verdict.ok:
        text = f"it doesn't fit the base {base.label}: {'; '.join(verdict.reasons)}"
        problems.append(Problem(label, "unfit", text))
    return Checked(
        rank, verdict, tuple(problems), (*effect, *(verdict.reasons if verdict.ok else ()))
    )


def served_rank(facts: AdapterFacts) -> int:
    """The rank vLLM holds against --max-lora-rank: the largest one *declared*, whether or not a module has it."""
    ranks = [module.rank for module in facts.modules.values()]
    return max([facts.config.rank, *facts.config.rank_pattern.values(), *ranks])


def unsupported_by_vllm(facts: AdapterFacts) -> list[str]:
    """What vLLM would refuse or drop, in words; empty for an adapter it can serve."""
    config, document = facts.config, facts.document
    found = [] if facts.kind in ("lora", "dora") else [f"its kind is {facts.kind.upper()}"]
    found += [f"it has {variant}" for variant in config.variants]
    servable = HEADS & set(config.modules_to_save)
    whole = sorted({*config.modules_to_save, *map(_module, facts.saved)} - servable)
    if whole:
        found.append(f"it has whole trained modules ({some(whole)})")
    if facts.biases:
        found.append(f"it has trained biases ({some(facts.biases)})")
    # vLLM goes by the word in the configuration, and null is not "none" to it
    elif document.get("bias", "none") != "none":
        found.append(f"its adapter_config.json says bias: {json.dumps(document['bias'])}")
    if facts.magnitudes and not config.use_dora:
        found.append(f"it has DoRA magnitudes ({some(facts.magnitudes)}) although use_dora is off")
    if facts.other:
        found.append(f"it has tensors that are no low-rank pair ({some(facts.other)})")
    if not facts.modules and not found:
        found.append("it has no low-rank pair")
    missing = [key for key in _NEEDED if document.get(key) is None]
    if missing and not found:
        found.append(f"its adapter_config.json leaves out {', '.join(missing)}, which vLLM needs")
    return found


def refuse(problems: Sequence[Problem], labels: Sequence[str], *, allow_mismatch: bool) -> None:
    """Raises one error with every problem: IncompatibleError if an adapter and the base don't fit, else UnsupportedError."""
    standing = [
        problem for problem in problems if problem.kind == "unsupported" or not allow_mismatch
    ]
    if not standing:
        return
    bad = list(dict.fromkeys(problem.who for problem in standing))
    good = [label for label in labels if label not in bad]
    one = len(bad) == 1
    lines = [
        f"{'' if one else who + ': '}{'; '.join(problem.text for problem in standing if problem.who == who)}."
        for who in bad
    ]
    error: type[AdapterHubError] = UnsupportedError
    hint = (
        f"Serve the others:  adapterhub serve {' '.join(good)}"
        if good
        else f"adapterhub show {bad[0]}"
    )
    if any(problem.kind == "unfit" for problem in standing):
        error = IncompatibleError
        hint = "Choose the right base with --base, or say --allow-mismatch if you are sure (it will be recorded)."
    who = bad[0] if one else f"{len(bad)} of {len(labels)} adapters"
    why = "\n  ".join(lines)
    raise error(f"{who} can't be served.", why=why[0].upper() + why[1:] if one else why, hint=hint)


def _module(tensor: str) -> str:
    """`model.score.weight` -> `score`: the name vLLM goes by."""
    return tensor.rpartition(".")[0].rpartition(".")[2]
