"""A preset fills in what the recipe leaves out, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import UsageError
from adapterhub.trainer.presets import PRESETS
from adapterhub.trainer.recipe import parse_recipe
from adapterhub.trainer.remarks import remarks
from tests.cli.calling import call

MINIMAL: dict[str, Any] = {"name": "a", "base": "org/b", "data": {"path": "d.json"}}


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_is_a_whole_recipe_with_its_values_and_without_a_warning(preset: str) -> None:
    recipe = parse_recipe({**MINIMAL, "preset": preset})
    for key, value in PRESETS[preset].items():
        if isinstance(value, dict):
            assert value.items() <= recipe.document[key].items()
        else:
            assert recipe.document[key] == value
    assert [remark for remark in remarks(recipe) if remark.severity == "warn"] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_plans_on_a_small_file(
    preset: str, write_recipe: Callable[..., Path], document: dict[str, Any]
) -> None:
    small = {key: document[key] for key in ("name", "base")}
    document.clear()
    document.update(small, data={"path": "data.json"}, preset=preset)
    plan = call("recipe", "check", write_recipe(), "--json").json
    assert plan["epochs"] >= PRESETS[preset]["epochs"]
    assert plan["held_out_rows"] > 0


def test_the_recipes_own_keys_win_section_by_section() -> None:
    own = {
        **MINIMAL,
        "data": {"path": "d.json", "held_out": 0.2},
        "rank": 4,
        "neftune_alpha": None,
        "eval": {"samples": 0},
    }
    recipe = parse_recipe({**own, "preset": "quality"})
    assert (recipe.rank, recipe.neftune_alpha, recipe.data.held_out) == (4, None, 0.2)
    assert (recipe.eval.samples, recipe.eval.patience, recipe.eval.rows) == (0, 3, None)
    assert recipe.alpha == PRESETS["quality"]["alpha"]


@pytest.mark.parametrize(
    ("own", "length"),
    [
        ({"steps": 7}, (7, None)),
        ({"epochs": 9}, (None, 9)),
        ({"steps": None, "epochs": None}, (None, 3)),
    ],
)
def test_a_length_of_ones_own_replaces_the_presets(
    own: dict[str, Any], length: tuple[int | None, float | None]
) -> None:
    recipe = parse_recipe({**MINIMAL, **own, "preset": "production"})
    assert (recipe.steps, recipe.epochs) == length


def test_a_preset_asks_nothing_of_scores_that_will_never_be_taken() -> None:
    recipe = parse_recipe(
        {**MINIMAL, "preset": "production", "data": {"path": "d.json", "held_out": 0}}
    )
    assert (recipe.eval.patience, recipe.eval.samples) == (None, 0)


def test_an_unknown_preset_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="production") as caught:
        parse_recipe({**MINIMAL, "preset": "productoin", "steps": 1})
    assert caught.value.hint == "Did you mean production?"
