"""A comparison as one document, which is what `--json` prints; and the tables that it shares with the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub.compare.grid import MEASURES, worst_pair
from adapterhub.compare.signs import SAMPLE_ROWS
from adapterhub.compare.similarity import Comparison, Module, Pair, Selection
from adapterhub.compare.verdict import Verdict


def matrices(comparison: Comparison) -> list[tuple[str, list[list[float | None]]]]:
    """The cosines and the sign conflicts of every two adapters, over all modules."""
    size, whole = len(comparison.labels), comparison.whole
    cosines: list[list[float | None]] = [[None] * size for _ in range(size)]
    conflicts: list[list[float | None]] = [[None] * size for _ in range(size)]
    for place in range(size):
        if whole.norm(place) > 0:
            cosines[place][place], conflicts[place][place] = 1.0, 0.0
    for one, other in comparison.pairs:
        cosines[one][other] = cosines[other][one] = whole.cosine((one, other))
        conflicts[one][other] = conflicts[other][one] = whole.conflict((one, other))
    return [("cosine", cosines), ("sign conflict", conflicts)]


def mean_rank(whole: Selection, place: int) -> float | None:
    ranks = [m.strengths[place].effective_rank for m in whole.modules if m.strengths[place].norm]
    return sum(ranks) / len(ranks) if ranks else None


def sample(comparison: Comparison) -> dict[str, int]:
    """How many rows and elements the sign conflicts were counted in."""
    looked, all_ = 0, 0
    for module in comparison.modules:
        for meeting in list(module.pairs.values())[:1]:
            looked += meeting.signs.rows * module.shape[1]
            all_ += meeting.signs.of_rows * module.shape[1]
    return {"rows_a_module": SAMPLE_ROWS, "elements": looked, "of_elements": all_}


def document(comparison: Comparison, verdict: Verdict, digests: Sequence[str]) -> dict[str, Any]:
    whole = comparison.whole
    (_, cosines), (_, conflicts) = matrices(comparison)
    adapters = [
        {
            "name": label,
            "digest": digest,
            "norm": whole.norm(place),
            "effective_rank": mean_rank(whole, place),
            "left_out": list(comparison.left_out[place]),
        }
        for place, (label, digest) in enumerate(zip(comparison.labels, digests, strict=True))
    ]
    return {
        "adapters": adapters,
        "settings": {name: list(values) for name, values in comparison.settings.items()},
        "pairs": [_pair_document(comparison, whole, pair) for pair in comparison.pairs],
        "cosines": cosines,
        "conflicts": conflicts,
        "signs": {"exact": comparison.exact, **sample(comparison)},
        "modules": [_module_document(comparison, module) for module in comparison.modules],
        "verdict": verdict.text,
        "findings": [
            {
                "kind": finding.kind,
                "pair": list(finding.pair) if finding.pair else None,
                "text": finding.text,
                "modules": list(finding.modules),
                "numbers": dict(finding.numbers or {}),
            }
            for finding in verdict.findings
        ],
        "command": verdict.line,
        "reason": verdict.reason,
    }


def _pair_document(comparison: Comparison, part: Selection, pair: Pair) -> dict[str, Any]:
    inside = part.inside(pair)
    return {
        "a": comparison.labels[pair[0]],
        "b": comparison.labels[pair[1]],
        "cosine": part.cosine(pair),
        "inner": part.inner(pair),
        "norm_ratio": part.norm_ratio(pair),
        "conflict": part.conflict(pair),
        "conflict_error": part.conflict_error(pair),
        "top_conflict": part.top_conflict(pair),
        "a_inside_b": inside[0],
        "b_inside_a": inside[1],
        "shared_modules": len(part.shared(pair).modules),
    }


def _module_document(comparison: Comparison, module: Module) -> dict[str, Any]:
    here = Selection([module])
    worst = worst_pair(MEASURES["cosine"], here, comparison.pairs)
    pairs = []
    for pair in comparison.pairs:
        document = _pair_document(comparison, here, pair)
        del document["shared_modules"]
        meeting = module.pairs.get(pair)
        document["angles_out"] = list(meeting.angles.angles_out) if meeting else []
        document["angles_in"] = list(meeting.angles.angles_in) if meeting else []
        document["rows"] = meeting.signs.rows if meeting else 0
        pairs.append(document)
    return {
        "module": module.name,
        "layer": module.place.layer,
        "part": module.place.part,
        "shape": list(module.shape),
        "norms": [strength.norm for strength in module.strengths],
        "ranks": [strength.rank for strength in module.strengths],
        "effective_ranks": [strength.effective_rank for strength in module.strengths],
        "stable_ranks": [strength.stable_rank for strength in module.strengths],
        "leading_ranks": [strength.leading for strength in module.strengths],
        "pairs": pairs,
        "worst_pair": [comparison.labels[place] for place in worst[0]] if worst else None,
    }
