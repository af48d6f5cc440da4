"""A tiny chat base, rows it can learn, and trainings of a second or two on them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.chat import chat_base
from tests.support.trainings import recipe_document

if TYPE_CHECKING:
    from adapterhub.store import Store
    from adapterhub.trainer.train import Trained

    Training = Callable[..., Trained]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture
def document(tmp_path: Path, base: Path) -> dict[str, Any]:
    """A recipe as plain values: 12 steps on 60 rows, about a second."""
    return recipe_document(tmp_path, base)


@pytest.fixture
def write_recipe(tmp_path: Path, document: dict[str, Any]) -> Callable[..., Path]:
    """write_recipe(key=value, ...) -> the path of the recipe with these keys changed."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**document, **changes}))
        return path

    return write


@pytest.fixture
def train_tiny(store: Store, write_recipe: Callable[..., Path]) -> Training:
    """train_tiny(move=, redo=, resume=, to=a store, **changes of the recipe) -> Trained."""
    from adapterhub.cli.output import Output
    from adapterhub.trainer.recipe import load_recipe
    from adapterhub.trainer.train import train

    def run(
        *,
        move: bool = False,
        redo: bool = False,
        resume: bool = False,
        to: Store | None = None,
        **changes: Any,
    ) -> Trained:
        out = Output(stderr=io.StringIO())
        recipe = load_recipe(write_recipe(**changes))
        return train(to or store, recipe, out, move=move, redo=redo, resume=resume)

    return run


def events(store: Store) -> list[dict[str, Any]]:
    """The events of the only run in `store`."""
    (run,) = store.runs_dir.iterdir()
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
