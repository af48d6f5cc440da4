"""What is wrong with serving an adapter through vLLM, told before vLLM is started.

vLLM refuses some adapters half a minute later and with a traceback, and serves others as if they were the plain base.
Every check here names what it found, and what to type where there is something; all problems of all adapters are
reported at once. What doesn't depend on vLLM is `adapterhub.fitting`, which `adapterhub fit` says alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

from adapterhub.base import BaseModel, Comparison, Verdict, counterpart
from adapterhub.chat_template import FILE_NAME, Template, digest_of_template, template_in
from adapterhub.errors import AdapterHubError, FormatError, IncompatibleError, UnsupportedError
from adapterhub.fitting import examine, trained_template
from adapterhub.formats.peft import AdapterFacts
from adapterhub.merge.recipe import SERVABLE_RANKS
from adapterhub.serve.extra import value, values
from adapterhub.serve.lora_layers import NOT_ADAPTABLE, adaptable_ends, chosen
from adapterhub.store import Resolved, Store
from adapterhub.words import short, some

HEADS = frozenset({"classifier", "score"})
"""The only modules vLLM takes whole from an adapter (`modules_to_save`)."""

_NEEDED = ("r", "lora_alpha", "target_modules")
"""Fields of adapter_config.json that PEFT has defaults for and vLLM has not."""
_ENDS = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Problem:
    """One reason why the adapter `who` can't be served. "unfit" ones give way to --allow-mismatch.

    "unsound": it should be served on no base. "unsupported": vLLM can't.
    """

    who: str
    kind: Literal["unfit", "unsound", "unsupported"]
    text: str
    remedy: str = ""
    """The command that makes something servable of it, where there is one."""


@dataclass(frozen=True)
class Size:
    """What of an adapter decides the room it takes."""

    parameters: int
    targets: frozenset[str]


@dataclass(frozen=True)
class Checked:
    """What the checks of one adapter found. `rank` is the one vLLM must be prepared for."""

    rank: int
    verdict: Verdict
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]
    misfits: tuple[str, ...]
    """Why it doesn't fit the base, which --allow-mismatch allows."""
    size: Size
    kind: str
    template: Comparison
    """Whether it was trained with the chat template it will be asked through."""

    @property
    def modules(self) -> str:
        """How many of its modules the base has."""
        return f"{self.verdict.modules_found}/{self.verdict.modules_total}"


def check(
    store: Store, adapter: Resolved, label: str, base: BaseModel, extra: Sequence[str] = ()
) -> Checked:
    """Judges one adapter against `base` and against what vLLM can do with the arguments `extra`, reading every value once."""
    found = examine(store, adapter, base, template=given_template(extra))
    facts, rank = found.facts, found.rank
    unsupported = unsupported_by_vllm(facts)
    if rank > SERVABLE_RANKS[-1]:
        unsupported.append(f"it has rank {rank}; vLLM serves {SERVABLE_RANKS[-1]} at most")
    if base.architecture in NOT_ADAPTABLE:
        unsupported.append(f"its base is a {base.architecture}, on which vLLM takes no adapters")
    unsupported += _ends_not_taken(facts, base)
    remedy = remedy_for(facts, rank, label, base) if unsupported else ""
    problems = [Problem(label, "unsupported", text, remedy) for text in unsupported]
    problems += _left_out(facts, label, values(extra, "--lora-target-modules"))
    problems += [Problem(label, "unsound", text) for text in found.unsound]
    if found.misfits:
        text = f"it doesn't fit the base {base.label}: {'; '.join(found.misfits)}"
        problems.append(Problem(label, "unfit", text))
    remarks = list(found.remarks)
    if found.template == "different" and (brought := brought_template(store, adapter)):
        remarks.append(f"it brings its template; to serve with that:  -- --chat-template {brought}")
    size = Size(facts.parameters, frozenset(facts.targets))
    return Checked(
        rank,
        found.verdict,
        tuple(problems),
        tuple(remarks),
        found.misfits,
        size,
        facts.kind,
        found.template,
    )


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


def remedy_for(facts: AdapterFacts, rank: int, label: str, base: BaseModel) -> str:
    """What to type, where vLLM can't serve an adapter and something can be made of it; empty where nothing can.

    `export` honours every kind of LoRA exactly, in a model of its own, if the base has a place for each part. A plain LoRA
    comes of a DoRA by rounding, of a too large rank by cutting, and of an odd configuration by writing it anew.
    """
    whole = (*facts.saved, *facts.biases)
    if not facts.modules or facts.beyond_lora(dora=True, whole=True):
        return ""
    if any(counterpart(base, name) is None for name in whole):
        return ""
    name = label.partition("@")[0].partition(":")[0] or "adapter"
    folder = quote(f"./{name.rpartition('/')[2]}-model")
    baked = (
        f"bake it into a model of its own:  adapterhub export {quote(label)} -o {folder}"
        f" && vllm serve {folder}"
    )
    merged = f"adapterhub merge {quote(label)}"
    if whole or base.architecture in NOT_ADAPTABLE or _ends_not_taken(facts, base):
        return baked
    if facts.kind == "dora":
        plain = f"{merged} --dora approximate --name {name}-plain"
        return f"{baked}   or take the nearest plain LoRA:  {plain}"
    if rank > SERVABLE_RANKS[-1]:
        most = SERVABLE_RANKS[-1]
        return f"cut it to a rank:  {merged} --rank {most} --name {name}-r{most}"
    return f"write its configuration anew:  {merged} --rank full --name {name}-plain"


