"""Every merge method once more, on whole float64 matrices: what the streamed engine is held against.

    ORACLES["ties"](parents, weights, resolved("ties"), seed) -> Deltas
    undecided("ties", parents, weights, resolved("ties"), seed) -> elements that rounding may decide otherwise

Nothing here calls the product. Each function is written from the paper or from the definition in its docstring, the
slow way where that is the clear one; its neighbours test_paper.py, test_peft.py and test_mergekit.py hold them against
what the papers say of their own methods and against the code of PEFT and mergekit.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tests.oracles import elementwise, geometric, sums
from tests.oracles.doubt import undecided
from tests.oracles.masks import stream
from tests.oracles.parents import Oracle, Parameters
from tests.oracles.semantics import resolved, weights_of

ORACLES: Mapping[str, Oracle] = MappingProxyType(
    {
        "linear": sums.linear,
        "task_arithmetic": sums.task_arithmetic,
        "negate": sums.negate,
        "lerp": sums.lerp,
        "cat": sums.cat,
        "slerp": geometric.slerp,
        "nuslerp": geometric.nuslerp,
        "multislerp": geometric.multislerp,
        "karcher": geometric.karcher,
        "model_stock": geometric.model_stock,
        "magnitude_prune": elementwise.magnitude_prune,
        "ties": elementwise.ties,
        "dare_linear": elementwise.dare_linear,
        "dare_ties": elementwise.dare_ties,
        "della_linear": elementwise.della_linear,
        "della": elementwise.della,
        "breadcrumbs": elementwise.breadcrumbs,
        "breadcrumbs_ties": elementwise.breadcrumbs_ties,
        "sce": elementwise.sce,
    }
)
"""Method -> its oracle. Parameters are all given, with the names they have in a recipe."""

__all__ = ["ORACLES", "Oracle", "Parameters", "resolved", "stream", "undecided", "weights_of"]
