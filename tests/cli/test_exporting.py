"""What `export` refuses before anything is read, and in which words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import ExitCode
from tests.cli.calling import call

if TYPE_CHECKING:
    from pathlib import Path

    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker


@pytest.fixture
def tone(store: Store, make_adapter: AdapterMaker) -> str:
    store.add_folder(make_adapter("tone"))
    return "tone"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--quantize", "nf4", "--verify-all"], ExitCode.USAGE, "Verify the unquantised export"),
        (["--verify-all", "--no-verify"], ExitCode.USAGE, "contradict each other"),
        (["--quantize", "int3"], ExitCode.USAGE, "Use --quantize nf4, gptq or awq"),
        (["--quantize", "gptq"], ExitCode.USAGE, "--calibration rows.jsonl"),
        (["--calibration", "rows.jsonl"], ExitCode.USAGE, "Nothing else looks at rows"),
        (["--memory", "3"], ExitCode.USAGE, "'3' for --memory is no size"),
        (["--weights", "1,2"], ExitCode.USAGE, "2 weights were given for 1 adapter."),
        (["--base-view", "int8"], ExitCode.USAGE, "is no view of a base"),
    ],
)
def test_contradictions_are_usage_errors(
    tone: str, tiny_llama: Path, tmp_path: Path, words: list[str], code: ExitCode, said: str
) -> None:
    done = call("export", tone, "--base", tiny_llama, "-o", tmp_path / "model", *words)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert not (tmp_path / "model").exists()


def test_a_file_is_never_overwritten_by_a_folder(
    tone: str, tiny_llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    done = call("export", tone, "--base", tiny_llama, "-o", file, "--overwrite")
    assert done.code == ExitCode.FAILED
    assert "is a file" in done.err
    assert file.read_text() == "mine"


def test_an_adapter_with_whole_weights_is_not_said_to_be_unfit_for_export(
    store: Store, make_adapter: AdapterMaker
) -> None:
    import torch

    extra = {"base_model.model.lm_head.weight": torch.ones(160, 64)}
    folder = make_adapter("head", modules_to_save=["lm_head"], extra=extra)
    assert "not exported" not in call("add", folder, "--name", "head").err


def test_json_has_numbers_where_people_get_words(
    tone: str, tiny_llama: Path, tmp_path: Path
) -> None:
    words: list[str | Path] = ["export", tone, "--base", tiny_llama, "--no-verify", "-o"]
    document = call(*words, tmp_path / "a", "--json").json
    assert document["changed"].keys() == {"tensors", "of"}
    assert document["size"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    assert document["base_view"]["view"] == "original"
    assert document["verified"] == {}
    told = call(*words, tmp_path / "b").out
    assert f"{document['changed']['tensors']} of {document['changed']['of']} tensors" in told
    assert "not checked" in told
