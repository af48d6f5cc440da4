"""Exports in 4 bits: a bitsandbytes checkpoint to the bit, and what llm-compressor makes in an environment of its own."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from adapterhub.errors import ExternalToolError, MissingDependencyError, UsageError
from adapterhub.export.quantize.calibrated import (
    LIBRARY,
    VARIABLE,
    find_python,
    quantise_calibrated,
    read_calibration,
)
from adapterhub.export.quantize.fourbit import FourBit
from adapterhub.export.quantize.run import Rows, export_calibrated
from adapterhub.merge.recipe import make_recipe
from adapterhub.settings import read_settings
from tests.cli.calling import call
from tests.export.conftest import Bar, silent
from tests.support.adapters import HEAD, llama_modules
from tests.support.attached import logits, tensors
from tests.support.chat import chat_base, chat_rows, write_rows
from tests.support.fourbit import load_in_4bit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.export.conftest import Exporter
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker


def check_as_saved_by_transformers(written: Path, merged: Path, saved: Path, dtype: str) -> None:
    """`written` against the merged model, loaded in 4 bits by transformers and saved again: tensors, settings, logits."""
    from transformers import AutoModelForCausalLM

    model = load_in_4bit(merged, FourBit("nf4", double=True, dtype=dtype))
    model.save_pretrained(saved)
    ours, theirs = tensors(written), tensors(saved)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    configs = [json.loads((folder / "config.json").read_text()) for folder in (written, saved)]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    loaded: Any = AutoModelForCausalLM.from_pretrained(written)
    assert loaded.dtype == model.dtype
    assert (logits(loaded) == logits(model)).all()


@pytest.mark.parametrize(
    ("dtype", "tied", "sharded"),
    [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)],
)
def test_nf4_is_what_transformers_saves_of_the_merged_model(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    dtype: str,
    tied: bool,
    sharded: bool,
) -> None:
    base = tiny.llama(dtype=dtype, tied=tied, sharded=sharded, inner=128)
    modules = {**llama_modules("q_proj", "o_proj"), **HEAD}
    adapter = exporter.add(make_adapter(modules=modules, scale=0.2))
    merged = exporter([adapter], base).folder
    done = exporter([adapter], base, quantize="nf4")
    check_as_saved_by_transformers(done.folder, merged, tmp_path / "saved", dtype)
    assert done.untied is tied
    record = json.loads((done.folder / "adapterhub.json").read_text())
    assert (record["quantize"]["method"], record["base_view"]["view"]) == ("nf4", "original")


def test_nf4_of_a_merge_whose_rows_end_within_blocks(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    base = tiny.llama(dtype="bfloat16", inner=40)  # rows of 40 values, blocks of 64
    adapters = [
        exporter.add(make_adapter(f"a{seed}", modules={"model.layers.0.mlp.down_proj": (64, 40)}, seed=seed))
        for seed in range(2)
    ]  # fmt: skip
    merged = exporter(adapters, base, "ties", density=0.5).folder
    done = exporter(adapters, base, "ties", density=0.5, quantize="nf4")
    model = load_in_4bit(merged, FourBit("nf4", double=True, dtype="bfloat16"))
    model.save_pretrained(tmp_path / "saved")
    ours, theirs = tensors(done.folder), tensors(tmp_path / "saved")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_nf4_of_conv1d_weights(
    exporter: Exporter, tiny: ModelMaker, make_peft_adapter: Any, tmp_path: Path
) -> None:
    base = tiny.gpt2()
    folder = make_peft_adapter(
        base, r=4, targets=("c_attn", "c_proj"), strength=0.2, fan_in_fan_out=True
    )
    adapter = exporter.add(folder)
    merged = exporter([adapter], base).folder
    done = exporter([adapter], base, quantize="nf4")
    check_as_saved_by_transformers(done.folder, merged, tmp_path / "saved", "float32")


def test_without_an_environment_the_commands_that_make_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    home = tmp_path / "home"
    with pytest.raises(MissingDependencyError) as told:
        find_python(home, None)
    folder = home / "tools" / "quantize"
    assert f"python3 -m venv {folder} && {folder}/bin/pip install {LIBRARY}" in str(told.value.hint)


def test_the_environment_is_the_variables_then_the_settings_then_the_homes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(folder: Path) -> Path:
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        return folder / "bin" / "python"

    monkeypatch.delenv(VARIABLE, raising=False)
    home = tmp_path / "home"
    own = made(home / "tools" / "quantize")
    assert find_python(home, None) == own
    (home / "config.toml").write_text(f'[tools]\nquantize = "{tmp_path / "mine"}"\n')
    mine = made(tmp_path / "mine")
    assert find_python(home, read_settings(home / "config.toml").tools.quantize) == mine
    other = made(tmp_path / "other")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    assert find_python(home, str(tmp_path / "mine")) == other


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return chat_base(tmp_path / "base")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.json", chat_rows(30))
    return tmp_path / "rows.json"


def test_rows_that_are_scored_never_calibrate(chat: Path, rows: Path) -> None:
    found = read_calibration(rows, chat, most=10)
    assert (len(found.rows), len(found.held_out)) == (10, 6)
    assert not {tuple(row["ids"]) for row in found.held_out} & set(found.rows)
    assert all(0 < sum(row["trained"]) < len(row["ids"]) for row in found.held_out), "answers count"
    shuffled = rows.with_name("shuffled.json")
    shuffled.write_text(json.dumps(json.loads(rows.read_text())[::-1]))
    assert read_calibration(shuffled, chat, most=10) == found


def test_a_single_row_is_too_few(chat: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "one.json", chat_rows(1))
    with pytest.raises(UsageError, match="calibration takes some"):
        read_calibration(tmp_path / "one.json", chat)


@pytest.mark.slow
def test_a_worker_that_fails_is_told_with_its_last_words(
    chat: Path, rows: Path, tmp_path: Path
) -> None:
    # This Python has no llm-compressor: the model is loaded and scored, then calibration fails.
    (tmp_path / "out").mkdir()
    stages: list[str] = []
    with pytest.raises(ExternalToolError, match="couldn't quantise") as told:
        quantise_calibrated(
            chat,
            tmp_path / "out",
            "gptq",
            read_calibration(rows, chat),
            python=Path(sys.executable),
            log=tmp_path / "log",
            stage=stages.append,
        )
    assert "No module named 'llmcompressor'" in str(told.value.why)
    assert stages == ["loading", "scoring the unquantised model", "calibrating"]
    assert str(tmp_path / "log") in str(told.value.hint)


@pytest.mark.slow
def test_gptq_by_llm_compressor_is_scored_and_loadable(
    exporter: Exporter, chat: Path, rows: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    if VARIABLE not in os.environ:
        pytest.skip(
            f"llm-compressor has an environment of its own: {VARIABLE}=FOLDER with {LIBRARY}"
        )
    parent = exporter.add(make_adapter(modules=llama_modules("q_proj"), scale=0.1))
    done = export_calibrated(
        exporter.store,
        [parent],
        make_recipe("linear", [parent.digest]),
        tmp_path / "out",
        "gptq",
        Rows(rows),
        base=str(chat),
        progress=silent,
    )
    record = json.loads((done.folder / "adapterhub.json").read_text())["quantize"]
    assert record == done.quantized
    assert (record["method"], record["group"]) == ("gptq", 64)
    assert 1 < record["perplexity_before"] < record["perplexity_after"] * 1.5
    config = json.loads((done.folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert (done.folder / "chat_template.jinja").is_file()


def test_an_nf4_export_that_was_cut_short_is_gone_on_with(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    base = tiny.llama(dtype="bfloat16", sharded=True, inner=128)
    adapter = exporter.add(make_adapter())
    whole = exporter([adapter], base, quantize="nf4").folder

    @contextmanager
    def cut(_: str, total: float | None) -> Iterator[Bar]:
        def stop(done: float) -> None:
            if done > 0.6 * (total or 0):
                raise OSError("gone")

        yield Bar(stop)

    with pytest.raises(OSError, match="gone"):
        exporter([adapter], base, quantize="nf4", into=tmp_path / "out", progress=cut)
    assert not (tmp_path / "out").exists()
    told: list[str] = []
    exporter([adapter], base, quantize="nf4", into=tmp_path / "out", resume=True, warn=told.append)
    assert told == [], "shards that were finished are kept"
    for shard in whole.glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--quantize", "int3"], "no way to quantise"),
        (["--quantize", "gptq"], "needs rows to calibrate with"),
        (["--quantize", "nf4", "--calibration", "rows.json"], "is for --quantize gptq and awq"),
        (["--quantize", "awq", "--calibration", "rows.json", "--resume"], "can't be resumed"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    exporter: Exporter, make_adapter: AdapterMaker, flags: list[str], what: str
) -> None:
    label = exporter.add(make_adapter()).label
    said = call("export", label, "-o", "out", *flags)
    assert said.code == 2
    assert what in said.err
