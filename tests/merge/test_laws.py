"""Every method obeys the laws its spec declares, and those alone are tested: a new method is tested by declaring them.

Laws are about ΔW before anything is cut off, on tiny adapters that hypothesis chooses; where rank matters too, a test
says so. Methods that choose among elements (trim, sign) may choose otherwise where rounding decides: such elements are
left out, and a case with more than a few of them is not used.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from adapterhub.errors import UsageError
from adapterhub.lora.rows import Factored, Rows
from adapterhub.merge import specs
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.specs import Law, MethodSpec, methods
from tests.merge.direct import Pairs, cut, dense, engine, factored, merged, pairs
from tests.oracles import undecided
from tests.support.dense import Deltas, change_of_gauge, distance, norm, read_deltas, weighted_sum

if TYPE_CHECKING:
    from tests.merge.conftest import Merger
    from tests.oracles.masks import Mask

LAW = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SPECS = methods()
DECLARED = [(law, name) for name, spec in SPECS.items() for law in spec.laws]
MOST_UNDECIDED = 0.02
"""Share of a case's elements, few as they are, that may hang on rounding."""


@dataclass(frozen=True)
class Case:
    """Adapters and numbers that a law is tried on. `seed` is for what the law itself changes at random."""

    spec: MethodSpec
    parents: Sequence[Pairs]
    weights: Sequence[float] | None
    seed: int = 0
    factor: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def merged(self, **settings: Any) -> Deltas:
        """The merge, or another one where `settings` (of this case) are others."""
        case = replace(self, **settings)
        return merged(
            case.parents, self.spec.name, weights=case.weights, parameters=case.parameters
        )

    def undecided(self, slack: float = 1.0) -> dict[str, Mask]:
        """Elements that rounding may decide otherwise; `slack` where more is rounded than usual."""
        parameters = self.spec.defaults() | dict(self.parameters)
        weights = self.weights or [1.0] * len(self.parents)
        deltas = [dense(parent) for parent in self.parents]
        return undecided(self.spec.name, deltas, weights, parameters, tolerance=slack * 1e-6)

    @property
    def is_decided(self) -> bool:
        """Whether enough is left to say something."""
        masks = self.undecided(slack=10).values()
        return sum(int(m.sum()) for m in masks) <= MOST_UNDECIDED * sum(m.size for m in masks)

    def away(self, found: Deltas, expected: Deltas, factor: float = 1.0, **apart: Any) -> float:
        """As `distance`; relative to a tenth of the largest parent where the result is smaller still.

        What two directions have in common may be next to nothing, and then rounding is large beside it.
        """
        scale = max(map(abs, self.weights or [1.0])) * abs(factor)
        floor = 0.1 * scale * max(norm(dense(parent)) for parent in self.parents)
        size = norm(expected)
        return distance(found, expected, **apart) * (size or 1.0) / max(size, floor)

    def weighted_sum(self) -> Deltas:
        assert self.weights is not None
        return weighted_sum([dense(parent) for parent in self.parents], self.weights)


def gauge(case: Case) -> float:
    others = [regauged(parent, case.seed + place) for place, parent in enumerate(case.parents)]
    apart = case.undecided(slack=10)
    return case.away(case.merged(parents=others), case.merged(), apart=apart) / 10


def single(case: Case) -> float:
    parent = case.parents[0]
    return distance(case.merged(parents=[parent], weights=[1.0]), dense(parent))


def same(case: Case) -> float:
    parent = case.parents[0]
    twins = [parent] * len(case.parents)
    return distance(case.merged(parents=twins, weights=None), dense(parent))


def order(case: Case) -> float:
    forward = list(range(len(case.parents)))
    places = forward[::-1] if case.seed % 2 else [*forward[1:], 0]
    weights = case.weights and [case.weights[i] for i in places]
    found = case.merged(parents=[case.parents[i] for i in places], weights=weights)
    return case.away(found, case.merged(), apart=case.undecided())


