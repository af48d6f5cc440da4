"""Methods on the sphere. Their results are sums too: the coefficients come from the Gram matrix of the deltas alone."""

from __future__ import annotations

from adapterhub.merge.builtin.parameters import SCOPE, T
from adapterhub.merge.specs import MethodSpec, ParameterSpec

_KERNELS = "adapterhub.merge.methods.geometric"
_DOT_THRESHOLD = ParameterSpec(
    "dot_threshold",
    "Cosines beyond this (either way) are interpolated on a straight line.",
    0.999999,
    minimum=0,
    maximum=1,
)

SLERP = MethodSpec(
    name="slerp",
    title="Spherical interpolation",
    paper="Shoemake 1985, Animating Rotation with Quaternion Curves, doi:10.1145/325165.325242",
    good_for="Two adapters of different directions: keeps the strength that a straight line between them loses.",
    family="sum",
    kernel=f"{_KERNELS}:slerp",
    default_weights="none",
    parameters=(T, SCOPE, _DOT_THRESHOLD),
    semantics={"mergekit": {"dot_threshold": 0.9995}},
    min_inputs=2,
    max_inputs=2,
    requires=("gram",),
    laws=("gauge", "same", "order", "homogeneous", "permutation"),
)

NUSLERP = MethodSpec(
    name="nuslerp",
    title="Spherical interpolation by weights",
    paper="mergekit, NuSLERP; Shoemake 1985, doi:10.1145/325165.325242",
    good_for="As slerp, with a weight for each adapter in place of t.",
    family="sum",
    kernel=f"{_KERNELS}:nuslerp",
    default_weights="mean",
    parameters=(SCOPE, _DOT_THRESHOLD),
    semantics={"mergekit": {"dot_threshold": 1.0}},
    min_inputs=2,
    max_inputs=2,
    requires=("gram",),
    laws=("gauge", "same", "order", "homogeneous", "permutation"),
)

MULTISLERP = MethodSpec(
    name="multislerp",
    title="Spherical interpolation of many",
    paper="Goddard 2025, multislerp: wow, what a cool idea, goddard.blog",
    good_for="More than two adapters on the sphere, in one step round their mean direction.",
    family="sum",
    kernel=f"{_KERNELS}:multislerp",
    default_weights="mean",
    parameters=(
        ParameterSpec("normalize", "Divide the weights by their sum.", True, kind="flag"),
        SCOPE,
    ),
    semantics={"mergekit": {}},
    requires=("gram",),
    laws=("gauge", "single", "same", "order", "homogeneous", "permutation"),
)

KARCHER = MethodSpec(
    name="karcher",
    title="Karcher mean",
    paper="Karcher 1977, Riemannian center of mass and mollifier smoothing, doi:10.1002/cpa.3160300502",
    good_for="The true mean direction of several adapters, with their mean strength.",
    family="sum",
    kernel=f"{_KERNELS}:karcher",
    default_weights="mean",
    parameters=(
        ParameterSpec(
            "max_iterations", "Steps towards the mean, at most.", 200, kind="integer", minimum=1, maximum=100000
        ),
        ParameterSpec("tolerance", "A step shorter than this ends it, in radians.", 1e-10, minimum=0, maximum=1),
        SCOPE,
    ),
    semantics={"mergekit": {"max_iterations": 10, "tolerance": 1e-5}},
    requires=("gram",),
    laws=("gauge", "single", "same", "order", "homogeneous", "permutation"),
)  # fmt: skip

MODEL_STOCK = MethodSpec(
    name="model_stock",
    title="Model Stock",
    paper="Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522",
    good_for="Several trainings of one task: pulls their mean to the base by how little they agree. Not for different tasks.",
    family="sum",
    kernel=f"{_KERNELS}:model_stock",
    default_weights="none",
    parameters=(SCOPE,),
    semantics={"mergekit": {}},
    min_inputs=2,
    requires=("gram",),
    laws=("gauge", "same", "order", "homogeneous", "permutation"),
)

SPECS = (SLERP, NUSLERP, MULTISLERP, KARCHER, MODEL_STOCK)
