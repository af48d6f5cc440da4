"""An export appears whole under its name or not at all, and never in place of something precious."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.base import read_base
from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
    OutOfSpaceError,
)
from tests.export.conftest import Bar
from tests.support.adapters import llama_modules

if TYPE_CHECKING:
    from pathlib import Path

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

Usage = namedtuple("Usage", "total used free")


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def breaking(error: BaseException | type[BaseException], at: float) -> Any:
    """Progress that raises `error` once `at` of the writing is done."""

    @contextmanager
    def progress(what: str, total: float | None) -> Any:
        def on_advance(done: float) -> None:
            if what.startswith("Writing") and total is not None and done >= at * total:
                raise error

        yield Bar(on_advance)

    return progress


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, AdapterHubError("no"), OSError(5, "I/O error"), MemoryError]
)
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_nothing_is_left_after_an_error_or_ctrl_c_in_the_middle(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    error: Any,
    at: float,
) -> None:
    # Of one shard, none is finished before all is; what several leave is told in test_resume.
    into = tmp_path / "out" / "model"
    with pytest.raises(error if isinstance(error, type) else type(error)):
        exporter([make_adapter()], tiny.llama(), into=into, progress=breaking(error, at))
    assert list(into.parent.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, AdapterHubError("no")])
def test_a_folder_to_be_replaced_is_intact_after_a_failure(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path, error: Any
) -> None:
    into = tmp_path / "out" / "model"
    into.mkdir(parents=True)
    (into / "mine.txt").write_text("precious")
    with pytest.raises(error if isinstance(error, type) else type(error)):
        exporter(
            [make_adapter()], tiny.llama(), into=into, overwrite=True, progress=breaking(error, 0.5)
        )
    assert listing(into.parent) == {"model/mine.txt": b"precious"}


def test_a_failure_of_the_very_last_step_leaves_the_old_folder(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    into = tmp_path / "out" / "model"
    into.mkdir(parents=True)
    (into / "mine.txt").write_text("precious")
    rename = os.rename

    def failing(source: Any, target: Any, **more: Any) -> None:
        if str(target) == str(into) and ".old" not in str(source):
            raise OSError(5, "I/O error")
        rename(source, target, **more)

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(OSError, match="I/O"):
        exporter([make_adapter()], tiny_llama, into=into, overwrite=True)
    assert listing(into.parent) == {"model/mine.txt": b"precious"}


def test_an_existing_folder_is_refused_without_overwrite_and_left_alone(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    into = tmp_path / "out" / "model"
    into.mkdir(parents=True)
    (into / "mine.txt").write_text("precious")
    with pytest.raises(ConflictError, match="--overwrite") as caught:
        exporter([make_adapter("a")], tiny_llama, into=into)
    assert caught.value.exit_code == 1
    assert listing(into.parent) == {"model/mine.txt": b"precious"}
    exporter([make_adapter("b")], tiny_llama, into=into, overwrite=True)
    assert not (into / "mine.txt").exists()
    assert [path.name for path in into.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_under_the_name(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    overwrite: bool,
) -> None:
    into = tmp_path / "out" / "model"
    into.parent.mkdir()
    into.write_text("precious")
    with pytest.raises(ConflictError, match="is a file"):
        exporter([make_adapter()], tiny_llama, into=into, overwrite=overwrite)
    assert into.read_text() == "precious"


def test_an_empty_folder_may_be_filled(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    into = tmp_path / "empty"
    into.mkdir()
    assert exporter([make_adapter()], tiny_llama, into=into).folder == into
    assert (into / "config.json").is_file()


def test_the_base_itself_is_never_written_into(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    before = listing(base)
    with pytest.raises(ConflictError):
        exporter([make_adapter("a")], base, into=base)
    assert listing(base) == before
    with pytest.raises(AdapterHubError):
        exporter([make_adapter("b")], base, into=base, overwrite=True)
    assert listing(base) == before


def test_a_disk_too_small_is_seen_before_a_byte_is_written(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = sum(info.end - info.start for info in read_base(tiny_llama).tensors.values())
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(size * 2, size + 1, size - 1))
    with pytest.raises(OutOfSpaceError, match="free") as caught:
        exporter([make_adapter("a")], tiny_llama, into=tmp_path / "deep" / "er" / "model")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_fills_up_on_the_way(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    import errno

    into = tmp_path / "out" / "model"
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OutOfSpaceError):
        exporter([make_adapter()], tiny_llama, into=into, progress=breaking(full, 0.3))
    assert list(into.parent.iterdir()) == []


def test_the_run_is_recorded(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    exporter([make_adapter("a", modules=llama_modules())], tiny_llama)
    with pytest.raises(KeyboardInterrupt):
        exporter([make_adapter("b")], tiny_llama, progress=breaking(KeyboardInterrupt, 0.5))
    ends = sorted(
        json.loads((run / "events.jsonl").read_text().splitlines()[-1])["event"]
        for run in exporter.store.runs_dir.iterdir()
    )
    assert ends == ["done", "interrupted"]
