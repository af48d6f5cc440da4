"""A pickled adapter becomes safetensors bit by bit, and a pickle that wants anything else does nothing at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapterhub.errors import AdapterHubError, ConflictError, FormatError, NotFoundError
from adapterhub.formats import convert, unpickle
from adapterhub.formats.convert import convert_into
from tests.store.watching import sha256
from tests.support.adapters import AdapterMaker

DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.fixture
def pickled(make_adapter: AdapterMaker) -> Callable[..., Path]:
    """pickled(content=None, zipped=True): a PEFT folder whose weights are a file of torch.save."""

    def make(content: Any = None, *, zipped: bool = True) -> Path:
        folder = make_adapter("old")
        weights = folder / "adapter_model.safetensors"
        content = load_file(weights) if content is None else content
        weights.unlink()
        torch.save(content, folder / "adapter_model.bin", _use_new_zipfile_serialization=zipped)
        return folder

    return make


@pytest.fixture
def building(tmp_path: Path) -> Path:
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_tensor_is_the_same_to_the_bit(
    zipped: bool, pickled: Callable[..., Path], building: Path
) -> None:
    shared = torch.randn(6, 8)
    odd = {
        "transposed": torch.randn(3, 5).t(),
        "a slice": shared[1:3, ::2],
        "shared": shared,
        "shared again": shared,
        "repeated": torch.randn(1, 4).expand(3, 4),
        "a parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "a number": torch.tensor(1.5),
        "nothing": torch.zeros(0, 4),
        "negative zero and more": torch.tensor([-0.0, float("inf"), float("-inf"), float("nan")]),
        "conjugated": torch.randn(2, 2, dtype=torch.complex64).conj(),
        **{str(dtype): torch.randn(4, 3).to(dtype) for dtype in DTYPES},
    }
    if zipped:  # torch itself can't read float8 back from the legacy format
        odd["float8"] = torch.randn(4, 3).to(torch.float8_e4m3fn)
    folder = pickled(odd, zipped=zipped)
    done = convert_into(folder, building)
    found = load_file(building / "adapter_model.safetensors")
    assert found.keys() == odd.keys()
    assert done.tensors == len(odd)
    for name, tensor in odd.items():
        expected = tensor.detach().resolve_conj().contiguous().flatten().view(torch.uint8)
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].flatten().view(torch.uint8), expected)


def test_the_other_files_come_along_and_the_source_stays_as_it_is(
    pickled: Callable[..., Path], building: Path
) -> None:
    folder = pickled()
    (folder / "more").mkdir()
    (folder / "more" / "notes.txt").write_text("kept")
    (folder / "optimizer.pt").write_text("not kept")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = convert_into(folder, building)
    made = {p.relative_to(building).as_posix() for p in building.rglob("*") if p.is_file()}
    assert made == {"adapter_config.json", "adapter_model.safetensors", "more/notes.txt"}
    assert done.notes == ("left out as the training's state: optimizer.pt",)
    assert done.from_sha256 == sha256((folder / "adapter_model.bin").read_bytes())
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_a_command_is_refused_and_it_never_runs(
    zipped: bool, pickled: Callable[..., Path], building: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    folder = pickled(
        {"x.lora_A.weight": torch.zeros(2, 2), "y": Evil(f"touch {canary}")}, zipped=zipped
    )
    with pytest.raises(FormatError, match="asks for more than tensors") as caught:
        convert_into(folder, building)
    assert "posix.system" in caught.value.why
    assert not canary.exists()
    assert not (building / "adapter_model.bin").exists()
    torch.load(folder / "adapter_model.bin", weights_only=False)  # it is a real one
    assert canary.exists()


def test_the_reader_could_open_nothing_even_if_it_were_fooled(tmp_path: Path) -> None:
    """What the process may still do once it is confined, tried out in such a process."""
    canary = tmp_path / "canary"
    program = f"""
import os, socket, sys
from adapterhub.formats.unpickle import _confine
tries = {{
    "a socket": lambda: socket.socket(),
    "a file": lambda: open({str(tmp_path / "other")!r}, "w"),
    "its own file": lambda: open(__file__),
    "memory": lambda: bytearray(2**30),
}}
_confine(2**28, 60)
for name, call in tries.items():
    try:
        call()
        print("could have", name)
    except (OSError, MemoryError):
        print("no", name)
sys.stdout.flush()
try:
    os.system("touch {canary}")
except OSError:
    pass
