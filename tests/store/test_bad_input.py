"""What must not come in: each bad adapter is refused with what, why and what to type next, and the store is as before."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.formats.safetensors import BLOCK_BYTES
from adapterhub.store import Store
from tests.cli.calling import call
from tests.formats.raw import file_of, pair, sound_file, table_of
from tests.store.watching import unchanged
from tests.support.adapters import AdapterMaker

Spoil = Callable[[Path], None]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "model.layers.0.self_attn.q_proj"
A, B = f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"


def bytes_of(data: bytes) -> Spoil:
    return lambda folder: void((folder / WEIGHTS).write_bytes(data))


def void(_: object) -> None:
    """Takes a value where none is wanted."""


def cut(length: int) -> Spoil:
    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[:length])

    return spoil


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Changes the JSON of the header and leaves the data."""

    def spoil(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        table = json.loads(data[8 : 8 + length])
        change(table)
        (folder / WEIGHTS).write_bytes(file_of(table, data[8 + length :]))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        found = {name: tensor.clone() for name, tensor in found.items()}
        change(found)
        save_file(found, folder / WEIGHTS)

    return spoil


def config(**fields: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**document, **fields}))

    return spoil


def config_bytes(data: bytes) -> Spoil:
    return lambda folder: void((folder / CONFIG).write_bytes(data))


def one_value(value: float, dtype: torch.dtype, where: str = B, place: int = -1) -> Spoil:
    def change(found: dict[str, torch.Tensor]) -> None:
        found.update({name: tensor.to(dtype) for name, tensor in found.items()})
        found[where].view(-1)[place] = value

    return tensors(change)


