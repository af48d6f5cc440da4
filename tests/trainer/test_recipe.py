"""A recipe is right or is refused, with the wrong key, its value and what would be accepted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect
import pytest
import yaml

from adapterhub.errors import ExitCode, NotFoundError, UsageError
from adapterhub.trainer.accepted import accepted
from adapterhub.trainer.recipe import (
    DataSpec,
    DpoSpec,
    EvalSpec,
    Recipe,
    ReplaySpec,
    apply_overrides,
    load_recipe,
    parse_recipe,
)
from adapterhub.trainer.writing import EXAMPLE, recipe_text
from adapterhub.yamltext import parse_yaml

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rnak": 8}, ["unknown key: rnak", "Did you mean rank?"]),
        ({"data": {"path": "d", "heldout": 0.1}}, ["unknown key: data.heldout", "data.held_out"]),
        ({"data": {"path": "d", "replay": {"pth": "g"}}}, ["key: data.replay.pth", "replay.path"]),
        ({"eval": {"row": 3}}, ["unknown key: eval.row", "eval.rows"]),
        ({"dpo": {"bta": 3}}, ["unknown key: dpo.bta", "dpo.beta"]),
        ({"patience": 3}, ["unknown key: patience", "There is eval.patience."]),
        ({"rank": 0}, ["rank is 0", "a whole number, at least 1 and at most 1024"]),
        ({"rank": "eight"}, ["rank is 'eight'", "a whole number"]),
        ({"rank": "8"}, ["rank is '8'", "in quotes", "Write rank: 8"]),
        ({"packing": "true"}, ["packing is 'true'", "true or false", "Write packing: true"]),
        ({"rank": True}, ["rank is true", "a whole number"]),
        ({"seed": -1}, ["seed is -1", "at least 0 and less than 4294967296"]),
        ({"method": "qlroa"}, ["method is 'qlroa'", "lora | qlora", "Did you mean qlora"]),
        ({"target_modules": "qkv"}, ["is 'qkv'", "all-linear | qkvo | qv", "Did you mean qkvo"]),
        ({"target_modules": []}, ["target_modules is []", "a list that isn't empty"]),
        ({"target_modules": ["q", 3]}, ["target_modules[1] is 3", "text"]),
        ({"max_length": "atuo"}, ["is 'atuo'", "at least 8, or auto", "Did you mean auto?"]),
        ({"max_length": 4}, ["max_length is 4", "at least 8, or auto"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "at least 0 and less than 1"]),
        ({"learning_rate": 0}, ["learning_rate is 0", "greater than 0 and at most 1"]),
        ({"weight_decay": float("inf")}, ["weight_decay is inf", "a finite number"]),
        ({"data": {"path": "d", "held_out": 2}}, ["data.held_out is 2", "less than 1"]),
        ({"data": {"path": []}}, ["data.path is []", "a list that isn't empty"]),
        ({"data": {"path": ["d", 3]}}, ["data.path[1] is 3", "text"]),
        ({"data": {"path": "d", "replay": {"path": "g", "ratio": 0}}}, ["replay.ratio is 0"]),
        ({"data": {"path": "d", "replay": {}}}, ["lacks the key data.replay.path"]),
        ({"data": {}}, ["lacks the key data.path"]),
        (
            {"data": "d.json"},
            ["data is 'd.json'", "a section with the keys path", "{path: d.json}"],
        ),
        ({"eval": None}, ["eval is null", "a section"]),
        ({"eval": {"patience": 0}}, ["eval.patience is 0", "at least 1, or null"]),
        ({"base": None}, ["base is null", "text"]),
        ({"base": ""}, ["base is ''", "text that isn't empty"]),
        ({"name": "../up"}, ["not a valid name"]),
        ({"template": 3}, ["template is 3", "text that isn't empty, or null"]),
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
    assert "Expected" not in str(caught.value)
    assert "`str`" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "ia3", "init": "pissa"}, "kind is ia3, which can't have init: pissa"),
        ({"kind": "adalora", "use_rslora": True}, "can't have use_rslora"),
        ({"kind": "ia3", "loraplus_ratio": 16}, "can't have a loraplus_ratio"),
        ({"start_from": "a", "init": "olora"}, "both start_from and init"),
        ({"objective": "dpo", "data": {"path": "d", "replay": {"path": "g"}}}, "replays data"),
        ({"objective": "dpo", "data": {"path": "d", "format": "alpaca"}}, "data.format is alpaca"),
        ({"data": {"path": "d", "format": "preference"}}, "its objective is sft"),
        ({"data": {"path": "d", "held_out": 0}, "eval": {"patience": 2}}, "data.held_out is 0"),
        ({"eval": {"rows": 0, "patience": 2}}, "eval.rows is 0"),
        ({"data": {"path": "d", "held_out": 0}, "eval": {"samples": 2}}, "eval.samples is 2"),
        ({"eval": {"every": 12, "patience": 2}}, "eval.every is 12, and the training has 12"),
    ],
)
def test_what_could_never_happen_together_is_refused(
    write_recipe: Write, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write_recipe(**changes))
    assert says in caught.value.what
    assert caught.value.hint


def test_every_key_has_words_for_what_it_takes() -> None:
    for schema in (Recipe, DataSpec, ReplaySpec, EvalSpec, DpoSpec):
        kind = msgspec.inspect.type_info(schema)
        assert isinstance(kind, msgspec.inspect.StructType)
        for field in kind.fields:
            assert accepted(field.type)


def test_anothers_configuration_is_told_with_the_way_to_import_it(tmp_path: Path) -> None:
    path = tmp_path / "ax.yml"
    path.write_text("base_model: a/b\nadapter: lora\n")
    with pytest.raises(UsageError, match="a configuration of Axolotl") as caught:
        load_recipe(path)
    assert caught.value.hint.startswith(f"adapterhub recipe import {path}")


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


def test_any_key_can_be_set_beside_the_file(write_recipe: Write, tmp_path: Path) -> None:
    path = write_recipe(preset="quality", alpha=None)
    path.write_text(path.read_text().replace("alpha: null\n", ""))
    sets = ["rank=32", "eval.every=5", "learning_rate=1e-4", "target_modules=[q_proj, v_proj]"]
    recipe = load_recipe(path, None, [*sets, "data.replay.path=g.jsonl", "preset=production"])
    assert (recipe.rank, recipe.eval.every, recipe.learning_rate) == (32, 5, 1e-4)
    assert recipe.target_modules == ["q_proj", "v_proj"]
    assert recipe.alpha == 32  # the preset's that was set, not the file's
    assert recipe.data.replay == ReplaySpec(path="g.jsonl")  # typed by hand: as typed
    assert recipe.data.path == str(tmp_path / "data.json")
    longer = load_recipe(path, None, ["epochs=2"])
    assert (longer.steps, longer.epochs) == (None, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rnak=3", "Did you mean rank?"),
        ("held_out=0.2", "There is data.held_out."),
        ("rank", "--set rank=VALUE"),
        ("rank=[", "not valid YAML"),
        ("rank=many", "a whole number"),
    ],
)
def test_a_set_that_no_recipe_could_have_is_refused(
    write_recipe: Write, text: str, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write_recipe(), None, [text])
    assert says in str(caught.value)


def test_sets_leave_the_document_they_are_given_alone() -> None:
    document = {"eval": {"rows": 3}, "steps": 5}
    changed = apply_overrides(document, ["eval.every=2", "epochs=1"])
    assert changed == {"eval": {"rows": 3, "every": 2}, "epochs": 1}
    assert document == {"eval": {"rows": 3}, "steps": 5}


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
    many = {"path": ["data.json", "hf://datasets/org/rows"], "replay": {"path": "general.jsonl"}}
    recipe = load_recipe(write_recipe(data=many))
    assert recipe.data.paths == [str(tmp_path / "data.json"), "hf://datasets/org/rows"]
    assert recipe.data.replay == ReplaySpec(path=str(tmp_path / "general.jsonl"))
    with pytest.raises(NotFoundError, match=r"There is no template .*t\.jinja"):
        load_recipe(write_recipe(template="t.jinja"))
    (tmp_path / "t.jinja").write_text("x")
    assert load_recipe(write_recipe(template="t.jinja")).template == str(tmp_path / "t.jinja")


def test_a_recipe_cannot_be_changed_and_its_digest_knows_its_defaults(write_recipe: Write) -> None:
    recipe = load_recipe(write_recipe())
    with pytest.raises(AttributeError):
        recipe.rank = 4  # type: ignore[misc]
    assert load_recipe(write_recipe(dropout=0.0)).digest == recipe.digest
    assert load_recipe(write_recipe(dropout=0.1)).digest != recipe.digest


def test_the_documented_recipe_has_every_key_and_the_true_defaults() -> None:
    example = parse_yaml(EXAMPLE.read_bytes(), EXAMPLE.name)
    assert set(example) | {"epochs"} == set(Recipe.__struct_fields__)
    for key, schema in (("data", DataSpec), ("eval", EvalSpec), ("dpo", DpoSpec)):
        assert set(example[key]) == set(schema.__struct_fields__)
    required = {"name": example["name"], "base": example["base"], "steps": 100}
    minimal = parse_recipe({**required, "data": {"path": example["data"]["path"]}})
    assert parse_recipe(example) == minimal
    assert load_recipe(EXAMPLE).digest != minimal.digest  # its data lies in its own folder


def test_a_recipe_is_written_with_every_comment_and_other_values() -> None:
    values = {
        "name": "a/b",
        "base": "./odd: name #1",
        "data": {"path": ["one.json", "two\nlines.json"], "replay": {"path": "g", "ratio": 0.5}},
        "preset": "quality",
        "target_modules": ["q_proj"],
        "neftune_alpha": None,
    }
    text = recipe_text(values, "mine.yaml")
    assert parse_recipe(parse_yaml(text, "")) == parse_recipe(values)
    assert "recipe check mine.yaml" in text
    # Line by line it is the example: only values differ, and `epochs` stands in the place of `steps`.
    comments = [line.partition("# ")[2] for line in EXAMPLE.read_text().splitlines()]
    written = [line.rpartition(" # ")[2] if " # " in line else line for line in text.splitlines()]
    for comment, line in zip(comments[2:], written[2:], strict=True):
        assert line.endswith(comment)
