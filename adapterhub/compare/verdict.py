"""What the numbers mean for a merge, in words with the numbers they rest on, and the merge to try first.

The rules, on deltas: a negative cosine takes away what the other adds, so signs have to be elected (TIES); a positive one
is counted twice by a sum, so a sum wants smaller weights; without either, a sum keeps every adapter whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from adapterhub.compare.places import in_words
from adapterhub.compare.similarity import Comparison, Module, Pair, Selection
from adapterhub.words import counted, some

Kind = Literal[
    "other-base", "left-out", "silent", "disjoint", "orthogonal", "conflict", "slight-conflict",
    "opposite", "aligned", "same", "subspace", "imbalance",
]  # fmt: skip

ORTHOGONAL = 0.05
"""Cosines below this are harmless: a sum keeps at least 95% of each of two equally strong adapters."""

SAME = 0.95
"""Cosines above this: one adapter is nearly a multiple of the other."""

MATERIAL = 0.01
"""What the opposed modules must take off the cosine of the whole adapters to be worth another method than a sum."""

IMBALANCE = 4.0
"""Norms further apart than this are worth a word."""

OVERLAP = 0.25
"""Shares of energy inside the other's leading subspaces above this are worth a word where the cosine is small."""

_CHANCE = 4.0
"""Standard deviations of the cosine of unrelated deltas, which is 1/√(out·in), within which a cosine says nothing."""


@dataclass(frozen=True)
class Finding:
    """One sentence. `pair` is None where it is about all adapters; `modules` are those it speaks of."""

    kind: Kind
    text: str
    pair: Pair | None = None
    modules: tuple[str, ...] = ()
    numbers: Mapping[str, float | None] | None = None


@dataclass(frozen=True)
class Advice:
    """The merge to try first."""

    names: tuple[str, ...]
    method: str
    weights: tuple[float, ...] = ()
    """One an adapter; none for the method's own."""

    @property
    def command(self) -> tuple[str, ...]:
        """The words that do it."""
        weights = ",".join(f"{weight:g}" for weight in self.weights)
        given = ("--weights", weights) if weights else ()
        return ("adapterhub", "merge", *self.names, "--method", self.method, *given)


@dataclass(frozen=True)
class Verdict:
    """The findings, and the merge to try first, none where no merge is to be recommended."""

    findings: tuple[Finding, ...]
    advice: Advice | None
    reason: str
    """Why this merge, or why none."""

    @property
    def text(self) -> str:
        return " ".join(finding.text for finding in self.findings)

    @property
    def command(self) -> tuple[str, ...]:
        """The words of the merge; empty where there is none."""
        return self.advice.command if self.advice else ()

    @property
    def line(self) -> str | None:
        """The command as it is typed."""
        return " ".join(map(quote, self.command)) or None


def judge(comparison: Comparison, names: Sequence[str], *, mismatch: str = "") -> Verdict:
    """The verdict on adapters called `names`; `mismatch` says how their bases are known to differ, if they are."""
    findings = _about_each(comparison, mismatch)
    by_pair = {pair: _about_pair(comparison, pair) for pair in comparison.pairs}
    findings += _told(comparison, by_pair)
    findings += _imbalance(comparison)
    kinds: set[Kind] = {finding.kind for finding in findings}
    if kinds & {"other-base", "left-out", "silent"}:
        return Verdict(tuple(findings), None, _why_none(kinds))
    method, weights, reason = _merge(comparison, kinds)
    rounded = tuple(float(f"{weight:.2g}") for weight in weights)
    return Verdict(tuple(findings), Advice(tuple(names), method, rounded), reason)


# About one adapter, or all


def _about_each(comparison: Comparison, mismatch: str) -> list[Finding]:
    findings = []
    if mismatch:
        findings.append(
            Finding("other-base", f"They belong to different base models ({mismatch}).")
        )
    for place, (label, beyond) in enumerate(
        zip(comparison.labels, comparison.left_out, strict=True)
    ):
        if beyond:
            text = f"Only the low-rank part of {label} is compared; left out: {'; '.join(beyond)}."
            findings.append(Finding("left-out", text))
        if comparison.whole.norm(place) == 0:
            text = f"{label} changes nothing: a merge with it only scales the rest."
            findings.append(Finding("silent", text, numbers={"norm": 0.0}))
    return findings