def late_nan(folder: Path) -> None:
    """In the second block that is read of a large tensor, at the very end."""
    values = np.zeros(BLOCK_BYTES // 4 + 4, "<f4")
    values[-1] = np.nan
    big = {"base_model.model.head.weight": ("F32", [len(values)], values.tobytes())}
    (folder / WEIGHTS).write_bytes(sound_file({**pair(Q), **big}))


def links(name: str) -> Spoil:
    """Replaces a file by a link to the same bytes outside the folder."""

    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return spoil


def secret(folder: Path) -> None:
    (folder.parent / "secret").write_text("private")
    (folder / "notes.txt").symlink_to("../secret")


def snapshots_secret(folder: Path) -> None:
    """A folder that only looks like the Hub's cache: two levels above lies somebody's home."""
    (folder.parent / "id_rsa").write_text("private")
    place = folder.parent / "snapshots" / folder.name
    place.parent.mkdir()
    folder.rename(place)
    folder.symlink_to(place)
    (place / "notes.txt").symlink_to("../../id_rsa")


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def bomb(folder: Path) -> bytes:
    return pickle.dumps(Bomb(folder.parent / "the-bomb-went-off"), protocol=2)


def torch_bomb(folder: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(folder.parent / "the-bomb-went-off"), buffer)
    return buffer.getvalue()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(torch_bomb(folder))


def odd_name(name: str) -> Spoil:
    return lambda folder: void((folder / name).write_text("x"))


def renames(before: str, after: str) -> Spoil:
    return tensors(lambda t: t.update({key.replace(before, after): t.pop(key) for key in list(t)}))


# The case -> how the adapter is spoiled, and words that the message must have.
CASES: dict[str, tuple[Spoil, str]] = {
    "no safetensors file": (
        bytes_of(b"<html>404 not found</html>" * 9),
        "not a sound safetensors file",
    ),
    "an empty file": (bytes_of(b""), "not a sound safetensors file"),
    "a pointer of git lfs": (
        bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"),
        "not a sound",
    ),
    "truncated in the data": (cut(4000), "truncated"),
    "truncated in the header": (cut(100), "announces a header"),
    "truncated by a byte": (cut(-1), "truncated"),
    "overlapping tensors": (
        bytes_of(
            file_of(
                {A: table_of(pair(Q))[A], B: table_of(pair(Q))[B] | {"data_offsets": [512, 1536]}},
                b"\0" * 1536,
            )
        ),
        "overlap",
    ),
    "offsets behind the end": (
        header(lambda t: t[A].update(data_offsets=[n + 2**30 for n in t[A]["data_offsets"]])),
        "but the file has",
    ),
    "a hole": (
        bytes_of(
            file_of(
                {
                    k: v | {"data_offsets": [n + 8 for n in v["data_offsets"]]}
                    for k, v in table_of(pair(Q)).items()
                },
                b"\0" * 2056,
            )
        ),
        "belong to no tensor",
    ),
    "a header of 2^60 bytes": (bytes_of(struct.pack("<Q", 2**60) + b"{}"), "announces a header"),
    "a tensor twice": (bytes_of(file_of(b'{"a":1,"a":2}')), "twice"),
    "an unknown dtype": (header(lambda t: t[A].update(dtype="F33")), "unknown dtype 'F33'"),
    "a dtype that is no text": (header(lambda t: t[A].update(dtype=["F32"])), "dtype"),
    "a dtype of another width": (header(lambda t: t[A].update(dtype="F16")), "needs"),
    "a size bomb": (header(lambda t: t[A].update(shape=[2**40, 2**40])), "needs"),
    "integer factors": (
        tensors(lambda t: t.update({A: t[A].int(), B: t[B].int()})),
        "not floating point",
    ),
    "a torch pickle": (pickled, "is a pickle"),
    "a torch pickle called safetensors": (
        lambda f: void((f / WEIGHTS).write_bytes(torch_bomb(f))),
        "is a pickle",
    ),
    "a plain pickle called safetensors": (
        lambda f: void((f / WEIGHTS).write_bytes(bomb(f))),
        "is a pickle",
    ),
    **{
        f"{value} in {str(dtype)[6:]}": (one_value(float(value), dtype), "NaN or infinity")
        for value in ("nan", "inf", "-inf")
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    },
    "nan in float8_e4m3fn": (one_value(float("nan"), torch.float8_e4m3fn), "NaN or infinity"),
    "inf in float8_e5m2": (one_value(float("inf"), torch.float8_e5m2), "NaN or infinity"),
    "nan in the first value of A": (
        one_value(float("nan"), torch.float32, A, 0),
        f"The tensor {A} holds NaN",
    ),
    "nan far into a large tensor": (late_nan, "NaN or infinity"),
    "nan in a saved head": (
        tensors(
            lambda t: t.update({"base_model.model.score.weight": torch.tensor([float("nan")])})
        ),
        "NaN or infinity",
    ),
    "nan in a complex tensor": (
        bytes_of(
            sound_file(
                {
                    **pair(Q),
                    "base_model.model.x.weight": ("C64", [1], struct.pack("<ff", float("nan"), 0)),
                }
            )
        ),
        "NaN or infinity",
    ),
    "nan in a float8_e8m0 tensor": (
        bytes_of(sound_file({**pair(Q), "base_model.model.x.weight": ("F8_E8M0", [1], b"\xff")})),
        "NaN or infinity",
    ),
    "A without B": (tensors(lambda t: t.pop(B)), f"{Q} has lora_A but no lora_B"),
    "B without A": (tensors(lambda t: t.pop(A)), f"{Q} has lora_B but no lora_A"),
    "factors that don't fit": (
        tensors(lambda t: t.update({B: torch.zeros(64, 3)})),
        "don't fit each other",
    ),
    "another rank than the config's": (config(r=8), "says rank 8, the tensors have rank 4"),
    "another rank through rank_pattern": (
        config(rank_pattern={"q_proj": 2}),
        "says rank 2, the tensors have rank 4",
    ),
    "another rank through an expression": (
        config(rank_pattern={r"layers\.\d\..*": 2}),
        "says rank 2, the tensors have rank 4",
    ),
    "no tensors": (bytes_of(file_of({})), "no tensors"),
    "LORA without factors": (
        tensors(
            lambda t: [t.pop(name) for name in list(t)] and t.update({"x.weight": torch.zeros(2)})
        ),
        "no tensor is a lora_A or lora_B",
    ),
    "two adapters in one file": (
        tensors(lambda t: t.update({A.replace("weight", "other.weight"): t[A].clone()})),
        "Two tensors are both",
    ),
    "a config that is no JSON": (
        config_bytes(b"{'r': 8}"),
        "adapter_config.json is not valid JSON",
    ),
    "a config that is no text": (
        config_bytes(b"\xff\xfe\0\0\1"),
        "adapter_config.json is not valid JSON",
    ),
    "a config that is a list": (config_bytes(b"[]"), "must be a JSON object"),
    "a config nested without end": (config_bytes(b'{"peft_type":' * 100_000), "not valid JSON"),
    "a config of lists without end": (
        config_bytes(b'{"peft_type":' + b"[" * 100_000),
        "not valid JSON",
    ),
    "a key twice": (config_bytes(b'{"peft_type":"LORA","r":4,"r":8}'), "appears twice"),
    "a config of 17 MB": (
        config_bytes(b'{"peft_type":"LORA","x":"' + b"x" * 17_000_000 + b'"}'),
        "too large",
    ),
    "no PEFT config": (
        config_bytes(b'{"base_model": "lerobot/smolvla_base"}'),
        "not a PEFT configuration",
    ),
    "an MLX config": (
        config_bytes(b'{"fine_tune_type":"lora","lora_parameters":{"rank":16}}'),
        "MLX",
    ),
    "r as text": (config(r="4"), "r must be a whole number"),
    "alpha NaN": (config(lora_alpha=float("nan")), "NaN is not JSON"),
    "alpha of 400 digits": (config(lora_alpha=10**400), "lora_alpha must be a finite number"),
    "a catastrophic expression": (config(rank_pattern={"(?:.*?){12}[A-Z]": 4}), "takes too long"),
    "a broken expression": (config(rank_pattern={"(": 4}), "can't be used"),
    "a base of nine megabytes": (config(base_model_name_or_path="/" + "x" * 9_000_000), "too"),
    "half a character in the base": (config(base_model_name_or_path="\ud800"), ""),
    "half a character in a tensor's name": (header(lambda t: t.update({"\ud800": t.pop(A)})), ""),
    "weights that are a link out of the folder": (links(WEIGHTS), "leads out of"),
    "a config that is a link out of the folder": (links(CONFIG), "leads out of"),
    "a file that is a link out of the folder": (secret, "leads out of"),
    "a link out of a folder in one called snapshots": (snapshots_secret, "leads out of"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no adapter_model.safetensors"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "no adapter_config.json"),
    "a file name with a backslash": (odd_name("a\\b"), "can't be kept"),
    "a file name that is no UTF-8": (odd_name(os.fsdecode(b"caf\xe9")), ""),
}
NOT_FOUND = ("no weights", "no config")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds a good adapter, for all the cases: none of them may change it."""
    place = tmp_path_factory.mktemp("bad-input")
    Store.open(place / "home").add_folder(AdapterMaker(place)("good", seed=1))
    return place / "home"


@pytest.mark.parametrize("case", CASES)
def test_a_bad_adapter_is_refused_and_nothing_changes(
    case: str, home: Path, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    spoil, words = CASES[case]
    folder = make_adapter("spoiled", alpha=4)
    spoil(folder)
    with unchanged(home):
        said = call("add", folder, "--json", "--name", f"bad-{list(CASES).index(case)}")
    assert not (folder.parent / "the-bomb-went-off").exists()
    assert said.out == ""
    assert said.code == (4 if case in NOT_FOUND else 1), said.err
    assert "Something went wrong inside" not in said.err
    error = said.error
    assert words in f"{error['what']} {error['why']}"
    assert error["why"]
    assert error["hint"]
    assert ".tmp" not in said.err, "it names our temporary copy instead of the file"
    assert len(said.err) < 10_000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../escape", "not a valid name"),
        ("a/../../b", "not a valid name"),
        ("/etc/passwd", "not a valid name"),
        ("a\\b", "not a valid name"),
        ("con", "can't be a file name everywhere"),
        ("ns/aux.v1", "can't be a file name everywhere"),
        ("x" * 97, "96 characters at most"),
        ("tone:", "the tag after ':' is empty"),
        ("a/b/c", "at most two"),
        ("hf://org/repo", "not a valid name"),
        (".", "not a valid name"),
        ("", "not a valid name"),
        ("tone@1f2e3d4c", "not a valid name"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_copied(
    name: str, words: str, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    call("add", make_adapter("good"), "--name", "good")
    with unchanged(tmp_path / "home"):
        said = call("add", make_adapter("other", seed=1), "--name", name, "--json")
        tagged = call("tag", "good", name, "--json")
    assert said.code == tagged.code == 2
    assert words in said.error["what"]
    assert words in tagged.error["what"]
    assert said.error["hint"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("tone", "Tone"),
        ("support/tone", "SUPPORT/other"),
        ("tone:Prod", "tone:prod"),
        ("ns/Tone", "ns/tone:v2"),
    ],
)
def test_names_that_differ_in_case_only_are_refused(
    first: str, second: str, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    call("add", folder, "--name", first)
    with unchanged(tmp_path / "home"):
        said = call("add", folder, "--name", second)
        tagged = call("tag", first, second)
    assert said.code == tagged.code == 1
    assert "in case only" in said.err
    assert "in case only" in tagged.err


def test_a_taken_name_is_refused_unless_it_is_to_move(
    make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    call("add", make_adapter("one"), "--name", "tone")
    with unchanged(tmp_path / "home"):
        said = call("add", make_adapter("two", seed=1), "--name", "tone")
    assert said.code == 1
    assert "taken by another adapter" in said.err
    assert "--move" in said.err


def test_a_folder_with_a_checkpoint_below_says_where_the_adapter_is(
    make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter("run/checkpoint-100")
    said = call("add", folder.parent)
    assert said.code == 4
    assert f"adapterhub add {folder}" in said.err


@pytest.mark.parametrize("what", ["missing", "a file", "empty"])
def test_what_is_no_adapter_folder_is_not_found(what: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if what == "a file":
        source.write_text("x")
    elif what == "empty":
        source.mkdir()
    said = call("add", source, "--json")
    assert said.code == 4
    assert str(source) in said.error["what"]
    if what == "a file":
        assert "no such folder" not in said.error["why"]


@pytest.mark.parametrize("kind", ["fifo", "socket", "dangling link", "linked folder"])
def test_what_is_no_regular_file_is_left_out_and_said(
    kind: str, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    odd = folder / "odd"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "socket":
        import socket

        # a socket's path may have 108 characters at most
        with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listener:
            listener.bind("odd")
    else:
        odd.symlink_to(tmp_path if kind == "linked folder" else "nowhere")
    said = call("add", folder, "--json")
    assert said.code == 0
    assert "odd is no regular file and was left out" in said.err
    assert "odd" not in json.dumps(call("show", "adapter", "--json").json["files"])


def test_a_folder_with_a_name_that_is_no_utf8_comes_in(
    make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    """Linux allows any bytes in a name; the journal and the terminal must take them."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    make_adapter().rename(folder)
    said = call("add", folder, "--name", "tone")
    assert said.code == 0, said.err
    assert call("log").code == 0


@pytest.mark.parametrize("name", ["con.v1", "-x-", "..", "tëst", "x" * 200, "a b", "NUL"])
def test_a_folder_with_an_awkward_name_gets_a_name_that_works(
    name: str, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    if name == "..":
        folder = make_adapter("inner") / ".." / "inner"
    else:
        folder = make_adapter(name)
    said = call("add", folder, "--json")
    assert said.code == 0, said.err
    assert call("show", said.json["name"]).code == 0
    assert call("show", "something-else").code == 4