def scaling(case: Case) -> float:
    assert case.weights is not None
    found = case.merged(weights=[case.factor * weight for weight in case.weights])
    expected = {module: case.factor * delta for module, delta in case.merged().items()}
    return case.away(found, expected, case.factor, apart=case.undecided())


def homogeneous(case: Case) -> float:
    scaled = [
        {module: Factored(case.factor * pair.b, pair.a) for module, pair in parent.items()}
        for parent in case.parents
    ]
    expected = {module: case.factor * delta for module, delta in case.merged().items()}
    return case.away(case.merged(parents=scaled), expected, case.factor, apart=case.undecided())


def permutation(case: Case) -> float:
    random = np.random.default_rng(case.seed)
    shapes = {module: pair.shape for parent in case.parents for module, pair in parent.items()}
    orders = {
        module: (random.permutation(out), random.permutation(width))
        for module, (out, width) in sorted(shapes.items())
    }
    mixed = [
        {
            module: Factored(pair.b[orders[module][0]], pair.a[:, orders[module][1]])
            for module, pair in parent.items()
        }
        for parent in case.parents
    ]

    def in_order(whole: Mapping[str, Any]) -> dict[str, Any]:
        return {m: values[np.ix_(*orders[m])] for m, values in whole.items()}

    apart = in_order(case.undecided())
    return case.away(case.merged(parents=mixed), in_order(case.merged()), apart=apart)


def at_full_density(case: Case) -> float:
    """And without any other cut that the method has."""
    whole = {"density": 1.0, "epsilon": 0.0, "gamma": 0.0, "trim": 1.0, "select_topk": 1.0}
    chosen = {name: value for name, value in whole.items() if case.spec.parameter(name)}
    found = case.merged(parameters={**case.parameters, **chosen})
    return case.away(found, case.weighted_sum())


LAWS: dict[Law, Callable[[Case], float]] = {
    "gauge": gauge,
    "single": single,
    "same": same,
    "order": order,
    "scaling": scaling,
    "homogeneous": homogeneous,
    "permutation": permutation,
    "dense": at_full_density,
}
"""How far a case is from obeying the law, relative to the result. `unbiased` is a law of many seeds: see below."""


def regauged(parent: Pairs, seed: int) -> Pairs:
    """The same adapter in other factors."""
    factors = {m: (p.b.double().numpy(), p.a.double().numpy(), 1.0) for m, p in parent.items()}
    twin = {
        module: factored(b, a)
        for module, (b, a) in change_of_gauge(factors, seed=seed, condition=20).items()
    }
    assert distance(dense(twin), dense(parent)) < 1e-5
    assert all(not torch.allclose(twin[m].b, parent[m].b) for m in twin)
    return twin


@st.composite
def cases(draw: st.DrawFn, spec: MethodSpec) -> Case:
    """Up to four adapters of any ranks and strengths that share some of their modules."""
    sides = st.integers(3, 12)
    shapes = draw(
        st.dictionaries(
            st.sampled_from(["layers.0.q", "layers.0.v", "layers.1.q", "head"]),
            st.tuples(sides, sides),
            min_size=1,
            max_size=3,
        )
    )
    least, most = spec.min_inputs, spec.max_inputs or 4
    count = draw(st.integers(min(most, max(2, least)), most))
    seed = draw(st.integers(0, 2**31))
    parents = []
    for place in range(count):
        kept = draw(st.sets(st.sampled_from(sorted(shapes)), min_size=1))
        parents.append(
            pairs(
                {module: shapes[module] for module in kept},
                draw(st.integers(1, 6)),
                seed=seed + place,
                scale=draw(st.sampled_from([1e-3, 1.0, 30.0])),
            )
        )
    numbers = st.floats(0.1, 2).map(lambda weight: round(weight, 2))
    if "gram" not in spec.requires:  # directions may cancel
        numbers |= numbers.map(lambda weight: -weight)
    weights = draw(st.lists(numbers, min_size=count, max_size=count))
    scopes = [p for p in spec.parameters if p.name in ("scope", "trim_scope")]
    return Case(
        spec,
        parents,
        None if spec.default_weights == "none" else weights,
        seed=seed,
        factor=draw(st.sampled_from([3.7, -1.0, 0.001])),
        parameters={p.name: draw(st.sampled_from(p.choices)) for p in scopes},
    )


