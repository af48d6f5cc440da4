"""Methods that look at the deltas element by element: trim, drop, elect."""

from __future__ import annotations

from adapterhub.merge.builtin.parameters import (
    ELECTION,
    LAMBDA,
    RESCALE,
    TIE,
    density,
    trim_scope,
)
from adapterhub.merge.specs import MethodSpec, ParameterSpec

_KERNELS = "adapterhub.merge.methods.elementwise"
_DARE = "Yu et al. 2024, Language Models are Super Mario (DARE), arXiv:2311.03099"
_DELLA = "Deep et al. 2024, DELLA-Merging, arXiv:2406.11617"
_BREADCRUMBS = "Davari and Belilovsky 2024, Model Breadcrumbs, arXiv:2312.06795"
_EPSILON = ParameterSpec(
    "epsilon",
    "The smallest value of a row is kept with chance density - epsilon, the largest with density + epsilon.",
    0.15,
    minimum=0,
    maximum=0.5,
)
_GAMMA = ParameterSpec(
    "gamma", "Share of the largest elements that is cut off as outliers.", 0.01, minimum=0, maximum=1, varies=True
)  # fmt: skip

MAGNITUDE_PRUNE = MethodSpec(
    name="magnitude_prune",
    title="Magnitude pruning",
    paper="PEFT, add_weighted_adapter(combination_type='magnitude_prune')",
    good_for="Adapters whose small changes are noise: each one's largest elements, summed.",
    family="elementwise",
    kernel=f"{_KERNELS}:trimmed_sum",
    default_weights="one",
    parameters=(
        density(0.2, "Share of each adapter's elements that is kept."),
        LAMBDA,
        trim_scope("module"),
    ),
    semantics={"peft": {}},
    laws=("gauge", "order", "scaling", "homogeneous", "permutation", "dense"),
)

TIES = MethodSpec(
    name="ties",
    title="Trim, elect sign, disjoint merge",
    paper="Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, arXiv:2306.01708",
    good_for="Adapters whose signs conflict: keeps each one's largest changes and averages only those that agree.",
    family="elementwise",
    kernel=f"{_KERNELS}:ties",
    default_weights="one",
    parameters=(
        density(0.2, "Share of each adapter's elements that is kept."),
        LAMBDA,
        trim_scope("model"),
        *ELECTION,
    ),
    semantics={
        "peft": {"trim_scope": "module", "vote": "unweighted", "tie": "positive"},
        "mergekit": {"trim_scope": "module", "tie": "positive", "divisor": "weights"},
    },
    laws=("gauge", "order", "scaling", "homogeneous", "permutation"),
)

DARE_LINEAR = MethodSpec(
    name="dare_linear",
    title="Drop and rescale, then sum",
    paper=_DARE,
    good_for="Thinning out adapters before they are summed; the mean stays what it was.",
    family="elementwise",
    kernel=f"{_KERNELS}:dropped_sum",
    default_weights="mean",
    parameters=(
        density(0.8, "Chance of each element to be kept; the paper's drop rate is 1 - density."),
        LAMBDA,
        RESCALE,
    ),
    semantics={"peft": {}, "mergekit": {"rescale": "l1"}},
    requires=("seed",),
    laws=("gauge", "scaling", "homogeneous", "dense", "unbiased"),
)

DARE_TIES = MethodSpec(
    name="dare_ties",
    title="Drop and rescale, then TIES",
    paper=_DARE,
    good_for="Many adapters whose signs conflict, thinned out before the election.",
    family="elementwise",
    kernel=f"{_KERNELS}:dropped_ties",
    default_weights="one",
    parameters=(
        density(0.8, "Chance of each element to be kept; the paper's drop rate is 1 - density."),
        ParameterSpec(
            "trim",
            "Share of each adapter's elements that survives the trim after the drop.",
            0.2,
            minimum=0,
            maximum=1,
            above_minimum=True,
            varies=True,
        ),
        LAMBDA,
        trim_scope("model"),
        RESCALE,
        *ELECTION,
    ),
    semantics={
        "peft": {"trim": 1.0, "vote": "unweighted", "tie": "positive"},
        "mergekit": {"trim": 1.0, "rescale": "l1", "tie": "positive", "divisor": "none"},
    },
    requires=("seed",),
    laws=("gauge", "scaling", "homogeneous"),
)

