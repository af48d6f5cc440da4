"""A recipe is right or is refused, with the wrong key, its value and what would be accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from adapterhub.errors import ExitCode, NotFoundError, UsageError
from adapterhub.trainer.recipe import DataSpec, EvalSpec, Recipe, load_recipe, parse_recipe

Write = Callable[..., Path]
EXAMPLE = Path(__file__).parents[2] / "trainer" / "example.yaml"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rnak": 8}, ["unknown key: rnak", "rank"]),
        (
            {"data": {"path": "data.json", "heldout": 0.1}},
            ["unknown key: data.heldout", "held_out"],
        ),
        ({"eval": {"row": 3}}, ["unknown key: eval.row", "rows"]),
        ({"rank": 0}, ["rank is 0", "int >= 1"]),
        ({"rank": "eight"}, ["rank is 'eight'", "int"]),
        ({"method": "full"}, ["method is 'full'", "full"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "< 1"]),
        ({"learning_rate": 0}, ["learning_rate is 0", "> 0"]),
        ({"data": {"path": "data.json", "held_out": 2}}, ["data.held_out is 2", "< 1"]),
        ({"data": {}}, ["lacks the key data.path"]),
        ({"base": None}, ["base is None", "str"]),
        ({"target_modules": []}, ["target_modules is []", "length >= 1"]),
        ({"name": "../up"}, ["not a valid name"]),
        ({"epochs": 1}, ["both steps and epochs"]),
        ({"steps": None}, ["doesn't say how long"]),
    ],
)
def test_a_wrong_key_or_value_is_named(
    write_recipe: Write, changes: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write_recipe(**changes))
    assert caught.value.exit_code == ExitCode.USAGE
    for words in says:
        assert words in str(caught.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(UsageError, match="lacks the key name"):
        parse_recipe({})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "must hold keys and values"),
        ("name: a\nname: b", "'name' appears twice"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert says in str(caught.value)


def test_an_absent_recipe_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["2e-4", "2E-4", "2.0e-4", "0.0002"])
def test_a_number_is_a_number_however_it_is_written(
    tmp_path: Path, document: dict[str, Any], text: str
) -> None:
    path = tmp_path / "recipe.yaml"
    del document["learning_rate"]
    path.write_text(yaml.safe_dump(document) + f"learning_rate: {text}\n")
    assert load_recipe(path).learning_rate == pytest.approx(2e-4)


def test_overrides_replace_keys_and_steps_replace_epochs(write_recipe: Write) -> None:
    path = write_recipe(steps=None, epochs=2)
    recipe = load_recipe(path, {"name": "other", "steps": 7, "seed": None})
    assert (recipe.name, recipe.steps, recipe.epochs, recipe.seed) == ("other", 7, None, 3)
    with pytest.raises(UsageError, match="steps is 0"):
        load_recipe(path, {"steps": 0})


def test_paths_are_taken_from_the_recipes_folder(
    write_recipe: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(write_recipe(base="model"))
    assert recipe.data.path == str(tmp_path / "data.json")
    assert recipe.base == str(tmp_path / "model")
    assert load_recipe(write_recipe(base="org/model")).base == "org/model"
    assert load_recipe(write_recipe(), {"base": "model"}).base == "model"  # typed by hand: as typed


def test_a_recipe_cannot_be_changed_and_its_digest_knows_its_defaults(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe())
    with pytest.raises(AttributeError):
        recipe.rank = 4  # type: ignore[misc]
    assert load_recipe(write_recipe(dropout=0.0)).digest == recipe.digest
    assert load_recipe(write_recipe(dropout=0.1)).digest != recipe.digest


def test_the_documented_recipe_has_every_key_and_the_true_defaults() -> None:
    example = yaml.safe_load(EXAMPLE.read_text())
    assert set(example) | {"epochs"} == set(Recipe.__struct_fields__)
    assert set(example["data"]) == set(DataSpec.__struct_fields__)
    assert set(example["eval"]) == set(EvalSpec.__struct_fields__)
    written = load_recipe(EXAMPLE)
    minimal = parse_recipe(
        {
            "name": written.name,
            "base": written.base,
            "data": {"path": written.data.path},
            "steps": 100,
        }
    )
    assert msgspec.structs.replace(written, alpha=32.0) == minimal