def _imbalance(comparison: Comparison) -> list[Finding]:
    norms = [(comparison.whole.norm(place), place) for place in range(len(comparison.labels))]
    (low, weak), (high, strong) = min(norms), max(norms)
    if low == 0 or high < IMBALANCE * low:
        return []
    pair = (min(weak, strong), max(weak, strong))
    kept = _kept(comparison.whole, pair)[pair.index(weak)]
    stronger, weaker = comparison.labels[strong], comparison.labels[weak]
    shows = f"{weaker} hardly shows"
    if kept < 1 - ORTHOGONAL:
        left = f"only {kept:.0%}" if kept > 0 else "nothing"
        shows = f"{left} of {weaker} is left in their sum, along its own direction"
    text = (
        f"{stronger} is {high / low:.0f} times as strong as {weaker} (norms {high:.3g} and {low:.3g}), so at equal weights"
        f" {shows}."
    )
    numbers = {"ratio": high / low, "strong": high, "weak": low, "kept": kept}
    return [Finding("imbalance", text, pair, numbers=numbers)]


# About two adapters


def _about_pair(comparison: Comparison, pair: Pair) -> list[Finding]:
    whole, shared = comparison.whole, comparison.whole.shared(pair)
    cosine = whole.cosine(pair)
    if cosine is None:
        return []
    if not shared.modules:
        first, second = (_where(comparison, place) for place in pair)
        text = f"they change different modules ({first}; {second}), so they can't conflict: linear is safe, weights 1,1 keep both whole."
        return [Finding("disjoint", text, pair, numbers={"cosine": 0.0})]
    numbers = {"cosine": cosine, "norm_ratio": whole.norm_ratio(pair)}
    if cosine > SAME:
        text = f"the same direction (cosine {_signed(cosine)}): one of them is enough, or an average; a sum would count it twice."
        return [Finding("same", text, pair, numbers=numbers)]
    if cosine < -SAME:
        text = f"opposite directions (cosine {_signed(cosine)}): one takes back what the other adds, and any sum nearly cancels."
        return [Finding("opposite", text, pair, numbers=numbers)]
    findings = [*_opposed(shared, whole, pair), *_aligned(shared, whole, pair)]
    if not findings or all(finding.kind == "slight-conflict" for finding in findings):
        cosines = [value for m in shared.modules if (value := _cosine(m, pair)) is not None]
        text = (
            f"nearly orthogonal (cosine {_signed(cosine)}; {_signed(min(cosines))} to {_signed(max(cosines))} in"
            f" {counted(len(cosines), 'shared module')}): linear is safe, weights 1,1 keep both whole."
        )
        numbers |= {"lowest": min(cosines), "highest": max(cosines)}
        findings.insert(0, Finding("orthogonal", text, pair, numbers=numbers))
    overlap = shared.overlap(pair)
    if abs(cosine) < ORTHOGONAL and overlap is not None and overlap > OVERLAP:
        text = (
            f"they act in the same subspaces (overlap {overlap:.2f}) although their cosine is small: `adapterhub eval` shows"
            " whether they get along."
        )
        findings.append(Finding("subspace", text, pair, numbers={"overlap": overlap}))
    return findings


def _opposed(shared: Selection, whole: Selection, pair: Pair) -> list[Finding]:
    modules = [m for m in shared.modules if (_cosine(m, pair) or 0) < -_threshold(m)]
    if not modules:
        return []
    part = Selection(modules)
    worst = min(modules, key=lambda module: _cosine(module, pair) or 0)
    cosine, lowest = part.cosine(pair) or 0.0, _cosine(worst, pair) or 0.0
    rate, top = part.conflict(pair), part.top_conflict(pair)
    first, second = _kept(whole, pair)
    taken = -part.inner(pair) / (whole.norm(pair[0]) * whole.norm(pair[1]))
    where = in_words([m.place for m in modules], [m.place for m in shared.modules])
    signs = "" if rate is None else f", {rate:.0%} of signs opposed"
    signs += "" if top is None else f" ({top:.0%} of what both keep in a trim)"
    seen = f"cosine {_signed(cosine)}, lowest {_signed(lowest)} in {worst.name}{signs}"
    numbers = {
        "cosine": cosine,
        "lowest": lowest,
        "conflict": rate,
        "top_conflict": top,
        "taken": taken,
        "kept_first": first,
        "kept_second": second,
    }
    names = tuple(module.name for module in modules)
    if taken < MATERIAL:
        text = f"slightly opposed in {where} ({seen}), too little of them to matter."
        return [Finding("slight-conflict", text, pair, names, numbers)]
    text = f"conflict in {where} ({seen}): prefer TIES, or a lower weight."
    return [Finding("conflict", text, pair, names, numbers)]


