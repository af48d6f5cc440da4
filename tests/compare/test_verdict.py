"""Verdicts on adapters made to deserve them: the words, the numbers in them, and the merge to try first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adapterhub.compare.verdict import Verdict, judge
from adapterhub.merge.recipe import make_recipe, parse_weights
from tests.compare.conftest import Compare
from tests.compare.mixing import ALL, LAYERS, layer, mixed
from tests.support.adapters import AdapterMaker, llama_modules, random_factors
from tests.support.dense import read_deltas

Judge = Callable[..., Verdict]
ONE = random_factors(ALL)


@pytest.fixture
def verdict(compared: Compare, make_adapter: AdapterMaker) -> Judge:
    """verdict(factors, factors, ...) of adapters called a, b, ..."""

    def run(*parents: Any, mismatch: str = "") -> Verdict:
        folders = []
        for name, factors in zip("abcdef", parents, strict=False):
            rank = len(next(iter(factors.values()))[1])
            folders.append(make_adapter(name, factors=factors, rank=rank, alpha=2 * rank))
        return judge(compared(*folders), [folder.name for folder in folders], mismatch=mismatch)

    return run


def kinds(found: Verdict) -> list[str]:
    return [finding.kind for finding in found.findings]


def options(found: Verdict) -> list[str]:
    """What follows the names in the command, which must be a recipe that merge takes."""
    words = list(found.command)
    assert words[:2] == ["adapterhub", "merge"]
    names = [word for word in words[2:] if len(word) == 1]
    rest = words[2 + len(names) :]
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    weights = parse_weights(given["--weights"]) if "--weights" in given else None
    make_recipe(given["--method"], names, weights=weights)
    return rest


def test_conflict_only_in_the_mlps_of_some_layers(
    verdict: Judge, make_adapter: AdapterMaker
) -> None:
    def where(module: str) -> float:
        return -0.6 if "mlp" in module and layer(module) in (2, 3, 4) else 0.0

    other = mixed(ONE, where)
    found = verdict(ONE, other)
    (finding,) = found.findings
    assert finding.kind == "conflict"
    assert finding.text.startswith("Conflict in the MLPs of layers 2-4 (cosine -0.")
    assert "prefer TIES" in finding.text
    assert set(finding.modules) == {module for module in ALL if where(module) < 0}
    assert options(found) == ["--method", "ties"]
    # the numbers it rests on, from dense deltas
    one, two = (
        read_deltas(make_adapter(f"check{n}", factors=f, rank=4 * (n + 1), alpha=8 * (n + 1)))
        for n, f in enumerate((ONE, other))
    )
    inner = {m: float((one[m] * two[m]).sum()) for m in finding.modules}
    sizes = [np.sqrt(sum(float((each[m] ** 2).sum()) for m in inner)) for each in (one, two)]
    lowest = min(inner, key=lambda m: inner[m] / np.linalg.norm(one[m]) / np.linalg.norm(two[m]))
    numbers = finding.numbers or {}
    cosine = sum(inner.values()) / (sizes[0] * sizes[1])
    assert numbers["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert f"cosine {cosine:.2f}" in finding.text
    assert f"in {lowest}" in finding.text
    opposed = np.mean([float(((one[m] * two[m]) < 0).mean()) for m in inner])
    assert numbers["conflict"] == pytest.approx(opposed, abs=0.05)


def test_orthogonal_adapters_are_added(verdict: Judge) -> None:
    found = verdict(ONE, mixed(ONE, lambda _: 0.0))
    assert kinds(found) == ["orthogonal"]
    assert found.text.startswith("Nearly orthogonal (cosine ")
    assert f"in {len(ALL)} shared modules): linear is safe" in found.text
    assert options(found) == ["--method", "linear", "--weights", "1,1"]


def test_the_same_direction_is_averaged(verdict: Judge) -> None:
    found = verdict(ONE, mixed(ONE, lambda _: 0.99))
    assert kinds(found) == ["same"]
    assert found.text.startswith("The same direction (cosine 0.99)")
    assert options(found) == ["--method", "linear"]


def test_directions_shared_in_part_are_counted_about_once(verdict: Judge) -> None:
    found = verdict(ONE, mixed(ONE, lambda module: 0.6 if "attn" in module else 0.0))
    assert kinds(found) == ["aligned"]
    assert "attention of all layers" in found.text
    weight = parse_weights(options(found)[3])
    assert weight[0] == weight[1]
    assert 0.6 < weight[0] < 0.95


def test_opposite_directions_cancel(verdict: Judge) -> None:
    found = verdict(ONE, mixed(ONE, lambda _: -0.99))
    assert kinds(found) == ["opposite"]
    assert options(found)[:2] == ["--method", "ties"]


def test_a_stronger_one_is_told_and_weighed_down_only_where_they_conflict(verdict: Judge) -> None:
    apart = verdict(ONE, mixed(ONE, lambda _: 0.0, times=9))
    assert kinds(apart) == ["orthogonal", "imbalance"]
    assert "b is 9 times as strong as a" in apart.text
    assert options(apart) == ["--method", "linear", "--weights", "1,1"]


def test_a_stronger_one_that_conflicts_gets_a_lower_weight(verdict: Judge) -> None:
    against = verdict(ONE, mixed(ONE, lambda _: -0.5, times=9))
    assert kinds(against) == ["conflict", "imbalance"]
    assert "attention and the MLPs of all layers" in against.text
    kept = (against.findings[1].numbers or {})["kept"]
    assert kept is not None
    assert kept == pytest.approx(1 - 0.5 * 9, abs=0.3)
    assert "nothing of a is left" in against.text
    assert options(against) == ["--method", "ties", "--weights", "1,0.33"]


def test_disjoint_modules_cannot_conflict(verdict: Judge) -> None:
    attention = llama_modules("q_proj", "v_proj", layers=range(LAYERS))
    mlp = llama_modules("up_proj", "down_proj", layers=[1, 2])
    found = verdict(random_factors(attention), random_factors(mlp, seed=1))
    assert kinds(found) == ["disjoint"]
    assert (
        "change different modules (a attention of all layers; b the MLPs of layers 1-2)"
        in found.text
    )
    assert options(found) == ["--method", "linear", "--weights", "1,1"]


def test_one_that_changes_nothing_is_not_merged(verdict: Judge) -> None:
    zeros = {module: (0 * b, a) for module, (b, a) in ONE.items()}
    found = verdict(ONE, zeros)
    assert kinds(found) == ["silent"]
    assert found.command == ()
    assert found.line is None


def test_other_bases_and_what_merge_refuses_get_no_command(
    verdict: Judge, compared: Compare, make_adapter: AdapterMaker
) -> None:
    found = verdict(ONE, mixed(ONE, lambda _: 0.0), mismatch="the repository differs")
    assert (
        found.findings[0].text == "They belong to different base models (the repository differs)."
    )
    assert found.line is None
    dora = judge(compared(make_adapter("x"), make_adapter("y", seed=1, use_dora=True)), ["x", "y"])
    assert "DoRA" in dora.findings[0].text
    assert dora.line is None


def test_a_slight_opposition_is_no_reason_for_ties(verdict: Judge) -> None:
    target = "model.layers.3.self_attn.k_proj"
    faint = {m: (b * (0.2 if m == target else 1), a) for m, (b, a) in ONE.items()}
    found = verdict(faint, mixed(ONE, lambda module: -0.5 if module == target else 0.0))
    assert kinds(found) == ["orthogonal", "slight-conflict"]
    assert "k_proj of layer 3" in found.text
    assert options(found)[:2] == ["--method", "linear"]


def test_the_same_subspaces_are_told_although_the_cosine_is_small(verdict: Judge) -> None:
    crossed = {module: (b[:, ::-1].copy(), a) for module, (b, a) in ONE.items()}
    found = verdict(ONE, crossed)
    assert "subspace" in kinds(found)
    assert "they act in the same subspaces (overlap 0." in found.text.lower()


def test_of_three_the_pairs_that_matter_are_named_and_the_others_are_summed_up(
    verdict: Judge,
) -> None:
    against = mixed(ONE, lambda module: -0.6 if "attn" in module else 0.0)
    apart = random_factors(ALL, seed=7)
    found = verdict(ONE, against, apart)
    assert kinds(found) == ["conflict", "orthogonal"]
    assert found.findings[0].text.startswith("a and b: conflict in attention of all layers")
    assert found.findings[1].text.startswith("a and c, b and c: nearly orthogonal")
    assert found.line == "adapterhub merge a b c --method ties"


def test_three_that_get_along_are_said_to_in_one_sentence(verdict: Judge) -> None:
    harmless = verdict(ONE, *(random_factors(ALL, seed=seed) for seed in (7, 8)))
    assert kinds(harmless) == ["orthogonal"]
    assert harmless.text.startswith("All pairs are nearly orthogonal")
    assert options(harmless) == ["--method", "linear", "--weights", "1,1,1"]


def test_a_name_is_quoted_as_the_shell_needs_it(
    compared: Compare, make_adapter: AdapterMaker
) -> None:
    found = judge(compared(make_adapter("x"), make_adapter("y", seed=1)), ["a b", "it's"])
    assert (found.line or "").startswith("adapterhub merge 'a b' 'it'\"'\"'s' --method")
