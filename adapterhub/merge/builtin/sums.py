"""Methods whose result is a sum of the parents' deltas with given weights."""

from __future__ import annotations

from adapterhub.merge.builtin.parameters import LAMBDA, T
from adapterhub.merge.specs import MethodSpec, ParameterSpec

_KERNELS = "adapterhub.merge.methods.sums"

LINEAR = MethodSpec(
    name="linear",
    title="Weighted sum",
    paper="Wortsman et al. 2022, Model soups, arXiv:2203.05482",
    good_for="Adapters that hardly interfere; interpolation; a negative weight takes a behaviour out.",
    family="sum",
    kernel=f"{_KERNELS}:linear",
    default_weights="mean",
    parameters=(
        ParameterSpec("normalize", "Divide the weights by their sum.", False, kind="flag"),
    ),
    semantics={"peft": {}, "mergekit": {"normalize": True}},
    laws=("gauge", "single", "same", "order", "scaling", "homogeneous", "permutation"),
)

TASK_ARITHMETIC = MethodSpec(
    name="task_arithmetic",
    title="Task arithmetic",
    paper="Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv:2212.04089",
    good_for="Several skills at full strength; lambda turns all of them up or down together.",
    family="sum",
    kernel=f"{_KERNELS}:task_arithmetic",
    default_weights="one",
    parameters=(LAMBDA,),
    semantics={"mergekit": {}},
    laws=("gauge", "single", "order", "scaling", "homogeneous", "permutation"),
)

NEGATE = MethodSpec(
    name="negate",
    title="Negation",
    paper="Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv:2212.04089",
    good_for="Taking a behaviour out of a model: the adapter that undoes this one.",
    family="sum",
    kernel=f"{_KERNELS}:negate",
    default_weights="none",
    parameters=(LAMBDA,),
    max_inputs=1,
    laws=("gauge", "order", "homogeneous", "permutation"),
)

LERP = MethodSpec(
    name="lerp",
    title="Linear interpolation",
    paper="Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903",
    good_for="The straight line from one adapter to another.",
    family="sum",
    kernel=f"{_KERNELS}:lerp",
    default_weights="none",
    parameters=(T,),
    min_inputs=2,
    max_inputs=2,
    laws=("gauge", "same", "order", "homogeneous", "permutation"),
)

CAT = MethodSpec(
    name="cat",
    title="Concatenated factors",
    paper="PEFT, add_weighted_adapter(combination_type='cat')",
    good_for="The exact weighted sum whatever its rank: the ranks add up, nothing is cut off.",
    family="sum",
    kernel=f"{_KERNELS}:linear",
    default_weights="one",
    semantics={"peft": {}},
    default_rank="full",
    laws=("gauge", "single", "order", "scaling", "homogeneous", "permutation"),
)

SPECS = (LINEAR, TASK_ARITHMETIC, NEGATE, LERP, CAT)
