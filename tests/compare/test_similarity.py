"""What `diff` measures is what dense matrices have, and obeys the laws it must."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.compare.signs import sample_rows
from adapterhub.compare.similarity import Comparison
from adapterhub.errors import IncompatibleError, UnsupportedError
from tests.compare.conftest import Compare
from tests.compare.measures import (
    angles,
    effective_rank,
    inside,
    signs,
    singular_values,
    stable_rank,
)
from tests.support.adapters import EMBEDDING, QV, AdapterMaker, llama_modules
from tests.support.dense import Deltas, change_of_gauge, norm, read_deltas, read_factors

TALL = {"model.layers.0.mlp.up_proj": (700, 40), "model.layers.0.mlp.down_proj": (40, 700)}

SETS: dict[str, tuple[dict[str, Any], ...]] = {
    "other ranks": ({"rank": 3}, {"rank": 11, "alpha": 2}),
    "rsLoRA and patterns": (
        {"use_rslora": True, "rank": 9},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 77}},
    ),
    "modules shared in part": (
        {"modules": llama_modules("q_proj", "down_proj")},
        {"modules": llama_modules("q_proj", "up_proj", layers=[0])},
    ),
    "bfloat16 and float16": ({"dtype": "bfloat16"}, {"dtype": "float16"}),
    "embedding": ({"modules": {**QV, **EMBEDDING}}, {"modules": EMBEDDING, "rank": 2}),
    "very unequal": ({"scale": 1e-6}, {"scale": 30.0}),
    "rank above the width": ({"modules": TALL, "rank": 50}, {"modules": TALL, "rank": 30}),
    "many rows": ({"modules": TALL}, {"modules": TALL, "rank": 7}),
    "three": ({}, {"modules": llama_modules("q_proj")}, {"modules": llama_modules("v_proj")}),
    "one of zeros": ({}, {"scale": 0.0}, {"rank": 2}),
}


@pytest.mark.parametrize("exact", [False, True], ids=["sampled", "exact"])
@pytest.mark.parametrize("kind", SETS)
def test_every_number_is_that_of_the_dense_deltas(
    compared: Compare, make_adapter: AdapterMaker, kind: str, exact: bool
) -> None:
    folders = [make_adapter(f"a{n}", seed=n, **settings) for n, settings in enumerate(SETS[kind])]
    deltas = [read_deltas(folder) for folder in folders]
    found = compared(*folders, exact=exact)
    assert {module.name for module in found.modules} == set().union(*deltas)
    for module in found.modules:
        for strength, parent in zip(module.strengths, deltas, strict=True):
            delta = parent.get(module.name)
            if delta is None or not delta.any():
                assert strength.norm == strength.rank == strength.effective_rank == 0
                continue
            assert strength.norm == pytest.approx(np.linalg.norm(delta), rel=1e-6)
            assert strength.rank == len(singular_values(delta))
            assert strength.effective_rank == pytest.approx(effective_rank(delta), rel=1e-6)
            assert strength.stable_rank == pytest.approx(stable_rank(delta), rel=1e-6)
        changing = [
            n for n, parent in enumerate(deltas) if parent.get(module.name, np.zeros(1)).any()
        ]
        assert set(module.pairs) == set(combinations(changing, 2))
        for (first, second), meeting in module.pairs.items():
            one, other = deltas[first][module.name], deltas[second][module.name]
            size = float(np.linalg.norm(one) * np.linalg.norm(other))
            seen = meeting.angles
            assert seen.inner == pytest.approx(float((one * other).sum()), abs=1e-6 * size)
            assert seen.angles_out == pytest.approx(angles(one, other), abs=2e-3)
            assert seen.angles_in == pytest.approx(angles(one.T, other.T), abs=2e-3)
            assert seen.inside == pytest.approx((inside(one, other), inside(other, one)), abs=1e-6)
            rows = np.arange(len(one)) if exact else sample_rows(module.name, len(one))
            rate, top, unsure = signs(one[rows], other[rows])
            assert meeting.signs.rows == len(rows)
            assert meeting.signs.rate == pytest.approx(rate, abs=1e-9 + unsure)
            assert meeting.signs.top_rate == pytest.approx(top, abs=1e-9 + unsure)
            assert unsure < 0.03, "a test in which rounding decides is none"
    _check_wholes(found, deltas, exact=exact)


def _check_wholes(found: Comparison, deltas: list[Deltas], *, exact: bool) -> None:
    """All modules as one vector an adapter."""
    whole = found.whole
    for place, parent in enumerate(deltas):
        assert whole.norm(place) == pytest.approx(norm(parent), rel=1e-6)
    for first, second in found.pairs:
        one, other = deltas[first], deltas[second]
        shared = [m for m in one.keys() & other.keys() if one[m].any() and other[m].any()]
        if norm(one) == 0 or norm(other) == 0:
            assert whole.cosine((first, second)) is None
            assert whole.overlap((first, second)) is None
            continue
        inner = sum(float((one[m] * other[m]).sum()) for m in shared)
        assert whole.cosine((first, second)) == pytest.approx(
            inner / (norm(one) * norm(other)), abs=1e-6
        )
        assert whole.norm_ratio((first, second)) == pytest.approx(norm(other) / norm(one), rel=1e-6)
        within = sum(inside(one[m], other[m]) * float((one[m] ** 2).sum()) for m in shared)
        assert whole.inside((first, second))[0] == pytest.approx(within / norm(one) ** 2, abs=1e-6)
        if exact and shared:
            opposed = sum(int(((one[m] * other[m]) < 0).sum()) for m in shared)
            total = sum(one[m].size for m in shared)
            assert whole.conflict((first, second)) == pytest.approx(opposed / total, abs=1e-3)
            assert whole.conflict_error((first, second)) == 0


def test_an_adapter_is_itself(compared: Compare, make_adapter: AdapterMaker) -> None:
    folder = make_adapter("one", modules={**QV, **TALL})
    found = compared(folder, folder)
    assert found.labels == ("one", "one (2)")
    assert found.settings == {}
    assert found.whole.cosine((0, 1)) == pytest.approx(1, abs=1e-12)
    assert found.whole.conflict((0, 1)) == found.whole.top_conflict((0, 1)) == 0
    for module in found.modules:
        seen = module.pairs[0, 1].angles
        assert (*seen.angles_out, *seen.angles_in) == pytest.approx([0] * 8, abs=1e-5)
        assert seen.inside[0] >= 0.9


def test_its_negation_is_opposed_in_every_element(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    one = make_adapter("one")
    negative = make_adapter(
        "two", factors={m: (-b, a) for m, (b, a, _) in read_factors(one).items()}
    )
    found = compared(one, negative)
    assert found.whole.cosine((0, 1)) == pytest.approx(-1, abs=1e-12)
    assert found.whole.conflict((0, 1)) == found.whole.top_conflict((0, 1)) == 1


def _numbers(found: Comparison, pair: tuple[int, int], *, swapped: bool = False) -> list[float]:
    """Every number of a pair, of all modules, with the two adapters' own numbers changed over if asked."""
    numbers: list[float] = []
    for module in found.modules:
        seen, counted = module.pairs[pair].angles, module.pairs[pair].signs
        first, second = (module.strengths[place] for place in (pair[::-1] if swapped else pair))
        numbers += [
            *(first.norm, second.norm, first.effective_rank, second.effective_rank),
            *(seen.inner, *seen.angles_out, *seen.angles_in),
            *(seen.inside[::-1] if swapped else seen.inside),
            *(counted.rate or 0, counted.top_rate or 0),
        ]
    return numbers


