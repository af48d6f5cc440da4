"""Every method obeys the laws its spec declares, and those alone are tested: a new method is tested by declaring them.

Laws are about ΔW. Methods that choose among elements (trim, sign) may choose otherwise where rounding decides; the
tests say how many elements those are.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import pytest

from adapterhub.errors import UsageError
from adapterhub.merge import specs
from adapterhub.merge.specs import Law, MethodSpec, methods
from tests.support.adapters import llama_modules
from tests.support.dense import Deltas, change_of_gauge, distance, norm, read_deltas, read_factors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.merge.conftest import Merger

SAY = logging.getLogger(__name__)  # seen with --log-cli-level=INFO
SPECS = methods()
MOST_UNDECIDED = 1e-3
"""Share of elements a law may leave out because they change sides by rounding."""


def with_law(law: Law) -> list[str]:
    return [name for name, spec in SPECS.items() if law in spec.laws]


def parents(merger: Merger, spec: MethodSpec, least: int = 2) -> list[Path]:
    """As many adapters as the method takes, of different ranks, scales and modules."""
    wanted = max(spec.min_inputs, min(least, spec.max_inputs or least))
    settings = [
        {"rank": 4, "modules": llama_modules("q_proj", "v_proj")},
        {
            "rank": 9,
            "modules": llama_modules("q_proj", "up_proj"),
            "use_rslora": True,
            "scale": 0.03,
        },
        {"rank": 2, "modules": llama_modules(), "alpha": 3},
    ]
    return [merger.adapter(seed=place, **settings[place % 3]) for place in range(wanted)]


def regauged(merger: Merger, folder: Path, seed: int) -> Path:
    """The same adapter in other factors."""
    config = json.loads((folder / "adapter_config.json").read_text())
    factors = change_of_gauge(read_factors(folder), seed=seed)
    twin = merger.adapter(
        factors=factors,
        rank=config["r"],
        alpha=config["lora_alpha"],
        use_rslora=config["use_rslora"],
    )
    assert distance(read_deltas(twin), read_deltas(folder)) < 1e-5
    assert all(
        not np.allclose(b, read_factors(folder)[m][0])
        for m, (b, _, _) in read_factors(twin).items()
    )
    return twin


def flipped(one: Deltas, other: Deltas, spec: MethodSpec) -> dict[str, npt.NDArray[np.bool_]]:
    """Elements that an element-wise method kept in one and not, or with another sign or divisor, in the other."""
    if spec.family != "elementwise":
        return {module: np.zeros(delta.shape, bool) for module, delta in one.items()}
    masks = {
        m: np.abs(one[m] - other[m]) > 0.01 * np.maximum(np.abs(one[m]), np.abs(other[m]))
        for m in one
    }
    count, total = (
        sum(int(mask.sum()) for mask in masks.values()),
        sum(mask.size for mask in masks.values()),
    )
    SAY.info("%d of %d elements changed sides by rounding", count, total)
    assert count <= MOST_UNDECIDED * total
    return masks


@pytest.mark.parametrize("name", with_law("gauge"))
@pytest.mark.parametrize("rank", ["full", 6])
def test_merge_is_unchanged_by_a_change_of_gauge(
    merger: Merger, name: str, rank: str | int
) -> None:
    spec = SPECS[name]
    folders = parents(merger, spec, least=3)
    others = [regauged(merger, folder, seed) for seed, folder in enumerate(folders)]
    before = merger(folders, name, rank=rank).deltas
    after = merger(others, name, rank=rank).deltas
    apart = (
        flipped(before, after, spec) if rank == "full" else None
    )  # truncation spreads a flip over its module
    assert distance(after, before, apart=apart) < 1e-4


@pytest.mark.parametrize(
    "name", [name for name in with_law("gauge") if SPECS[name].parameter("trim_scope")]
)
@pytest.mark.parametrize("scope", ["model", "module"])
def test_gauge_freedom_holds_for_every_trim_scope(merger: Merger, name: str, scope: str) -> None:
    spec = SPECS[name]
    folders = parents(merger, spec, least=2)
    others = [regauged(merger, folder, 7 + seed) for seed, folder in enumerate(folders)]
    before = merger(folders, name, trim_scope=scope).deltas
    after = merger(others, name, trim_scope=scope).deltas
    assert distance(after, before, apart=flipped(before, after, spec)) < 1e-4


@pytest.mark.parametrize("name", with_law("order"))
def test_the_order_of_the_parents_does_not_matter(merger: Merger, name: str) -> None:
    spec = SPECS[name]
    folders = parents(merger, spec, least=3)
    weights = [0.9, -0.4, 1.3, 0.2][: len(folders)]
    first = merger(folders, name, weights=weights).deltas
    for order in list(permutations(range(len(folders))))[1:]:
        other = merger(
            [folders[i] for i in order], name, weights=[weights[i] for i in order]
        ).deltas
        assert distance(other, first, apart=flipped(first, other, spec)) < 1e-6


@pytest.mark.parametrize(
    "name", [name for name in with_law("order") if (SPECS[name].max_inputs or 4) >= 4]
)
def test_order_does_not_matter_where_parents_nearly_cancel(merger: Merger, name: str) -> None:
    spec = SPECS[name]
    one, other = parents(merger, spec, least=2)
    folders, weights = [one, other, one, other], [1.0, 1.0, -1.0, -0.5]
    first = merger(folders, name, weights=weights).deltas
    for order in [(0, 2, 1, 3), (3, 2, 1, 0), (1, 3, 2, 0)]:
        found = merger(
            [folders[i] for i in order], name, weights=[weights[i] for i in order]
        ).deltas
        assert distance(found, first) < 1e-5


@pytest.mark.parametrize("name", with_law("scaling"))
@pytest.mark.parametrize("factor", [3.7, -1.0, 0.001])
def test_all_weights_times_c_is_the_result_times_c(
    merger: Merger, name: str, factor: float
) -> None:
    spec = SPECS[name]
    folders = parents(merger, spec)
    weights = [0.8, -0.5][: len(folders)]
    plain = merger(folders, name, weights=weights).deltas
    scaled = merger(folders, name, weights=[factor * weight for weight in weights]).deltas
    expected = {module: factor * delta for module, delta in plain.items()}
    assert distance(scaled, expected, apart=flipped(expected, scaled, spec)) < 1e-6


@pytest.mark.parametrize("name", with_law("single"))
@pytest.mark.parametrize("rank", ["full", 32])
def test_one_adapter_with_weight_one_is_itself(merger: Merger, name: str, rank: str | int) -> None:
    for folder in parents(merger, SPECS[name], least=3):
        assert (
            distance(merger([folder], name, weights=[1], rank=rank).deltas, read_deltas(folder))
            < 1e-6
        )


@pytest.mark.parametrize("name", with_law("same"))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_adapter_with_itself_is_itself(merger: Merger, name: str, count: int) -> None:
    folder = merger.adapter(rank=5)
    twin = regauged(merger, folder, 3)
    mixed = ([folder, twin] * count)[:count]
    for rank in ("full", 5):
        assert (
            distance(merger([folder] * count, name, rank=rank).deltas, read_deltas(folder)) < 1e-6
        )
        assert distance(merger(mixed, name, rank=rank).deltas, read_deltas(folder)) < 1e-4


@pytest.mark.parametrize("name", SPECS)
def test_every_declared_law_is_known_and_every_method_is_free_of_gauge(name: str) -> None:
    spec = SPECS[name]
    assert set(spec.laws) <= set(get_args(Law))
    assert "gauge" in spec.laws, "a result that changes under a change of gauge is a bug"


@pytest.mark.parametrize("name", SPECS)
def test_every_method_gives_finite_results_for_parents_of_nothing(
    merger: Merger, name: str
) -> None:
    folders = [
        merger.adapter(seed=seed, scale=0.0) for seed in range(max(2, SPECS[name].min_inputs))
    ]
    for rank in ("full", "auto", 3):
        merged = merger(folders, name, rank=rank)
        assert norm(merged.deltas) == 0
        assert merged.report["error"] == 0
        assert math.isfinite(merged.report["energy_kept"])


@pytest.mark.parametrize("name", SPECS)
def test_parameters_out_of_range_are_refused_naming_the_range(merger: Merger, name: str) -> None:
    folders = [merger.adapter(seed=seed) for seed in range(2)]
    for parameter in SPECS[name].parameters:
        wrong: list[float | str] = [math.nan, math.inf, "x"]
        wrong += [parameter.minimum - 1] if parameter.minimum is not None else []
        wrong += (
            [parameter.minimum] if parameter.above_minimum and parameter.minimum is not None else []
        )
        wrong += [parameter.maximum + 0.001] if parameter.maximum is not None else []
        for value in wrong:
            given: dict[str, Any] = {parameter.name: value}
            with pytest.raises(UsageError) as caught:
                merger(folders, name, **given)
            assert parameter.flag in caught.value.what
            assert parameter.range in caught.value.why
            assert caught.value.exit_code == 2


def test_a_method_from_another_package_is_taken_and_a_taken_name_is_not(
    merger: Merger, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(SPECS["linear"], name="mine", kernel=f"{__name__}:twice")
    monkeypatch.setitem(
        sys.modules, __name__, SimpleNamespace(twice=lambda weights, _: [2 * w for w in weights])
    )
    point = SimpleNamespace(
        load=lambda: mine, dist=SimpleNamespace(name="their-package"), value="x:y"
    )
    monkeypatch.setattr("adapterhub.merge.specs.entry_points", lambda **_: [point])
    clear = getattr(
        specs.methods, "cache_clear", lambda: None
    )  # whether or not the registry is remembered
    clear()
    try:
        folder = merger.adapter()
        expected = {module: 2 * delta for module, delta in read_deltas(folder).items()}
        assert distance(merger([folder], "mine").deltas, expected) < 1e-6
        mine = replace(mine, name="ties")
        clear()
        with pytest.raises(UsageError, match="their-package"):
            specs.methods()
    finally:
        monkeypatch.undo()
        clear()
