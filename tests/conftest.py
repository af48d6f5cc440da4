"""Fixtures every test may use: a store of its own, adapters made to measure, tiny base models.

make_adapter(name, rank=, alpha=, dtype=, modules=, ...)   a PEFT folder below tmp_path (tests.support.adapters)
tiny.llama(tied=, dtype=, sharded=, seed=), tiny.gpt2()    base models, made once a session (tests.support.models)
make_peft_adapter(base, name, **LoraConfig fields)         an adapter made and saved by PEFT itself
store                                                      an empty Store at tmp_path/home (= $ADAPTERHUB_HOME)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Helper modules are imported as `tests.support.*`, with `python -m pytest` and a bare `pytest` alike.
if (root := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.insert(0, root)

if TYPE_CHECKING:
    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """A test that leaves the process in another folder would break some other test, on some days only."""
    yield
    started = item.config.invocation_params.dir
    if Path.cwd() != started:
        os.chdir(started)
        pytest.fail("the test left the process in another folder")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the crash sweeps took, so that a run says how much it has seen."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    told = [
        value
        for report in reports
        for key, value in report.user_properties
        if key == "crash points"
    ]
    if told:
        terminalreporter.section("crash points")
        for line in told:
            terminalreporter.write_line(str(line))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can reach the developer's own store."""
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of this test's own."""
    from adapterhub.store import Store

    return Store.open(tmp_path / "home")


@pytest.fixture
def make_adapter(tmp_path: Path) -> AdapterMaker:
    """Writes PEFT folders to tmp_path/adapters/NAME."""
    from tests.support.adapters import AdapterMaker

    return AdapterMaker(tmp_path / "adapters")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """Makes tiny base models, each once a session. Read-only by agreement."""
    from tests.support.models import ModelMaker

    return ModelMaker(tmp_path_factory.mktemp("models"))


@pytest.fixture
def tiny_llama(tiny: ModelMaker) -> Path:
    """The folder of a tiny untied float32 LlamaForCausalLM; `tiny` makes the others."""
    return tiny.llama()


@pytest.fixture
def make_peft_adapter(tmp_path: Path) -> Callable[..., Path]:
    """make_peft_adapter(base, name="peft", **fields of LoraConfig) -> a folder PEFT saved."""
    from tests.support.models import peft_adapter

    def make(base: Path, name: str = "peft", **config: Any) -> Path:
        return peft_adapter(base, tmp_path / "adapters" / name, **config)

    return make
