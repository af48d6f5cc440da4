"""A tiny chat base, adapters on it that do something, and a data file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.chat import chat_base, chat_rows, write_rows
from tests.support.models import peft_adapter

if TYPE_CHECKING:
    from adapterhub.store import Store


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = chat_rows(30)
    for i, row in enumerate(rows):  # different lengths, so that batches are padded
        row["output"] += " It is a fine colour." * (i % 4)
    return write_rows(tmp_path / "data.json", rows)


@pytest.fixture
def add(store: Store, base: Path, tmp_path: Path) -> Callable[..., str]:
    """add(name, seed=) puts a random adapter on the base into the store; returns its digest."""

    def make(name: str, seed: int = 0) -> str:
        folder = peft_adapter(base, tmp_path / f"peft-{name}", seed=seed, strength=0.2, r=4)
        return store.add_folder(folder, name=name, base=str(base)).digest

    return make
