"""`adapterhub recipe`: what it writes passes its own check, what it plans is what trains, and nothing is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.errors import ExitCode
from adapterhub.trainer.presets import PRESETS
from adapterhub.trainer.recipe import load_recipe
from adapterhub.yamltext import parse_yaml
from tests.cli.calling import call
from tests.support.chat import chat_rows, write_rows

Write = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a base and a file of 60 rows."""
    write_rows(tmp_path / "rows.json", chat_rows(60))
    (tmp_path / "my-base").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_what_init_writes_passes_check(place: Path, preset: str | None) -> None:
    flags = ["--preset", preset] if preset else []
    (place / "deep").mkdir()
    said = call(
        "recipe", "init", "deep/r.yaml", "--base", "my-base", "--data", "rows.json", "-q", *flags
    )
    assert (said.code, said.out) == (0, "deep/r.yaml\n")
    recipe = load_recipe(place / "deep" / "r.yaml")
    assert Path(recipe.base).resolve() == (place / "my-base").resolve()
    checked = call("recipe", "check", "deep/r.yaml", "--json")
    assert checked.code == 0
    assert checked.json["rows"] == 60
    assert checked.json["remarks"] == [
        remark for remark in checked.json["remarks"] if "steps are few" in remark["words"]
    ]


def test_init_prints_without_a_file_and_never_overwrites_one(place: Path) -> None:
    printed = call("recipe", "init", "--name", "my/own", "--set", "eval.every=5")
    document = parse_yaml(printed.out, "")
    assert (document["name"], document["eval"]["every"]) == ("my/own", 5)
    assert call("recipe", "init", "--name", "my/own", "-q").out.startswith("# A training recipe")
    mine = place / "mine.yaml"
    mine.write_text("mine")
    refused = call("recipe", "init", mine, "--json")
    assert refused.code == ExitCode.FAILED
    assert "--overwrite" in refused.error["hint"]
    assert mine.read_text() == "mine"
    assert call("recipe", "init", mine, "--overwrite", "--json").json["path"] == str(mine)
    assert "every key" in mine.read_text()


def test_init_refuses_what_no_check_would_pass(place: Path) -> None:
    for words in (["--set", "rank=0"], ["--preset", "quikc"], ["--name", "../up"]):
        said = call("recipe", "init", "new.yaml", *words)
        assert said.code == ExitCode.USAGE
        assert not (place / "new.yaml").exists()
    preferences = parse_yaml(call("recipe", "init", "--objective", "dpo").out, "")
    assert (preferences["objective"], preferences["packing"]) == ("dpo", False)


def test_check_prints_the_plan_in_sections_and_all_of_it_as_json(write_recipe: Write) -> None:
    path = write_recipe(max_length="auto", kind="dora", target_modules="qv")
    shown = call("recipe", "check", path)
    assert shown.code == 0
    for words in ("60: ", "held out", "12, which is", "dora", "2 q_proj, 2 v_proj"):
        assert words in shown.out
    assert "warning: Only the q and v projections are trained" in shown.err
    assert "warning: vLLM can't serve a DoRA adapter" in shown.err
    plan = call("recipe", "check", path, "--json").json
    assert plan["steps"] == 12
    assert plan["optimizer"] == "adamw"
    assert plan["target_modules"] == {"q_proj": 2, "v_proj": 2}
    assert plan["max_length"] % 8 == 0
    assert plan["max_length"] < 256
    assert plan["train_rows"] + plan["held_out_rows"] == 60
    assert (plan["evaluate_every"], plan["evaluations"], plan["save_every"]) == (20, 1, 20)
    assert {remark["severity"] for remark in plan["remarks"]} == {"warn"}
    assert call("recipe", "check", path, "-q").out == "12\n"


def test_check_takes_sets_and_is_what_a_dry_run_prints(write_recipe: Write) -> None:
    path = write_recipe()
    flags = ["--set", "rank=4", "--set", "epochs=2", "--json"]
    checked, planned = (
        call(*words, *flags).json
        for words in (("recipe", "check", path), ("train", path, "--dry-run"))
    )
    for plan in (checked, planned):
        assert plan["memory"].pop("available") > 0  # it changes from moment to moment
    assert checked == planned
    whole = call("recipe", "check", path, "--json").json
    assert checked["trainable_parameters"] * 2 == whole["trainable_parameters"]
    assert checked["epochs"] == 2
    assert call("recipe", "check", path, "--set", "rnak=4").code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"base": "org/nowhere"}, ExitCode.NOT_FOUND),
        ({"data": {"path": "nowhere.json"}}, ExitCode.NOT_FOUND),
        ({"target_modules": ["nowhere"]}, ExitCode.USAGE),
    ],
)
def test_what_would_not_train_does_not_check(
    write_recipe: Write, changes: dict[str, Any], code: ExitCode
) -> None:
    said = call("recipe", "check", write_recipe(**changes))
    assert (said.code, said.out) == (code, "")


def test_import_writes_a_recipe_that_checks_and_tells_every_key(place: Path) -> None:
    theirs = {
        "base_model": "my-base",
        "adapter": "qlora",
        "load_in_4bit": True,
        "datasets": [{"path": "rows.json", "type": "alpaca"}],
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_target_linear": True,
        "val_set_size": 0.2,
        "lora_modules_to_save": ["lm_head"],
        "wandb_project": "\x1b[31mred",
        "flash_attention": True,
        "micro_batch_size": 1,
        "num_epochs": 2,
        "learning_rate": "2e-4",
        "mystery": 1,
        "deepspeed": None,
    }
    (place / "their-lora.yml").write_text(yaml.safe_dump(theirs))
    said = call("recipe", "import", "their-lora.yml")
    assert said.code == 0
    document = parse_yaml(said.out, "")
    assert (document["name"], document["base"]) == ("their-lora", "my-base")
    for words in ("lora_modules_to_save", "flash_attention", "mystery", "Keys that say nothing"):
        assert words in said.err
    assert "look at lora_modules_to_save, mystery." in said.err
    assert "\x1b" not in said.err
    (place / "deep").mkdir()
    done = call(
        "recipe", "import", "their-lora.yml", "-o", "deep/r.yaml", "--name", "a/b", "--json"
    )
    assert {row["key"] for row in done.json["keys"]} >= set(theirs)
    plan = call("recipe", "check", "deep/r.yaml", "--json")
    assert plan.code == 0
    assert (plan.json["name"], plan.json["method"]) == ("a/b", "qlora")
    assert plan.json["epochs"] == 2
    assert "qlora" in json.dumps(done.json["recipe"])


def test_import_is_told_which_tool_or_tells_it(place: Path) -> None:
    both = {"base_model": "a", "model_name_or_path": "org/b", "dataset": "rows"}
    (place / "both.yml").write_text(yaml.safe_dump(both))
    assert "--from axolotl or" in call("recipe", "import", "both.yml").err
    said = call("recipe", "import", "both.yml", "--from", "llama-factory", "--base", "org/other")
    assert parse_yaml(said.out, "")["base"] == "org/other"
    assert "look at dataset rows, base_model" in said.err
    assert call("recipe", "import", "both.yml", "--from", "trl").code == ExitCode.USAGE
