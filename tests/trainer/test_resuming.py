"""How to go on with a training: by the run's own copy of its recipe, whatever became of the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import ConflictError, NotFoundError
from adapterhub.trainer.checkpoints import seal
from adapterhub.trainer.recipe import anywhere, load_recipe
from adapterhub.trainer.resuming import resumption, source

if TYPE_CHECKING:
    from adapterhub.store import Store
    from tests.trainer.conftest import Training

Write = Callable[..., Path]


def stopped(tmp_path: Path, recipe: Path) -> Path:
    """The folder of a training of `recipe` that has a checkpoint after step 7 and no result."""
    run = tmp_path / "runs" / "train-1"
    checkpoint = run / "scratch" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainable").write_bytes(b"x")
    seal(checkpoint, 7)
    (run / "recipe.json").write_text(json.dumps(anywhere(load_recipe(recipe)).document))
    return run


def test_it_goes_on_with_the_runs_own_copy(
    tmp_path: Path, write_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe()
    monkeypatch.chdir(tmp_path)
    run = stopped(tmp_path, Path("recipe.yaml"))  # typed as a relative path
    monkeypatch.chdir("/")
    found = resumption(run, ("train", str(recipe), "--processes", "2", "--seed=3", "--move"))
    copy = str(run / "recipe.json")
    assert found.words == ("train", copy, "--processes", "2", "--move", "--resume")
    assert (found.step, found.remarks) == (7, ())
    assert load_recipe(Path(copy)) == anywhere(load_recipe(recipe)), "paths lead to the same places"


def test_what_became_of_the_file_is_told(tmp_path: Path, write_recipe: Write) -> None:
    recipe = write_recipe()
    run = stopped(tmp_path, recipe)
    assert resumption(run, ("train", str(recipe))).remarks == ()
    write_recipe(rank=4)
    (said,) = resumption(run, ("train", str(recipe))).remarks
    assert "has changed since" in said
    recipe.unlink()
    (said,) = resumption(run, ("train", str(recipe))).remarks
    assert "no longer there" in said
    assert source(("merge", "x")) is None


def test_what_can_not_go_on_is_refused_in_words(tmp_path: Path, write_recipe: Write) -> None:
    run = stopped(tmp_path, write_recipe())
    (tmp_path / "data.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(NotFoundError, match=r"no longer at .*data\.json"):
        resumption(run)
    (run / "scratch" / "checkpoint-7" / "complete.json").unlink()
    with pytest.raises(NotFoundError, match="no checkpoint"):
        resumption(run)
    (run / "result.json").write_text("{}")
    with pytest.raises(ConflictError, match="is done"):
        resumption(run)


def test_a_run_keeps_its_recipe_with_absolute_paths(
    train_tiny: Training, store: Store, tmp_path: Path
) -> None:
    train_tiny(steps=1)
    (run,) = store.runs_dir.iterdir()
    document = json.loads((run / "recipe.json").read_text())
    assert document["data"]["path"] == str(tmp_path / "data.json")
