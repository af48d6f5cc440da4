"""Parameters that several methods share: one word, one meaning."""

from __future__ import annotations

from adapterhub.merge.specs import ParameterSpec

LAMBDA = ParameterSpec("lambda", "Factor on the merged delta.", 1.0, varies=True)
T = ParameterSpec(
    "t", "Where between the two: 0 is the first, 1 the second.", 0.5, minimum=0, maximum=1, varies=True
)  # fmt: skip
SCOPE = ParameterSpec(
    "scope",
    "What is one vector: each module by itself, or the whole adapter (model).",
    "module",
    kind="choice",
    choices=("module", "model"),
)


def density(default: float, text: str) -> ParameterSpec:
    """The share of elements kept."""
    return ParameterSpec(
        "density", text, default, minimum=0, maximum=1, above_minimum=True, varies=True
    )


def trim_scope(default: str) -> ParameterSpec:
    """Over which elements the largest are chosen."""
    return ParameterSpec(
        "trim_scope",
        "Where the largest are chosen: in the whole adapter (model) or in each module.",
        default,
        kind="choice",
        choices=("model", "module"),
    )


VOTE = ParameterSpec(
    "vote",
    "Whose sign is elected: the weighted sum's, the plain sum's (unweighted), or the majority's (count).",
    "weighted",
    kind="choice",
    choices=("weighted", "unweighted", "count"),
)
TIE = ParameterSpec(
    "tie",
    "What a vote of exactly zero elects: none or positive.",
    "none",
    kind="choice",
    choices=("none", "positive"),
)
DIVISOR = ParameterSpec(
    "divisor",
    "What the agreeing values' sum is divided by: their count, their weights, or nothing (none).",
    "count",
    kind="choice",
    choices=("count", "weights", "none"),
)
RESCALE = ParameterSpec(
    "rescale",
    "What makes up for dropped values: the inverse of the chance, the l1 norm, or nothing (none).",
    "inverse",
    kind="choice",
    choices=("inverse", "l1", "none"),
)
ELECTION = (VOTE, TIE, DIVISOR)
