"""An export appears whole under its name or not at all, and what can't be baked is refused by name."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base import read_base
from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
    FormatError,
    IncompatibleError,
    NotFoundError,
    OutOfSpaceError,
    UnsupportedError,
)
from tests.export.conftest import Bar
from tests.support.adapters import QV, llama_modules
from tests.support.attached import tensors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - the shape of shutil's own
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def breaking(error: BaseException | type[BaseException], at: float) -> Any:
    """Progress that raises `error` once `at` of the second bar, the writing, is done."""
    bars: list[int] = []

    @contextmanager
    def progress(_: str, total: float) -> Any:
        bars.append(1)

        def on_advance(done: float) -> None:
            if len(bars) == 2 and done >= at * total:
                raise error

        yield Bar(on_advance)

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt, AdapterHubError("no"), OSError(5, "I/O error"), MemoryError])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_nothing_is_left_after_an_error_or_ctrl_c_in_the_middle(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path, error: Any, at: float
) -> None:
    into = tmp_path / "out" / "model"
    with pytest.raises(error if isinstance(error, type) else type(error)):
        exporter([make_adapter()], tiny.llama(sharded=True), into=into, progress=breaking(error, at))
    assert list(into.parent.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, AdapterHubError("no")])
def test_a_folder_to_be_replaced_is_intact_after_a_failure(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path, error: Any
) -> None:
    into = tmp_path / "out" / "model"
    into.mkdir(parents=True)
    (into / "mine.txt").write_text("precious")
    with pytest.raises(error if isinstance(error, type) else type(error)):
        exporter([make_adapter()], tiny.llama(), into=into, overwrite=True, progress=breaking(error, 0.5))
    assert listing(into.parent) == {"model/mine.txt": b"precious"}


def test_a_failure_of_the_very_last_step_leaves_the_old_folder(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, overwrite: bool
) -> None:
    into = tmp_path / "out" / "model"
    into.parent.mkdir()
    into.write_text("precious")
    if not overwrite:
        with pytest.raises(ConflictError):
            exporter([make_adapter()], tiny_llama, into=into)
        assert into.read_text() == "precious"
    else:
        exporter([make_adapter()], tiny_llama, into=into, overwrite=True)
        assert [path.name for path in into.parent.iterdir()] == ["model"]


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
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


# What doesn't fit


@pytest.mark.parametrize("allow", [False, True])
def test_modules_the_base_lacks_are_named_allowed_or_not(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, allow: bool
) -> None:
    adapter = make_adapter(modules={**QV, "model.layers.9.self_attn.q_proj": (64, 64)})
    into = tmp_path / "out" / "model"
    with pytest.raises(IncompatibleError, match=r"model\.layers\.9\.self_attn\.q_proj") as caught:
        exporter([adapter], tiny_llama, into=into, allow_mismatch=allow)
    assert caught.value.exit_code == 5
    assert not into.exists()
    if allow:
        assert "--allow-mismatch" not in caught.value.hint, "it was said already, and doesn't help"


@pytest.mark.parametrize("allow", [False, True])
def test_other_shapes_are_named_allowed_or_not(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, allow: bool
) -> None:
    adapter = make_adapter(modules={"model.layers.0.mlp.up_proj": (128, 64)})
    with pytest.raises(IncompatibleError, match=r"up_proj.*\[128, 64\].*\[96, 64\]"):
        exporter([adapter], tiny_llama, allow_mismatch=allow)


def test_other_weights_are_refused_and_allowing_them_is_recorded(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    adapter = exporter.add(make_adapter(), base=str(tiny.llama()))
    with pytest.raises(IncompatibleError, match="fingerprint") as caught:
        exporter([adapter], tiny.llama(seed=1))
    assert caught.value.exit_code == 5
    done = exporter([adapter], tiny.llama(seed=1), allow_mismatch=True)
    record = json.loads((done.folder / "adapterhub.json").read_text())
    assert "fingerprint" in " ".join(record["allowed_mismatch"])


def test_any_of_several_adapters_may_be_the_one_that_does_not_fit(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    good = exporter.add(make_adapter("a"), base=str(tiny.llama()))
    bad = exporter.add(make_adapter("b", seed=1), base=str(tiny.llama(seed=1)))
    with pytest.raises(IncompatibleError, match="fingerprint"):
        exporter([good, bad], tiny.llama())


def test_the_base_is_found_by_any_parent_that_knows_it(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    exporter.store.bases.remember(read_base(tiny_llama, repo="org/tiny"))
    assert exporter([make_adapter("a", base="org/tiny")], None).base.path == tiny_llama.resolve()
    both = [make_adapter("b", base=None), make_adapter("c", base="org/tiny", seed=1)]
    assert exporter(both, None).base.path == tiny_llama.resolve()


def test_a_base_that_nobody_names_is_asked_for(exporter: Exporter, make_adapter: AdapterMaker) -> None:
    with pytest.raises(NotFoundError, match="--base") as caught:
        exporter([make_adapter(base=None)], None)
    assert caught.value.exit_code == 4


# What can't be added to


def quantised(source: Path, folder: Path, *, packed: bool, dtype: torch.dtype = torch.uint8) -> Path:
    """A copy of a model whose linear weights are packed (as bitsandbytes does) or stored in an 8-bit type."""
    shutil.copytree(source, folder)
    stored = load_file(folder / "model.safetensors")
    for name, tensor in list(stored.items()):
        if name.endswith("proj.weight"):
            stored[name] = (
                torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8) if packed else tensor.to(dtype)
            )
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("kind", ["packed", "float8", "int8"])
def test_a_quantised_base_is_refused_as_quantised(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path, kind: str
) -> None:
    dtypes = {"packed": torch.uint8, "float8": torch.float8_e4m3fn, "int8": torch.int8}
    base = quantised(tiny_llama, tmp_path / "quantised", packed=kind == "packed", dtype=dtypes[kind])
    into = tmp_path / "out" / "model"
    with pytest.raises(UnsupportedError, match="quantised") as caught:
        exporter([make_adapter()], base, into=into)
    assert "quantised" in caught.value.what
    assert not into.exists()


def test_float8_weights_without_a_word_in_the_configuration_are_refused_by_dtype(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    base = quantised(tiny_llama, tmp_path / "float8", packed=False, dtype=torch.float8_e4m3fn)
    document = json.loads((base / "config.json").read_text())
    del document["quantization_config"]
    (base / "config.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedError, match="F8_E4M3"):
        exporter([make_adapter()], base)


def test_a_sum_that_overflows_its_dtype_is_refused_naming_the_weight(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    into = tmp_path / "out" / "model"
    with pytest.raises(FormatError, match=r"q_proj.*F16"):
        exporter([make_adapter(scale=1.0)], tiny.llama(dtype="float16"), weights=[1e6], into=into)
    assert list(into.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True, "extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}}, "DoRA"),
        ({"extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}}, "lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"], "extra": {"base_model.model.lm_head.weight": torch.ones(160, 64)}}, "lm_head"),
        ({"bias": "lora_only", "extra": {f"{PREFIX}.bias": torch.ones(64)}}, "bias"),
        ({"peft_type": "ADALORA", "extra": {f"{PREFIX}.lora_E": torch.ones(4, 1)}}, "ADALORA"),
    ],
)
def test_more_than_a_plain_lora_is_not_exported(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        exporter([make_adapter(**settings)], tiny_llama)


def test_the_run_is_recorded(exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    exporter([make_adapter("a", modules=llama_modules())], tiny_llama)
    with pytest.raises(KeyboardInterrupt):
        exporter([make_adapter("b")], tiny_llama, progress=breaking(KeyboardInterrupt, 0.5))
    ends = sorted(
        json.loads((run / "events.jsonl").read_text().splitlines()[-1])["event"]
        for run in exporter.store.runs_dir.iterdir()
    )
    assert ends == ["done", "interrupted"]


def test_exporting_an_export_works(exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker) -> None:
    first = exporter([make_adapter("a")], tiny_llama).folder
    second = exporter([make_adapter("b", seed=1)], first).folder
    assert tensors(second).keys() == tensors(tiny_llama).keys()
    assert json.loads((second / "adapterhub.json").read_text())["adapters"][0]["name"] != "a"