@pytest.mark.parametrize(("law", "name"), [(law, name) for law, name in DECLARED if law in LAWS])
@LAW
@given(data=st.data())
def test_every_declared_law_holds(law: Law, name: str, data: st.DataObject) -> None:
    case = data.draw(cases(SPECS[name]))
    assume(case.is_decided)
    assert LAWS[law](case) < 1e-5


SHARED = {"layers.0.q": (9, 12), "head": (7, 5)}


def example(name: str, **parameters: Any) -> Case:
    """Three adapters (or as many as the method takes) of different strengths on the same modules."""
    spec = SPECS[name]
    count = min(3, spec.max_inputs or 3)
    parents = [pairs(SHARED, rank, rank, scale) for rank, scale in ((4, 1.0), (2, 0.5), (5, 2.0))]
    weights = None if spec.default_weights == "none" else [0.9, 0.4, 1.3][:count]
    return Case(spec, parents[:count], weights, seed=4, factor=3.7, parameters=parameters)


@pytest.mark.parametrize(
    ("law", "case"),
    [
        ("single", example("ties")),
        ("same", example("task_arithmetic")),
        ("order", example("dare_linear")),
        ("order", example("lerp", t=0.2)),
        ("scaling", example("multislerp")),
        ("scaling", example("linear", normalize=True)),
        ("homogeneous", example("sce", equal_below=30.0)),
        ("permutation", example("dare_linear")),
        ("dense", example("ties")),
        ("dense", example("breadcrumbs_ties")),
    ],
)
def test_a_law_that_is_not_declared_can_fail(law: Law, case: Case) -> None:
    assert law not in case.spec.laws or case.parameters, "declared, with these parameters"
    assert LAWS[law](case) > 0.01


def factor_by_factor(job: Any) -> Callable[[str, Sequence[Rows | None]], Rows]:
    """What adding up A and B apart from each other gives."""

    def open_module(module: str, inputs: Sequence[Rows | None]) -> Rows:
        one, other = (rows for rows in inputs if isinstance(rows, Factored))
        return Factored((one.b + other.b) / 2, (one.a + other.a) / 2)

    return open_module


