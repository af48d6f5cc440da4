"""Fixtures for tests of the store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from adapterhub.store import Store
    from adapterhub.store.catalogue.catalogue import Catalogue
    from tests.support.adapters import AdapterMaker


@pytest.fixture
def folders(make_adapter: AdapterMaker) -> list[Path]:
    """Three adapters of one shape."""
    return [make_adapter(f"a{n}", seed=n) for n in range(3)]


@pytest.fixture
def catalogue(store: Store) -> Catalogue:
    """The catalogue of the test's store."""
    from adapterhub.store.catalogue.catalogue import Catalogue

    return Catalogue(store.layout)


@pytest.fixture
def gemma(tiny_llama: Path, tmp_path: Path) -> Path:
    """A base in a folder that is called after no repository."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "weights"))
