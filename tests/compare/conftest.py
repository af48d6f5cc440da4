"""`compared`: folders through the real store into `compare`, as `diff` does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.compare.similarity import Comparison, compare
from adapterhub.lora.adapter import opened
from adapterhub.store import Store

Compare = Callable[..., Comparison]


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about numbers: waiting for the disk would be most of their time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def compared(store: Store) -> Compare:
    """compared(folder, folder, ..., exact=False): the adapters are called after their folders."""

    def run(*folders: Path, **options: Any) -> Comparison:
        for folder in dict.fromkeys(folders):
            store.add_folder(folder, name=folder.name)
        parents = [store.resolve(folder.name) for folder in folders]
        with opened(store, parents, "compared", plain=False) as adapters:
            return compare(adapters, **options)

    return run