def plug_in(monkeypatch: pytest.MonkeyPatch, spec: MethodSpec, **kernels: Any) -> None:
    """`spec` as the method of another package, with its kernels in a module `their_kernels`."""
    monkeypatch.setitem(sys.modules, "their_kernels", SimpleNamespace(**kernels))
    point = SimpleNamespace(
        load=lambda: spec, dist=SimpleNamespace(name="their-package"), value="x:y"
    )
    monkeypatch.setattr("adapterhub.merge.specs.entry_points", lambda **_: [point])
    specs.methods.cache_clear()


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plug_in` for the length of a test."""
    yield lambda spec, **kernels: plug_in(monkeypatch, spec, **kernels)
    monkeypatch.undo()
    specs.methods.cache_clear()


def test_a_method_that_depends_on_the_gauge_would_be_found(plugged: Any) -> None:
    spec = replace(SPECS["ties"], name="naive", kernel="their_kernels:naive", parameters=())
    plugged(spec, naive=factor_by_factor)
    parents = [pairs(SHARED, 3, seed) for seed in range(2)]
    assert gauge(Case(spec, parents, [1.0, 1.0])) > 0.01


@pytest.mark.parametrize("name", SPECS)
def test_every_declared_law_is_known_and_every_method_is_free_of_gauge(name: str) -> None:
    spec = SPECS[name]
    assert set(spec.laws) <= {*LAWS, "unbiased"} == set(get_args(Law))
    assert "gauge" in spec.laws, "a result that changes under a change of gauge is a bug"


def with_law(law: Law) -> list[str]:
    return [name for name, spec in SPECS.items() if law in spec.laws]


@pytest.mark.parametrize("name", with_law("gauge"))
def test_a_change_of_gauge_leaves_the_cut_result_what_it_was(name: str) -> None:
    case = example(name)
    others = [regauged(parent, 7 + place) for place, parent in enumerate(case.parents)]
    before, after = (
        cut(engine(parents, name, weights=case.weights, rank=3))[0]
        for parents in (case.parents, others)
    )
    assert not any(mask.any() for mask in case.undecided(10).values()), "a flip would spread"
    assert distance(after, before) < 1e-4


@pytest.mark.parametrize("name", with_law("order"))
@pytest.mark.parametrize("last", [-0.5, -1.0])
def test_no_order_matters_where_parents_cancel_nearly_or_quite(name: str, last: float) -> None:
    spec = SPECS[name]
    if (spec.max_inputs or 4) < 4 or (last == -1.0 and "gram" in spec.requires):
        return  # it takes fewer, or has no direction to go in
    one, other = (pairs(SHARED, rank, rank) for rank in (4, 2))
    parents, weights = [one, other, one, other], [1.0, 1.0, -1.0, last]

    def found(places: Sequence[int]) -> Deltas:
        mixed = [weights[i] for i in places] if spec.default_weights != "none" else None
        whole = {} if spec.parameter("density") is None else {"density": 1.0}
        return merged([parents[i] for i in places], name, weights=mixed, parameters=whole)

    first, size = found(range(4)), norm(dense(one))
    for places in permutations(range(4)):
        again = found(places)
        assert norm({module: again[module] - first[module] for module in first}) < 1e-5 * size


@pytest.mark.parametrize("name", with_law("single"))
def test_one_adapter_cut_to_its_own_rank_is_itself(name: str) -> None:
    parent = pairs(SHARED, 4, 1)
    found, _ = cut(engine([parent], name, weights=[1.0], rank=32))
    assert distance(found, dense(parent)) < 1e-6


@pytest.mark.parametrize("name", with_law("same"))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_adapter_with_itself_in_any_gauge_is_itself(name: str, count: int) -> None:
    count = min(count, SPECS[name].max_inputs or count)
    parent = pairs(SHARED, 4, 1)
    twin = regauged(parent, 3)
    mixed = ([parent, twin] * count)[:count]
    for rank in ("full", 4):
        assert distance(cut(engine([parent] * count, name, rank=rank))[0], dense(parent)) < 1e-6
        assert distance(cut(engine(mixed, name, rank=rank))[0], dense(parent)) < 1e-4


SEEDS = 400


def bias(case: Case) -> tuple[float, float]:
    """How far the mean over many seeds is from the weighted sum, in its own standard deviations.

    (root mean square over all elements, largest): near 1 and below 5 for a mean that is right. The variance of an
    element that is kept with chance p and divided by it is δ²(1-p)/p.
    """
    assert case.weights is not None
    total: dict[str, Any] = {}
    name, parameters = case.spec.name, case.spec.defaults() | dict(case.parameters)
    for seed in range(SEEDS):
        found = merged(
            case.parents, name, weights=case.weights, seed=seed, parameters=case.parameters
        )
        total = {module: total.get(module, 0.0) + delta for module, delta in found.items()}
    away = []
    for module, expected in case.weighted_sum().items():
        variance = np.zeros_like(expected)
        for parent, weight in zip(case.parents, case.weights, strict=True):
            delta = dense(parent)[module]
            chance = keep_chances(delta, parameters)
            variance += weight**2 * delta**2 * (1 - chance) / chance
        away.append(((total[module] / SEEDS - expected) / np.sqrt(variance / SEEDS)).ravel())
    every = np.concatenate(away)
    return float(np.sqrt((every**2).mean())), float(np.abs(every).max())


def keep_chances(delta: Any, parameters: Mapping[str, Any]) -> Any:
    """By rank within the row where there is an epsilon."""
    density, epsilon = parameters["density"], parameters.get("epsilon", 0.0)
    ranks = np.abs(delta).argsort(axis=1).argsort(axis=1)
    return density - epsilon + 2 * epsilon * ranks / (delta.shape[1] - 1)


@pytest.mark.parametrize("name", with_law("unbiased"))
@pytest.mark.parametrize("density", [0.3, 0.8])
def test_the_mean_over_seeds_is_the_weighted_sum(name: str, density: float) -> None:
    case = example(name, density=density)
    typical, largest = bias(case)
    assert 0.85 < typical < 1.15
    assert largest < 5


@pytest.mark.parametrize(
    "case",
    [example("dare_linear", rescale="none"), example("dare_ties", trim=1.0), example("della")],
    ids=lambda case: case.spec.name,
)
def test_a_method_that_is_not_unbiased_is_far_from_it(case: Case) -> None:
    assert bias(case)[0] > 3


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if "seed" in s.requires])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_the_share_that_is_kept_is_the_density_to_four_sigma(name: str, density: float) -> None:
    parent = pairs({"layers.0.q": (300, 64), "layers.1.q": (200, 90)}, 5, 1)
    wanted = {"density": density, "epsilon": 0.05, "trim": 1.0}
    parameters = {key: value for key, value in wanted.items() if SPECS[name].parameter(key)}
    counts = []
    for seed in range(5):
        found = merged([parent], name, weights=[1.0], seed=seed, parameters=parameters)
        counts.append([np.count_nonzero(delta) for delta in found.values()])
    sizes = [pair.shape[0] * pair.shape[1] for pair in parent.values()]
    for kept, size in zip(np.array(counts).sum(axis=0), sizes, strict=True):
        trials = 5 * size
        assert abs(kept - density * trials) <= 4 * math.sqrt(density * (1 - density) * trials)
    assert len({tuple(count) for count in counts}) == 5, "another seed, another mask"


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("rank", ["full", "auto", 3])
def test_every_method_gives_nothing_for_parents_of_nothing(name: str, rank: str | int) -> None:
    count = min(2, SPECS[name].max_inputs or 2)
    nothing = [pairs(SHARED, 2, seed, scale=0.0) for seed in range(count)]
    found, report = cut(engine(nothing, name, rank=rank))
    assert norm(found) == 0
    assert report.total["error"] == 0
    assert math.isfinite(report.total["energy_kept"])


@pytest.mark.parametrize("name", SPECS)
def test_parameters_out_of_range_are_refused_naming_the_range(name: str) -> None:
    spec = SPECS[name]
    digests = [str(place) for place in range(min(2, spec.max_inputs or 2))]
    for parameter in spec.parameters:
        wrong: list[float | str] = [math.nan, math.inf, "x"]
        wrong += [parameter.minimum - 1] if parameter.minimum is not None else []
        wrong += (
            [parameter.minimum] if parameter.above_minimum and parameter.minimum is not None else []
        )
        wrong += [parameter.maximum + 0.001] if parameter.maximum is not None else []
        wrong += [1.5] if parameter.kind == "integer" else []
        for value in wrong:
            with pytest.raises(UsageError) as caught:
                make_recipe(name, digests, parameters={parameter.name: value})
            assert parameter.flag in caught.value.what
            assert parameter.range in caught.value.why
            assert caught.value.exit_code == 2


def test_a_method_from_another_package_is_taken_and_a_taken_name_is_not(
    merger: Merger, plugged: Any
) -> None:
    def twice(_gram: object, weights: Sequence[float], _parameters: object) -> list[float]:
        return [2 * weight for weight in weights]

    mine = replace(SPECS["linear"], name="mine", kernel="their_kernels:twice")
    plugged(mine, twice=twice)
    folder = merger.adapter()
    expected = {module: 2 * delta for module, delta in read_deltas(folder).items()}
    assert distance(merger([folder], "mine").deltas, expected) < 1e-6
    plugged(replace(mine, name="ties"), twice=twice)
    with pytest.raises(UsageError, match="their-package"):
        specs.methods()