DELLA_LINEAR = MethodSpec(
    name="della_linear",
    title="MagPrune, then sum",
    paper=_DELLA,
    good_for="As DARE, but large elements are more likely to stay.",
    family="elementwise",
    kernel=f"{_KERNELS}:ranked_sum",
    default_weights="mean",
    parameters=(density(0.5, "Mean chance of an element to be kept."), _EPSILON, LAMBDA, RESCALE),
    semantics={"mergekit": {"rescale": "l1"}},
    requires=("seed",),
    laws=("gauge", "scaling", "homogeneous", "dense", "unbiased"),
)

DELLA = MethodSpec(
    name="della",
    title="MagPrune, elect sign, fuse",
    paper=_DELLA,
    good_for="Conflicting adapters, thinned out by magnitude before the election.",
    family="elementwise",
    kernel=f"{_KERNELS}:ranked_ties",
    default_weights="one",
    parameters=(
        density(0.5, "Mean chance of an element to be kept."),
        _EPSILON,
        LAMBDA,
        RESCALE,
        *ELECTION,
    ),
    semantics={"mergekit": {"rescale": "l1", "tie": "positive", "divisor": "weights"}},
    requires=("seed",),
    laws=("gauge", "scaling", "homogeneous"),
)

BREADCRUMBS = MethodSpec(
    name="breadcrumbs",
    title="Model Breadcrumbs",
    paper=_BREADCRUMBS,
    good_for="Many adapters: outliers and small changes are cut off, the middle is summed.",
    family="elementwise",
    kernel=f"{_KERNELS}:band_sum",
    default_weights="one",
    parameters=(
        density(0.14, "Share of each adapter's elements that is kept."),
        _GAMMA,
        LAMBDA,
        trim_scope("module"),
    ),
    semantics={"mergekit": {}},
    laws=("gauge", "order", "scaling", "homogeneous", "permutation"),
)

BREADCRUMBS_TIES = MethodSpec(
    name="breadcrumbs_ties",
    title="Model Breadcrumbs, then elect sign",
    paper=_BREADCRUMBS,
    good_for="As breadcrumbs, with an election where signs conflict.",
    family="elementwise",
    kernel=f"{_KERNELS}:band_ties",
    default_weights="one",
    parameters=(
        density(0.14, "Share of each adapter's elements that is kept."),
        _GAMMA,
        LAMBDA,
        trim_scope("module"),
        *ELECTION,
    ),
    semantics={"mergekit": {"tie": "positive", "divisor": "none"}},
    laws=("gauge", "order", "scaling", "homogeneous", "permutation"),
)

SCE = MethodSpec(
    name="sce",
    title="Select, calculate, erase",
    paper="Wan et al. 2024, FuseChat, arXiv:2408.07990",
    good_for="Adapters of different strength: where they differ most, weighted by how much each changes there.",
    family="elementwise",
    kernel=f"{_KERNELS}:sce",
    default_weights="none",
    parameters=(
        ParameterSpec(
            "select_topk",
            "Share of the elements of largest variance that is kept, among those that vary.",
            0.1,
            minimum=0,
            maximum=1,
            above_minimum=True,
            varies=True,
        ),
        ParameterSpec(
            "equal_below",
            "Where the adapters' mean squares add up to less than this, all of them count the same.",
            0.0,
            minimum=0,
        ),
        TIE,
    ),
    semantics={"mergekit": {"tie": "positive", "equal_below": 1e-6}},
    min_inputs=2,
    laws=("gauge", "order", "homogeneous", "permutation"),
)

SPECS = (
    MAGNITUDE_PRUNE,
    TIES,
    DARE_LINEAR,
    DARE_TIES,
    DELLA_LINEAR,
    DELLA,
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    SCE,
)
