"""What the tests of serving share: a store with adapters in it, and a stand-in for vLLM that starts in no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.store import Store
from tests.support.adapters import AdapterMaker
from tests.support.stand_in import free_port, write_stand_in


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """An executable that behaves like `vllm serve`."""
    return write_stand_in(tmp_path / "stand-in" / "vllm")


@pytest.fixture
def base(store: Store, tiny_llama: Path) -> Path:
    """The tiny Llama, remembered as org/tiny."""
    store.bases.remember(store.bases.open(str(tiny_llama), repo="org/tiny"))
    return tiny_llama


@pytest.fixture
def add(store: Store, base: Path, make_adapter: AdapterMaker) -> Callable[..., str]:
    """add(name, **fields of make_adapter): an adapter of org/tiny in the store; returns its digest."""

    def put(name: str, **fields: object) -> str:
        folder = make_adapter(name.replace("/", "-"), **fields)  # type: ignore[arg-type]
        return store.add_folder(folder, name=name).digest

    return put


@pytest.fixture
def port() -> int:
    """A port nobody listens on."""
    return free_port()