def test_diff_is_symmetric(compared: Compare, make_adapter: AdapterMaker) -> None:
    one, two = make_adapter("one", rank=6), make_adapter("two", seed=1)
    there, back = _numbers(compared(one, two), (0, 1)), compared(two, one)
    assert there == pytest.approx(_numbers(back, (0, 1), swapped=True), rel=1e-9, abs=1e-12)


def test_a_third_adapter_changes_nothing_between_two(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    one, two, three = (make_adapter(f"a{n}", seed=n, rank=n + 3) for n in range(3))
    alone, together = compared(one, three), compared(one, two, three)
    assert _numbers(alone, (0, 1)) == pytest.approx(_numbers(together, (0, 2)), rel=1e-8, abs=1e-10)


def test_a_change_of_gauge_changes_nothing(compared: Compare, make_adapter: AdapterMaker) -> None:
    one, two = make_adapter("one", rank=6), make_adapter("two", seed=1)
    twin = make_adapter("twin", rank=6, factors=change_of_gauge(read_factors(one), seed=1))
    plain, moved = _numbers(compared(one, two), (0, 1)), _numbers(compared(twin, two), (0, 1))
    assert moved == pytest.approx(plain, rel=1e-4, abs=2e-3)  # signs of elements near zero
    same = compared(one, twin)
    assert same.whole.cosine((0, 1)) == pytest.approx(1, abs=1e-6)
    assert max(max(m.pairs[0, 1].angles.angles_out) for m in same.modules) < 1e-2


def test_scaling_an_adapter_scales_its_norms_and_nothing_else(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    one, two = make_adapter("one", alpha=8), make_adapter("two", seed=1)
    louder = make_adapter("louder", alpha=8 * 64)
    plain, loud = compared(one, two), compared(louder, two)
    assert loud.whole.norm(0) == pytest.approx(64 * plain.whole.norm(0))
    for before, after in zip(plain.modules, loud.modules, strict=True):
        here, there = before.pairs[0, 1], after.pairs[0, 1]
        assert there.angles.inner == pytest.approx(64 * here.angles.inner)
        assert there.angles.angles_out == pytest.approx(here.angles.angles_out)
        assert there.angles.inside == pytest.approx(here.angles.inside)
        assert there.signs == here.signs
        assert after.strengths[0].effective_rank == pytest.approx(
            before.strengths[0].effective_rank
        )


def test_the_number_of_workers_changes_no_bit(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    one, two = (make_adapter(f"a{n}", seed=n, modules=llama_modules()) for n in range(2))
    alone, several = compared(one, two, workers=1), compared(one, two, workers=5)
    assert alone == several


def test_settings_that_differ_are_named_and_equal_ones_are_not(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    shapes: tuple[dict[str, Any], ...] = (
        {"rank": 4},
        {"rank": 8, "use_rslora": True},
        {"rank": 4, "rank_pattern": {"v_proj": 2}},
    )
    found = compared(*(make_adapter(f"a{n}", seed=n, **shape) for n, shape in enumerate(shapes)))
    assert dict(found.settings) == {
        "rank": (4, 8, 4),
        "rank_pattern": ({}, {}, {"v_proj": 2}),
        "use_rslora": (False, True, False),
        "parameters": (1792, 3584, 1408),
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_is_more_than_low_rank_is_compared_as_far_as_it_goes_and_told(
    compared: Compare, make_adapter: AdapterMaker, settings: dict[str, Any], said: str
) -> None:
    plain, other = make_adapter("plain"), make_adapter("other", seed=1)
    more = make_adapter("more", seed=1, **settings)
    found = compared(plain, more)
    assert found.left_out[0] == ()
    assert said in " ".join(found.left_out[1])
    assert _numbers(found, (0, 1)) == _numbers(compared(plain, other), (0, 1))


def test_whole_weights_and_biases_are_told_too(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    import torch

    extra = {
        "base_model.model.lm_head.modules_to_save.weight": torch.zeros(160, 64),
        "base_model.model.model.layers.0.self_attn.q_proj.bias": torch.zeros(64),
    }
    more = make_adapter("more", extra=extra, bias="lora_only", modules_to_save=["lm_head"])
    found = compared(make_adapter("plain"), more)
    assert "modules_to_save" in " ".join(found.left_out[1])
    assert "biases" in " ".join(found.left_out[1])
    assert found.whole.cosine((0, 1)) == pytest.approx(1)


def test_what_cannot_be_compared_is_refused(
    compared: Compare, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    small = {"model.layers.0.self_attn.q_proj": (8, 8)}
    with pytest.raises(IncompatibleError, match="shape"):
        compared(make_adapter("one"), make_adapter("two", modules=small))
    import torch

    nothing = make_adapter(
        "three", factors={}, peft_type="IA3", extra={"base_model.model.x.ia3_l": torch.ones(8)}
    )
    with pytest.raises(UnsupportedError, match="IA3"):
        compared(make_adapter("four"), nothing)


def test_numbers_far_from_one_stay_finite(compared: Compare, make_adapter: AdapterMaker) -> None:
    found = compared(make_adapter("one", scale=1e25), make_adapter("two", seed=1, scale=1e-25))
    twin = compared(make_adapter("three"), make_adapter("four", seed=1))
    assert math.isfinite(found.whole.norm(0))
    assert found.whole.cosine((0, 1)) == pytest.approx(twin.whole.cosine((0, 1)), abs=1e-5)
    assert found.whole.conflict((0, 1)) == pytest.approx(twin.whole.conflict((0, 1)), abs=1e-4)
