"""Ctrl-C and SIGTERM in long work: exit 130, the store as before, nothing under the final name, nothing left over."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.store import Store
from tests.cli.calling import call, start, wait_until
from tests.formats.raw import file_of, table_of
from tests.store.watching import left_over, listing
from tests.support.adapters import AdapterMaker
from tests.support.models import ModelMaker

SIGNALS = pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
WIDE = {f"model.layers.{layer}.self_attn.q_proj": (2048, 2048) for layer in range(40)}


def big_adapter(folder: Path, megabytes: int) -> Path:
    """A no-op adapter of that size whose file is one hole: quick to make, slow to copy."""
    width = megabytes * 2**20 // 2 // 4
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    header = table_of(
        {
            f"{name}.lora_A.weight": ("F32", [1, width], b""),
            f"{name}.lora_B.weight": ("F32", [width, 1], b""),
        }
    )
    for place, entry in enumerate(header.values()):
        entry["data_offsets"] = [place * width * 4, (place + 1) * width * 4]
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    )
    head = file_of(header)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 2 * width * 4)
    return folder


def interrupted(
    number: int, tmp_path: Path, words: list[str | Path], when: Callable[[str], bool]
) -> str:
    """Runs a command, sends the signal once `when(what it has said)` holds, and returns its stderr."""
    heard = tmp_path / "stderr"
    running = start(*words, stderr=heard)
    try:
        assert wait_until(lambda: when(heard.read_text()) or running.poll() is not None)
        assert running.poll() is None, f"it had ended before the signal: {heard.read_text()}"
        running.send_signal(number)
        out, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 130, heard.read_text()
    assert out == b""
    return heard.read_text()


@pytest.fixture
def home(store: Store, make_adapter: AdapterMaker, tmp_path: Path) -> Path:
    store.add_folder(make_adapter("before"))
    return tmp_path / "home"


@SIGNALS
def test_an_add_that_is_interrupted_leaves_no_trace(
    number: int, home: Path, tmp_path: Path
) -> None:
    folder = big_adapter(tmp_path / "big", 400)
    before = listing(home)
    copying = home / "store" / "tmp"

    def when(_: str) -> bool:
        return any(path.stat().st_size > 2**24 for path in copying.iterdir())

    said = interrupted(number, tmp_path, ["add", folder, "--name", "big"], when)
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert listing(home) == before
    assert left_over(home) == []


@pytest.mark.slow
@SIGNALS
def test_an_add_is_interrupted_while_its_values_are_checked_too(
    number: int, home: Path, tmp_path: Path
) -> None:
    folder = big_adapter(tmp_path / "big", 800)
    whole = (folder / "adapter_model.safetensors").stat().st_size
    before = listing(home)
    copying = home / "store" / "tmp"

    def when(_: str) -> bool:
        return any(path.stat().st_size == whole for path in copying.iterdir())

    interrupted(number, tmp_path, ["add", folder, "--name", "big"], when)
    assert listing(home) == before
    assert left_over(home) == []


@SIGNALS
def test_a_merge_that_is_interrupted_stores_nothing(
    number: int, home: Path, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    for seed in range(2):
        store.add_folder(make_adapter(f"wide{seed}", modules=WIDE, rank=8, seed=seed))
    before = listing(home)
    words: list[str | Path] = [
        "merge",
        "wide0",
        "wide1",
        "--method",
        "ties",
        "--name",
        "merged",
        "--workers",
        "1",
    ]
    said = interrupted(number, tmp_path, words, lambda heard: "Merging" in heard)
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert listing(home) == before
    assert left_over(home) == []
    (run,) = (home / "runs").iterdir()
    assert {path.name for path in run.iterdir()} == {"recipe.json", "events.jsonl"}
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["event"] == "interrupted"


@SIGNALS
def test_an_export_that_is_interrupted_leaves_no_folder_and_can_be_gone_on_with(
    number: int,
    home: Path,
    store: Store,
    make_adapter: AdapterMaker,
    tiny: ModelMaker,
    tmp_path: Path,
) -> None:
    base = big_base(tiny, tmp_path)
    store.add_folder(make_adapter("tone", modules={"model.layers.0.self_attn.q_proj": (64, 64)}))
    before = listing(home)
    out = tmp_path / "out"
    out.mkdir()
    words: list[str | Path] = ["export", "tone", "--base", base, "-o", out / "model"]
    said = interrupted(number, tmp_path, words, lambda _: one_shard_is_noted(out))
    assert "Interrupted" in said
    assert "1 of 2 shards" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert [path.name for path in out.iterdir()] == [".model.partial"]
    assert listing(home) == before


@pytest.mark.slow
def test_an_export_over_a_folder_that_is_interrupted_leaves_that_folder(
    home: Path, store: Store, make_adapter: AdapterMaker, tiny: ModelMaker, tmp_path: Path
) -> None:
    base = big_base(tiny, tmp_path)
    store.add_folder(make_adapter("tone", modules={"model.layers.0.self_attn.q_proj": (64, 64)}))
    out = tmp_path / "out" / "model"
    out.mkdir(parents=True)
    (out / "precious.txt").write_text("mine")
    words: list[str | Path] = ["export", "tone", "--base", base, "-o", out, "--overwrite"]
    interrupted(signal.SIGINT, tmp_path, words, lambda _: one_shard_is_noted(out.parent))
    assert {path.name for path in out.parent.iterdir()} == {"model", ".model.partial"}
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    assert (out / "precious.txt").read_text() == "mine"


def one_shard_is_noted(folder: Path) -> bool:
    return (folder / ".model.partial" / "state.json").exists()


def big_base(tiny: ModelMaker, tmp_path: Path) -> Path:
    """The tiny Llama with a second shard of 600 MB: one more tensor, a hole in the file."""
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny.llama(), base)
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    size = 600 * 2**20
    head = file_of(
        {"model.extra.weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    )
    with (base / "model-00002-of-00002.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    from adapterhub.formats.safetensors import TensorFile

    with TensorFile(base / "model-00001-of-00002.safetensors") as first:
        names = dict.fromkeys(first.infos, "model-00001-of-00002.safetensors")
    names["model.extra.weight"] = "model-00002-of-00002.safetensors"
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": names})
    )
    return base


@pytest.mark.slow
def test_what_was_interrupted_works_the_next_time(home: Path, tmp_path: Path) -> None:
    folder = big_adapter(tmp_path / "big", 200)
    copying = home / "store" / "tmp"
    interrupted(
        signal.SIGINT, tmp_path, ["add", folder, "--name", "big"], lambda _: any(copying.iterdir())
    )
    assert call("add", folder, "--name", "big").code == 0