def given_template(extra: Sequence[str]) -> Template | None:
    """The chat template that `--chat-template` names, a file or the text itself; None where vLLM will take the base's.

    Of vLLM's own templates, which it knows by file name, the text isn't known here: they count as none given.
    """
    given = value(extra, "--chat-template")
    if given is None:
        return None
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return given if "{" in given else None


def brought_template(store: Store, adapter: Resolved) -> Path | None:
    """The file of the template an adapter was trained with, where it was stored with it."""
    if adapter.manifest.file(FILE_NAME) is None:
        return None
    folder = store.view(adapter.digest)
    try:
        same = digest_of_template(template_in(folder)) == trained_template(store, adapter.digest)
    except FormatError:
        return None
    return folder / FILE_NAME if same else None


def templates_differ(store: Store, adapters: Sequence[tuple[str, str]]) -> str | None:
    """That adapters (label, digest) were trained with different chat templates; a server has one for all."""
    by_template: dict[str, list[str]] = {}
    for label, digest in adapters:
        template = trained_template(store, digest)
        if template is not None:
            by_template.setdefault(template, []).append(label)
    if len(by_template) < 2:
        return None
    groups = "; ".join(f"{short(template)}: {some(who)}" for template, who in by_template.items())
    return (
        f"the adapters were trained with {len(by_template)} chat templates ({groups}), and a server has one for all:"
        " serve each group by itself, or send prompts that are rendered already to /v1/completions"
    )


def attest_overridden(store: Store, digest: str, base: BaseModel, reasons: Sequence[str]) -> None:
    """Records that an adapter was served on a base it doesn't fit, because somebody said so."""
    if reasons:
        body = {
            "event": "served",
            "base": base.fingerprint,
            "allowed_mismatch": list(reasons),
        }
        store.attest(digest, "note", body)


def refuse(problems: Sequence[Problem], labels: Sequence[str], *, allow_mismatch: bool) -> None:
    """Raises one error with every problem: IncompatibleError if an adapter and the base don't fit, else UnsupportedError."""
    standing = [problem for problem in problems if problem.kind != "unfit" or not allow_mismatch]
    if not standing:
        return
    bad = list(dict.fromkeys(problem.who for problem in standing))
    good = [label for label in labels if label not in bad]
    one = len(bad) == 1
    lines = [
        f"{'' if one else who + ': '}{'; '.join(problem.text for problem in standing if problem.who == who)}."
        for who in bad
    ]
    remedies = dict.fromkeys((p.who, p.remedy) for p in standing if p.remedy)
    hints = [
        remedy[0].upper() + remedy[1:] if one else f"{who}: {remedy}" for who, remedy in remedies
    ]
    error: type[AdapterHubError] = UnsupportedError
    kinds = {problem.kind for problem in standing}
    if kinds & {"unfit", "unsound"}:
        error = IncompatibleError
    if "unfit" in kinds:
        hints.append(
            "Choose the right base with --base, or say --allow-mismatch if you are sure (it will be recorded)."
        )
    elif good:
        hints.append(f"Serve the others:  adapterhub serve {' '.join(map(quote, good))}")
    who = bad[0] if one else f"{len(bad)} of {len(labels)} adapters"
    why = "\n  ".join(lines)
    raise error(
        f"{who} can't be served.",
        why=why[0].upper() + why[1:] if one else why,
        hint="\n  ".join(hints) or f"adapterhub show {quote(bad[0])}",
    )


def _ends_not_taken(facts: AdapterFacts, base: BaseModel) -> list[str]:
    """Embedding and head, where the adapter changes them and vLLM doesn't make them adaptable: it would refuse it."""
    ends = adaptable_ends(base) or (True, True)
    lost = [
        name
        for name, adaptable in zip(_ENDS, ends, strict=True)
        if not adaptable and name in facts.targets
    ]
    if not lost:
        return []
    return [
        f"it changes {' and '.join(lost)}, and vLLM takes no adapter there in a {base.architecture}"
    ]


def _left_out(facts: AdapterFacts, label: str, only: list[str] | None) -> list[Problem]:
    """Layers that --lora-target-modules leaves out: vLLM would drop the adapter's part there, and say nothing."""
    lost = sorted({_last(name) for name in facts.modules if only and not chosen(name, only)})
    if not lost:
        return []
    text = f"it changes {some(lost)}, which --lora-target-modules leaves out"
    remedy = f"name them too:  -- --lora-target-modules {' '.join([*(only or []), *lost])}"
    return [Problem(label, "unsupported", text, remedy)]


def _module(tensor: str) -> str:
    """`model.score.weight` -> `score`: the name vLLM goes by."""
    return _last(tensor.rpartition(".")[0])


def _last(module: str) -> str:
    return module.rpartition(".")[2]