def _aligned(shared: Selection, whole: Selection, pair: Pair) -> list[Finding]:
    modules = [m for m in shared.modules if (_cosine(m, pair) or 0) > _threshold(m)]
    part = Selection(modules)
    added = part.inner(pair) / (whole.norm(pair[0]) * whole.norm(pair[1]))
    if added < MATERIAL:
        return []
    cosine = part.cosine(pair) or 0.0
    where = in_words([m.place for m in modules], [m.place for m in shared.modules])
    overall = f" there, {_signed(whole.cosine(pair) or 0.0)} overall"
    text = (
        f"shared directions in {where} (cosine {_signed(cosine)}{overall if len(modules) < len(whole.modules) else ''}):"
        " weights 1,1 would count what they share twice."
    )
    numbers = {"cosine": cosine, "added": added}
    return [Finding("aligned", text, pair, tuple(m.name for m in modules), numbers)]


def _told(comparison: Comparison, by_pair: Mapping[Pair, list[Finding]]) -> list[Finding]:
    """The pairs' findings as sentences: with the names before them, and harmless pairs together, where there are several."""
    if len(by_pair) == 1:
        return [
            _with_text(f, f.text[:1].upper() + f.text[1:]) for f in next(iter(by_pair.values()))
        ]
    told, harmless = [], []
    for pair, findings in by_pair.items():
        if all(
            finding.kind in ("orthogonal", "disjoint", "slight-conflict") for finding in findings
        ):
            harmless += [f for f in findings if f.kind != "slight-conflict"]
        else:
            first, second = (comparison.labels[place] for place in pair)
            told += [
                _with_text(f, f"{first} and {second}: {f.text}")
                for f in findings
                if f.kind != "orthogonal"
            ]
    if harmless:
        cosines = [(finding.numbers or {})["cosine"] or 0.0 for finding in harmless]
        pairs = [
            f"{comparison.labels[one]} and {comparison.labels[other]}"
            for one, other in (f.pair for f in harmless if f.pair)
        ]
        who = "All pairs are" if len(harmless) == len(by_pair) else f"{some(pairs)}:"
        text = f"{who} nearly orthogonal (cosines {_signed(min(cosines))} to {_signed(max(cosines))}): linear is safe for them."
        numbers = {"lowest": min(cosines), "highest": max(cosines)}
        told.append(Finding("orthogonal", text, numbers=numbers))
    return told


# The merge to try first


def _merge(comparison: Comparison, kinds: set[Kind]) -> tuple[str, list[float], str]:
    """(the method, the weights or none, why)."""
    whole, count = comparison.whole, len(comparison.labels)
    if kinds & {"conflict", "opposite"}:
        if "imbalance" in kinds:
            norms = [whole.norm(place) for place in range(count)]
            weights = [math.sqrt(min(norms) / norm) for norm in norms]
            why = "TIES elects a sign where they conflict; the weights bring the norms halfway together, else the strongest wins every vote"
            return "ties", weights, why
        return "ties", [], "TIES elects a sign where they conflict"
    cosines = [max(0.0, whole.cosine(pair) or 0.0) for pair in comparison.pairs]
    mean = sum(cosines) / len(cosines)
    if mean > SAME:
        return "linear", [], "an average keeps what they share"
    if mean > ORTHOGONAL:
        weight = 1 / (1 + (count - 1) * mean)
        why = "with these weights what they share is counted about once"
        return "linear", [weight] * count, why
    return "linear", [1.0] * count, "a plain sum keeps every one of them whole"


def _why_none(kinds: set[Kind]) -> str:
    if "other-base" in kinds:
        return "adapters of different base models can't be merged"
    if "left-out" in kinds:
        return "what was left out here needs a choice: merge --base, --saved-from or --dora approximate"
    return "an adapter that changes nothing adds nothing"


# Numbers and words


def _cosine(module: Module, pair: Pair) -> float | None:
    return Selection([module]).cosine(pair)


def _threshold(module: Module) -> float:
    return max(ORTHOGONAL, _CHANCE / math.sqrt(math.prod(module.shape)))


def _kept(modules: Selection, pair: Pair) -> tuple[float, float]:
    """How much of each one its sum with the other holds along its own direction: <ΔW₁ + ΔW₂, ΔWᵢ>/‖ΔWᵢ‖²."""
    inner = modules.inner(pair)
    first, second = (1 + inner / modules.norm(place) ** 2 for place in pair)
    return first, second


def _where(comparison: Comparison, adapter: int) -> str:
    places = [m.place for m in comparison.modules if m.strengths[adapter].norm > 0]
    return f"{comparison.labels[adapter]} {in_words(places, [m.place for m in comparison.modules])}"


def _with_text(finding: Finding, text: str) -> Finding:
    return Finding(finding.kind, text, finding.pair, finding.modules, finding.numbers)


def _signed(cosine: float) -> str:
    """Two digits behind the point, more where those are zeros."""
    return f"{cosine:.2f}" if abs(cosine) >= 0.01 else f"{cosine:.1g}"
