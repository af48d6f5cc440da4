"""A sound recipe is passed without a word; each thing a colleague would stumble over is said, with what to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base import read_base
from adapterhub.trainer.recipe import parse_recipe
from adapterhub.trainer.remarks import Remark, remarks

SOUND: dict[str, Any] = {
    "name": "a",
    "base": "org/b",
    "data": {"path": "d.json"},
    "steps": 200,
}


def on(**changes: Any) -> list[Remark]:
    return remarks(parse_recipe({**SOUND, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "qlora", "rank": 64, "alpha": 16},
        {"rank": 256, "alpha": 32, "use_rslora": True},
        {"loraplus_ratio": 16, "neftune_alpha": 5, "dropout": 0.05, "learning_rate": 1e-4},
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]},
        {"objective": "dpo", "packing": False, "learning_rate": 5e-6},
    ],
)
def test_a_sound_recipe_is_passed_without_a_word(changes: dict[str, Any]) -> None:
    assert on(**changes) == []


@pytest.mark.parametrize(
    ("changes", "severity", "says", "change"),
    [
        ({"target_modules": "qv"}, "warn", "Dettmers et al. 2023, section 4", "all-linear"),
        ({"target_modules": ["v_proj", "q_proj"]}, "warn", "Only the q and v", "all-linear"),
        ({"target_modules": "qkvo"}, "note", "Only the attention", "all-linear"),
        ({"target_modules": ["embed_tokens"]}, "warn", "Only the embedding", "all-linear"),
        ({"kind": "dora"}, "warn", "can't serve a DoRA", "adapterhub export a"),
        ({"kind": "adalora"}, "warn", "can't serve", "kind: lora"),
        ({"rank": 1024, "alpha": 2048}, "warn", "more than vLLM serves, which is 512", "512"),
        ({"rank": 24}, "note", "slots of 32", "rank: 32"),
        ({"rank": 320, "alpha": 64, "init": "olora"}, "warn", "Rank 640 (twice 320", "of 256"),
        ({"rank": 64, "alpha": 64, "use_rslora": True}, "warn", "alpha/sqrt(rank)", "alpha: 16"),
        ({"alpha": 1}, "warn", "alpha/rank = 0.0625", "alpha: 32"),
        ({"learning_rate": 5e-3}, "warn", "0.005 is high for an adapter", "0.0002"),
        ({"learning_rate": 1e-6}, "warn", "ten times the rate", "0.0001"),
        ({"objective": "dpo", "packing": False}, "warn", "high for DPO", "2e-05"),
        ({"kind": "ia3"}, "warn", "low for (IA)3", "0.003"),
        ({"learning_rate": 1e-3, "loraplus_ratio": 16}, "warn", "B factors learn at 0.016", "lear"),
        ({"dropout": 0.5}, "warn", "0.5 is a lot", "dropout: 0.05"),
        ({"rank": 2, "alpha": 4, "dropout": 0.1}, "note", "little to overfit", "dropout: 0"),
        ({"neftune_alpha": 50}, "warn", "5 to 15", "neftune_alpha: 5"),
        ({"steps": 12}, "warn", "12 steps are few", "more steps"),
        ({"steps": None, "epochs": 9}, "note", "9 epochs are many", "patience"),
        ({"save_every": 500}, "note", "no checkpoint", "save_every: 50"),
        ({"data": {"path": "d", "held_out": 0}}, "warn", "the last one is kept", "held_out: 0.1"),
        ({"eval": {"rows": 0}}, "warn", "none is scored", "rows: 64"),
        ({"eval": {"every": 500}}, "note", "at the end alone", "every: 40"),
        ({"objective": "dpo", "learning_rate": 5e-6}, "note", "not packed", "packing: false"),
        ({"dpo": {"beta": 0.3}}, "note", "not used: the objective is sft", "objective: dpo"),
        ({"template": "t.jinja"}, "note", "not the base's own", "--chat-template t.jinja"),
    ],
)  # fmt: skip
def test_what_a_colleague_would_say_is_said_with_what_to_change(
    changes: dict[str, Any], severity: str, says: str, change: str
) -> None:
    found = [remark for remark in on(**changes) if says in remark.words]
    assert [remark.severity for remark in found] == [severity]
    assert change in found[0].change


def test_warnings_come_first_and_steps_that_epochs_make_count() -> None:
    recipe = parse_recipe({**SOUND, "steps": None, "epochs": 9})
    found = remarks(recipe, steps=9)
    assert [remark.severity for remark in found] == ["warn", "note"]
    assert "more epochs" in found[0].change


def test_what_the_base_can_do_is_looked_at(base: Path) -> None:
    known = read_base(base)
    (found,) = remarks(parse_recipe({**SOUND, "max_length": 2048}), known)
    assert "made for 1024 tokens" in found.words
    quantised = {**known.config, "quantization_config": {"quant_method": "awq"}}
    (found,) = remarks(parse_recipe(SOUND), replace(known, config=quantised))
    assert "quantised already (awq)" in found.words