"""
    (tmp_path / "fooled.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "fooled.py"], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["no a socket", "no a file", "no its own file", "no memory"]
    assert not canary.exists()
    assert not (tmp_path / "other").exists()


def huge_storage(folder: Path) -> None:
    """A legacy file that declares a storage of 8 GB and holds none of it."""
    file = folder / "adapter_model.bin"
    torch.save({"a": torch.zeros(7777)}, file, _use_new_zipfile_serialization=False)
    before, after = b"M\x61\x1e", b"J" + (2**31 - 1).to_bytes(4, "little")
    data = file.read_bytes()
    assert data.count(before) == 2  # the storage's size and the tensor's shape
    file.write_bytes(data.replace(before, after))


def repeated_value(folder: Path) -> None:
    """One value that says it is 4 GB of them."""
    torch.save({"a": torch.zeros(1).expand(10**5, 10**4)}, folder / "adapter_model.bin")


def packed_storage(folder: Path) -> None:
    """A zip whose 400 MB of zeros take 2 MB."""
    file, plain = folder / "adapter_model.bin", folder / "plain"
    torch.save({"a": torch.zeros(100 * 10**6)}, plain)
    with zipfile.ZipFile(plain) as reader, zipfile.ZipFile(file, "w") as writer:
        for info in reader.infolist():
            packing = zipfile.ZIP_DEFLATED if info.file_size > 10**6 else zipfile.ZIP_STORED
            writer.writestr(info.filename, reader.read(info), packing, compresslevel=1)
    plain.unlink()
    assert file.stat().st_size < 10**7


@pytest.mark.parametrize("bomb", [huge_storage, repeated_value, packed_storage])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    bomb: Callable[[Path], None], pickled: Callable[..., Path], building: Path
) -> None:
    folder = pickled()
    bomb(folder)
    with pytest.raises(FormatError, match="unpacks to far more than its size"):
        convert_into(folder, building)


@pytest.mark.parametrize(
    ("zipped", "part"), [(True, 0.0), (True, 0.5), (False, 0.02), (False, 0.99)]
)
def test_a_file_that_is_cut_off_is_refused(
    zipped: bool, part: float, pickled: Callable[..., Path], building: Path
) -> None:
    folder = pickled(zipped=zipped)
    data = (folder / "adapter_model.bin").read_bytes()
    (folder / "adapter_model.bin").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(FormatError, match=r"can't be read as a file of torch\.save") as caught:
        convert_into(folder, building)
    assert caught.value.why.strip(".")
    assert "Fetch it again" in caught.value.hint


def test_what_is_no_tensor_is_refused_and_not_dropped(
    pickled: Callable[..., Path], building: Path
) -> None:
    with pytest.raises(FormatError, match="holds more than an adapter's tensors") as caught:
        convert_into(pickled({"a": torch.zeros(2), "epoch": 3}), building)
    assert caught.value.why == "'epoch' is a int, not a named tensor."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "it holds a list"),
        ({"state_dict": {"a": torch.zeros(2)}}, "'state_dict' is a dict"),
        ({1: torch.zeros(2)}, "'1' is a Tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "sparse"),
        ({"a": torch.zeros(2, device="meta")}, "meta"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, "complex128"),
    ],
)
def test_only_a_table_of_plain_tensors_is_taken(content: Any, words: str) -> None:
    with pytest.raises(unpickle._Refused, match=words):
        unpickle._tensors(content)


def test_a_reader_that_takes_too_long_is_ended(
    pickled: Callable[..., Path], building: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SECONDS", 0.01)
    with pytest.raises(AdapterHubError) as caught:
        convert_into(pickled(), building)
    assert "ended after 0.01 seconds" in caught.value.why


def test_what_the_reader_says_it_wrote_is_not_believed(
    pickled: Callable[..., Path], building: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader whose answer names another value than its file holds, as a fooled one might."""
    real = subprocess.run

    def lying(*arguments: Any, **keywords: Any) -> Any:
        done = real(*arguments, **keywords)
        answer = json.loads(done.stdout)
        answer["tensors"][0][3] = "0" * 64
        done.stdout = json.dumps(answer).encode()
        return done

    monkeypatch.setattr(subprocess, "run", lying)
    with pytest.raises(FormatError, match="doesn't hold what was read"):
        convert_into(pickled(), building)


def test_there_must_be_something_to_convert(
    pickled: Callable[..., Path], make_adapter: AdapterMaker, building: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConflictError, match="safetensors already"):
        convert_into(make_adapter("new"), building)
    with pytest.raises(NotFoundError, match="There is no"):
        convert_into(tmp_path / "nowhere", building)
    folder = pickled()
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "adapter_config.json").unlink()
    with pytest.raises(NotFoundError, match="holds no adapter"):
        convert_into(tmp_path / "bare", building)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(NotFoundError, match="holds no pickled weights"):
        convert_into(folder, building)


def test_the_file_itself_may_be_named(pickled: Callable[..., Path], building: Path) -> None:
    convert_into(pickled() / "adapter_model.bin", building)
    assert (building / "adapter_model.safetensors").is_file()
