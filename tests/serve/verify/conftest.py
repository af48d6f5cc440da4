"""A base with three adapters of large effect, and a stand-in that serves them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.serve.verify.standin import StandIn
from tests.support.models import ModelMaker, peft_adapter

ADAPTERS: dict[str, dict[str, Any]] = {
    "tone": {"r": 4, "lora_alpha": 16, "targets": ("q_proj", "v_proj", "down_proj")},
    "terms": {"r": 8, "lora_alpha": 8, "targets": ("o_proj", "up_proj", "gate_proj")},
    "poems": {"r": 2, "lora_alpha": 8, "targets": ("v_proj", "o_proj", "down_proj")},
}


@pytest.fixture(scope="session")
def made(tiny: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Made once; `server` is a copy for one test."""
    base, root = tiny.llama(), tmp_path_factory.mktemp("verify")
    folders = {
        name: peft_adapter(base, root / name, seed=place, strength=0.25, **fields)
        for place, (name, fields) in enumerate(ADAPTERS.items())
    }
    return StandIn(base, folders)


@pytest.fixture
def server(made: StandIn) -> StandIn:
    """Healthy. Models are shared: put another in a name's place, change none."""
    mine = copy.copy(made)
    mine.folders, mine.models, mine.cache = dict(made.folders), dict(made.models), {}
    mine.takes, mine.in_flight = {}, copy.copy(made.in_flight)
    return mine


@pytest.fixture
def base(tiny_llama: Path) -> Path:
    return tiny_llama
