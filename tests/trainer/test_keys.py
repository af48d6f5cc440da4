"""The keys of a recipe in its text: where an error stands, and what each key means."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.trainer.explained import explain
from adapterhub.trainer.keys import key_at, keys_of, line_of
from adapterhub.trainer.recipe import read_recipe
from adapterhub.trainer.shelf import file_for, preset_text, presets
from adapterhub.trainer.writing import EXAMPLE

TEXT = EXAMPLE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "stands"),
    [
        ("rank: 16", "rank: x", "rank: x"),
        ("rank: 16", "rnak: 16", "rnak: 16"),
        ("  every: null", "  every: no", "  every: no"),
        ("  path: tone.json", "  pth: tone.json", "  pth: tone.json"),
        ("  path: tone.json", "", "data:"),
        ("steps: 100", "epochs: 1\nsteps: 100", "steps: 100"),
        ("seed: 0\n", "seed: 0\nrank: 2\n", "rank: 2"),
        ("dropout: 0.0", "dropout: .nan", "dropout: .nan"),
        ("name: support/tone", "name: 'a b'", "name: 'a b'"),
        ("kind: lora ", "kind: ia3 ", "kind: ia3"),
        ("template: null", "template: none.jinja", "template: none.jinja"),
        ("objective: sft", "objective: [sft", "dpo:"),
    ],
)
def test_an_error_stands_on_the_line_it_speaks_of(old: str, new: str, stands: str) -> None:
    text = TEXT.replace(old, new, 1)
    if new.startswith("kind: ia3"):
        text = text.replace("init: default", "init: pissa")
    with pytest.raises(Exception, match=r".") as raised:
        read_recipe(text, Path("recipe.yaml"))
    place = line_of(raised.value, text)  # type: ignore[arg-type]
    assert place is not None
    assert text.splitlines()[place].startswith(stands)


def test_what_concerns_no_key_stands_nowhere() -> None:
    text = TEXT.replace("steps: 100", "", 1)
    with pytest.raises(UsageError, match="how long to train") as raised:
        read_recipe(text, Path("recipe.yaml"))
    assert line_of(raised.value, text) is None


def test_every_key_of_a_recipe_is_explained_by_what_it_takes() -> None:
    for key in keys_of(TEXT):
        found = explain(key.path)
        assert found is not None, key
        assert found.accepted
    every = explain("eval.every")
    assert every is not None
    assert (
        every.words == "steps between evaluations; null: ten times a run, at least 20 steps apart"
    )
    assert (every.accepted, every.default) == ("a whole number, at least 1, or null", "null")
    replay = explain("data.replay")
    assert replay is not None
    assert replay.words.endswith("replayed rows for every training row of `path`"), (
        "the second line too"
    )
    assert explain("rnak") is None


def test_a_line_belongs_to_its_key_also_while_somebody_types() -> None:
    lines = TEXT.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("  held_out"))
    assert key_at(TEXT, place) == "data.held_out"
    assert key_at(TEXT, 0) == ""
    broken = TEXT.replace("rank: 16", "rank: [")
    assert keys_of(broken) == ()
    assert key_at(broken, place) == "data.held_out"


def test_each_preset_is_a_recipe_with_its_values() -> None:
    for preset in (*presets(), None):
        recipe = read_recipe(preset_text(preset), Path("recipe.yaml"))
        assert recipe.preset == preset
    assert file_for(TEXT) == "support-tone.yaml"
    assert file_for("name: [") == "recipe.yaml"
