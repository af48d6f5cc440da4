"""What `diff` measures is what dense matrices have: norms, inner products and cosines in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from adapterhub.compare.similarity import Difference, compare
from adapterhub.errors import IncompatibleError, UnsupportedError
from adapterhub.lora.adapter import opened
from tests.support.adapters import EMBEDDING, QV, llama_modules
from tests.support.dense import change_of_gauge, norm, read_deltas, read_factors

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
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
}


def diff(store: Store, one: Path, two: Path) -> Difference:
    for name, folder in (("one", one), ("two", two)):
        store.add_folder(folder, name=name, move=True)
    with opened(store, [store.resolve("one"), store.resolve("two")], "compared") as adapters:
        return compare(adapters)


@pytest.mark.parametrize("kind", PAIRS)
def test_norms_and_angles_are_those_of_the_dense_deltas(
    store: Store, make_adapter: AdapterMaker, kind: str
) -> None:
    folders = [
        make_adapter(f"a{seed}", seed=seed, **settings) for seed, settings in enumerate(PAIRS[kind])
    ]
    one, two = (read_deltas(folder) for folder in folders)
    found = diff(store, folders[0], folders[1])

    assert [module.module for module in found.modules] == sorted(one.keys() | two.keys())
    for module in found.modules:
        mine, theirs = one.get(module.module), two.get(module.module)
        assert module.norm_a == pytest.approx(0 if mine is None else np.linalg.norm(mine), rel=1e-6)
        assert module.norm_b == pytest.approx(
            0 if theirs is None else np.linalg.norm(theirs), rel=1e-6
        )
        if mine is None or theirs is None:
            assert module.inner == 0
            assert module.cosine is None
        else:
            size = float(np.linalg.norm(mine) * np.linalg.norm(theirs))
            assert module.inner == pytest.approx(float((mine * theirs).sum()), abs=1e-6 * size)
            assert module.cosine == pytest.approx(float((mine * theirs).sum()) / size, abs=1e-6)
    inner = sum(float((one[module] * two[module]).sum()) for module in one.keys() & two.keys())
    assert found.norm_a == pytest.approx(norm(one), rel=1e-6)
    assert found.norm_b == pytest.approx(norm(two), rel=1e-6)
    assert found.cosine == pytest.approx(inner / (norm(one) * norm(two)), abs=1e-6)


def test_an_adapter_points_where_it_points_itself_and_its_negation_the_other_way(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("one")
    negative = make_adapter(
        "two", factors={m: (-b, a) for m, (b, a, _) in read_factors(folder).items()}
    )
    assert diff(store, folder, folder).cosine == pytest.approx(1, abs=1e-9)
    assert diff(store, folder, negative).cosine == pytest.approx(-1, abs=1e-6)


def test_a_change_of_gauge_changes_nothing(store: Store, make_adapter: AdapterMaker) -> None:
    one, two = make_adapter("one", rank=6), make_adapter("two", seed=1)
    twin = make_adapter("twin", rank=6, factors=change_of_gauge(read_factors(one), seed=1))
    plain, moved = diff(store, one, two), diff(store, twin, two)
    assert plain.cosine is not None
    assert moved.cosine == pytest.approx(plain.cosine, abs=1e-5)
    assert moved.norm_a == pytest.approx(plain.norm_a, rel=1e-5)
    assert diff(store, one, twin).cosine == pytest.approx(1, abs=1e-6)


def test_diff_is_symmetric(store: Store, make_adapter: AdapterMaker) -> None:
    one, two = (
        make_adapter("one", rank=6),
        make_adapter("two", seed=1, modules=llama_modules("v_proj", "o_proj")),
    )
    there, back = diff(store, one, two), diff(store, two, one)
    assert there.cosine == pytest.approx(back.cosine)
    assert [(m.norm_a, m.norm_b) for m in there.modules] == [
        (m.norm_b, m.norm_a) for m in back.modules
    ]


def test_an_adapter_that_changes_nothing_has_no_direction(
    store: Store, make_adapter: AdapterMaker
) -> None:
    found = diff(store, make_adapter("one"), make_adapter("two", scale=0.0))
    assert found.cosine is None
    assert "changes nothing" in found.verdict
    assert all(module.cosine is None for module in found.modules)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        ({"q_proj": 1, "v_proj": 1}, "share directions"),
        ({"q_proj": -1, "v_proj": 1}, "pull against each other in 2 of 4"),
    ],
)
def test_the_verdict_names_what_the_numbers_say(
    store: Store, make_adapter: AdapterMaker, strength: dict[str, int], expected: str
) -> None:
    one = make_adapter("one")
    factors = {
        m: (strength[m.rpartition(".")[2]] * b, a) for m, (b, a, _) in read_factors(one).items()
    }
    assert expected in diff(store, one, make_adapter("two", factors=factors)).verdict


def test_the_verdict_on_strangers_and_on_disjoint_adapters(
    store: Store, make_adapter: AdapterMaker
) -> None:
    wide = {"model.layers.0.mlp.up_proj": (400, 300)}
    assert (
        "orthogonal"
        in diff(
            store, make_adapter("a", modules=wide), make_adapter("b", modules=wide, seed=1)
        ).verdict
    )
    disjoint = diff(store, make_adapter("c"), make_adapter("d", modules=llama_modules("o_proj")))
    assert "different modules" in disjoint.verdict
    assert disjoint.cosine == 0


def test_settings_that_differ_are_named_and_equal_ones_are_not(
    store: Store, make_adapter: AdapterMaker
) -> None:
    found = diff(
        store, make_adapter("one", rank=4), make_adapter("two", rank=8, seed=1, use_rslora=True)
    )
    assert {name: (mine, theirs) for name, mine, theirs in found.settings} == {
        "rank": (4, 8),
        "use_rslora": (False, True),
    }


def test_what_a_difference_would_leave_out_is_refused(
    store: Store, make_adapter: AdapterMaker
) -> None:
    with pytest.raises(UnsupportedError, match="DoRA"):
        diff(store, make_adapter("one"), make_adapter("two", use_dora=True))
    with pytest.raises(IncompatibleError, match="shape"):
        diff(
            store,
            make_adapter("three"),
            make_adapter("four", modules={"model.layers.0.self_attn.q_proj": (8, 8)}),
        )


def test_norms_are_finite(store: Store, make_adapter: AdapterMaker) -> None:
    found = diff(store, make_adapter("one", scale=1e8), make_adapter("two", scale=1e-9))
    assert all(math.isfinite(value) for value in (found.norm_a, found.norm_b, found.cosine or 0))
