"""The named defaults of every method, in a table of the tests' own: `paper`, `peft`, `mergekit`.

A method is in another project's column where that project has a function of its name.
"""

from __future__ import annotations

from typing import Any

from tests.oracles.parents import Parameters

_ELECTION: dict[str, float | str | bool] = {"vote": "weighted", "tie": "none", "divisor": "count"}

PAPER: dict[str, dict[str, float | str | bool]] = {
    "linear": {"normalize": False},
    "task_arithmetic": {"lambda": 1.0},
    "negate": {"lambda": 1.0},
    "lerp": {"t": 0.5},
    "cat": {},
    "slerp": {"t": 0.5, "scope": "module", "dot_threshold": 0.999999},
    "nuslerp": {"scope": "module", "dot_threshold": 0.999999},
    "multislerp": {"normalize": True, "scope": "module"},
    "karcher": {"max_iterations": 200, "tolerance": 1e-10, "scope": "module"},
    "model_stock": {"scope": "module"},
    "magnitude_prune": {"density": 0.2, "lambda": 1.0, "trim_scope": "module"},
    "ties": {"density": 0.2, "lambda": 1.0, "trim_scope": "model", **_ELECTION},
    "dare_linear": {"density": 0.8, "lambda": 1.0, "rescale": "inverse"},
    "dare_ties": {
        "density": 0.8, "trim": 0.2, "lambda": 1.0, "trim_scope": "model", "rescale": "inverse", **_ELECTION
    },
    "della_linear": {"density": 0.5, "epsilon": 0.15, "lambda": 1.0, "rescale": "inverse"},
    "della": {"density": 0.5, "epsilon": 0.15, "lambda": 1.0, "rescale": "inverse", **_ELECTION},
    "breadcrumbs": {"density": 0.14, "gamma": 0.01, "lambda": 1.0, "trim_scope": "module"},
    "breadcrumbs_ties": {
        "density": 0.14, "gamma": 0.01, "lambda": 1.0, "trim_scope": "module", **_ELECTION
    },
    "sce": {"select_topk": 0.1, "equal_below": 0.0, "tie": "none"},
}  # fmt: skip

OTHERS: dict[str, dict[str, dict[str, float | str | bool]]] = {
    "peft": {
        "linear": {},
        "cat": {},
        "magnitude_prune": {},
        "ties": {"trim_scope": "module", "vote": "unweighted", "tie": "positive"},
        "dare_linear": {},
        "dare_ties": {"trim": 1.0, "vote": "unweighted", "tie": "positive"},
    },
    "mergekit": {
        "linear": {"normalize": True},
        "task_arithmetic": {},
        "slerp": {"dot_threshold": 0.9995},
        "nuslerp": {"dot_threshold": 1.0},
        "multislerp": {},
        "karcher": {"max_iterations": 10, "tolerance": 1e-5},
        "model_stock": {},
        "ties": {"trim_scope": "module", "tie": "positive", "divisor": "weights"},
        "dare_linear": {"rescale": "l1"},
        "dare_ties": {
            "trim": 1.0, "rescale": "l1", "tie": "positive", "divisor": "none"
        },
        "della_linear": {"rescale": "l1"},
        "della": {"rescale": "l1", "tie": "positive", "divisor": "weights"},
        "breadcrumbs": {},
        "breadcrumbs_ties": {"tie": "positive", "divisor": "none"},
        "sce": {"equal_below": 1e-6, "tie": "positive"},
    },
}  # fmt: skip

_MEAN = ("linear", "nuslerp", "multislerp", "karcher", "dare_linear", "della_linear")


def resolved(method: str, semantics: str = "paper", **given: Any) -> Parameters:
    """All parameters of `method`: those given, the rest from `semantics`. `lambda` is given as **{"lambda": 2}."""
    assert given.keys() <= PAPER[method].keys(), "a parameter that the method hasn't got"
    others = {} if semantics == "paper" else OTHERS[semantics][method]
    return {**PAPER[method], **others, **given}


def weights_of(method: str, count: int) -> list[float]:
    """The weights that a merge of `count` parents has by default."""
    return [1 / count if method in _MEAN else 1.0] * count
