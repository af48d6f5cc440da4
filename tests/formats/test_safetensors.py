"""Reading safetensors: every way a header can lie is refused, every sound file is read as torch reads it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adapterhub.errors import FormatError
from adapterhub.formats.safetensors import BLOCK_BYTES, TensorFile
from tests.formats.raw import file_of, sound_file, table_of

F4 = b"\0\0\0\0"


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": offsets,
    }


def twice(name: str) -> bytes:
    one = f'"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return f"{{{one},{one}}}".encode()


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "only 0 bytes"),
    "shorter than a length": (b"\1\0\0\0", "only 4 bytes"),
    "prose": (b"This is no safetensors file at all, but somebody's notes.", "announces a header"),
    "git lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "announces a header",
    ),
    "header longer than the file": (file_of({}, length=1000), "announces a header of 1000 bytes"),
    "header of 2^63 bytes": (file_of({}, length=2**63), "announces a header"),
    "header of 2^64-1 bytes": (file_of({}, length=2**64 - 1), "announces a header"),
    "header cut off": (file_of({"x": entry()}, F4)[:20], "announces a header"),
    "header no JSON": (file_of(b"{nonsense"), "not JSON"),
    "header no object": (file_of(b"[1,2]"), "not a JSON object"),
    "header no UTF-8": (file_of(b'{"\xff\xfe":1}'), "not JSON"),
    "header of endless lists": (file_of(b"[" * 200_000), "not JSON"),
    "header of endless tables": (file_of(b'{"a":' * 200_000), "not JSON"),
    "a number of 5000 digits": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "a tensor twice": (file_of(twice("x"), F4), "twice"),
    "entry no table": (file_of({"x": 3}), "lacks dtype"),
    "entry without shape": (
        file_of({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, F4),
        "lacks dtype, shape",
    ),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata null": (file_of({"__metadata__": None}), "__metadata__"),
    "unknown dtype": (file_of({"x": entry("F128")}, F4), "unknown dtype 'F128'"),
    "dtype a number": (file_of({"x": entry(7)}, F4), "unknown dtype"),
    "dtype a list": (file_of({"x": entry([])}, F4), "unknown dtype"),
    "dtype a table": (file_of({"x": entry({})}, F4), "unknown dtype"),
    "dtype null": (file_of({"x": entry(None)}, F4), "unknown dtype"),
    "shape a number": (file_of({"x": entry(shape=1)}, F4), "no valid shape"),
    "shape negative": (file_of({"x": entry(shape=(-1,))}, F4), "no valid shape"),
    "shape of truths": (file_of({"x": entry(shape=(True,))}, F4), "no valid shape"),
    "shape of fractions": (file_of({"x": entry(shape=(1.0,))}, F4), "no valid shape"),
    "shape of texts": (file_of({"x": entry(shape=("1",))}, F4), "no valid shape"),
    "shape of 64 dimensions": (file_of({"x": entry(shape=(1,) * 64)}, F4), "no valid shape"),
    "shape times dtype not the bytes": (
        file_of({"x": entry(shape=(2,))}, F4),
        "needs 8 bytes, its offsets give 4",
    ),
    "size bomb": (file_of({"x": entry(shape=(2**40, 2**40))}, F4), "needs"),
    "size bomb that overflows 64 bits to 4": (
        file_of({"x": entry(shape=(2**47, 2**47, 2**47, 2))}, F4),
        "needs",
    ),
    "size bomb in the offsets": (
        file_of({"x": entry(shape=(2**38,), offsets=(0, 2**40))}, F4),
        "but the file has",
    ),
    "offsets behind the end": (file_of({"x": entry(offsets=(4, 8))}, F4), "but the file has"),
    "data cut off": (file_of({"x": entry(shape=(100,), offsets=(0, 400))}, F4 * 99), "truncated"),
    "offsets backwards": (file_of({"x": entry(offsets=(4, 0))}, F4), "no valid data_offsets"),
    "offsets negative": (file_of({"x": entry(offsets=(-4, 0))}, F4), "no valid data_offsets"),
    "offsets of truths": (
        file_of({"x": entry("U8", offsets=(False, True))}, b"\0"),
        "no valid data_offsets",
    ),
    "three offsets": (file_of({"x": entry(offsets=(0, 4, 4))}, F4), "no valid data_offsets"),
    "offsets null": (file_of({"x": entry(offsets=None)}, F4), "no valid data_offsets"),
    "overlap": (
        file_of({"a": entry(), "b": entry(offsets=(2, 6))}, F4 + b"\0\0"),
        "'a' and 'b' overlap",
    ),
    "one tensor inside another": (
        file_of({"a": entry(shape=(4,), offsets=(0, 16)), "b": entry(offsets=(4, 8))}, F4 * 4),
        "'a' and 'b' overlap",
    ),
    "two names of one tensor": (file_of({"a": entry(), "b": entry()}, F4), "'a' and 'b' overlap"),
    "a hole": (
        file_of({"a": entry(), "b": entry(offsets=(8, 12))}, F4 * 3),
        "4 bytes before tensor 'b'",
    ),
    "a hole at the beginning": (
        file_of({"a": entry(offsets=(4, 8))}, F4 * 2),
        "4 bytes before tensor 'a'",
    ),
    "something behind the last tensor": (
        file_of({"a": entry()}, F4 + b"payload"),
        "7 bytes at the end",
    ),
    "half a byte": (file_of({"x": entry("F4", (1,), (0, 1))}, b"\0"), "needs"),
    "zip archive (torch.save)": (b"PK\x03\x04" + b"\0" * 60, "pickle"),
    "pickle protocol 2": (b"\x80\x02}q\x00." + b"\0" * 60, "pickle"),
    "pickle protocol 5": (b"\x80\x05\x95\x0a\0\0\0\0\0\0\0}\x94." + b"\0" * 60, "pickle"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_file_is_refused_with_what_is_wrong_with_it(lie: str, tmp_path: Path) -> None:
    data, words = LIES[lie]
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        TensorFile(path)
    assert words in caught.value.why
    assert "adapter_model.safetensors" in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("low_byte", [0x80, 0x50, 0x00])
def test_no_length_of_a_header_is_mistaken_for_a_pickle(low_byte: int, tmp_path: Path) -> None:
    """0x80 begins a pickle, and it is also the low byte of one padded header's length in 32."""
    tensors = {"x": ("F32", [1], F4)}
    bare = len(sound_file(tensors)) - len(F4) - 8
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(sound_file(tensors, padding=(low_byte - bare) % 256))
    assert path.read_bytes()[0] == low_byte
    assert load_file(path)["x"].tolist() == [0.0]
    with TensorFile(path) as file:
        assert file.array("x").tolist() == [0.0]


def test_a_header_of_a_hundred_megabytes_costs_no_more_than_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001) + b"{}" + b" " * 100_000_100)
    with pytest.raises(FormatError, match="not a sound"):
        TensorFile(path)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_damage_to_a_header_gets_past_as_anything_but_a_format_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    sound = bytearray(sound_file({"a": ("F32", [2], F4 * 2), "b": ("BF16", [1, 2], F4)}, padding=3))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(sound) - 1))
        piece = data.draw(
            st.sampled_from(
                [b"", b"[]", b"{}", b"-1", b"1e3", b"null", b'"', b"\x80", b"99999999999"]
            )
            | st.binary(max_size=3)
        )
        sound[at : at + data.draw(st.integers(0, 6))] = piece
    path.write_bytes(sound)
    try:
        with TensorFile(path) as file:
            for info in file.infos.values():
                assert 8 <= info.start <= info.end <= len(sound)
                file.scan(info.name)
    except FormatError:
        pass


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int64,
        torch.bool,
    ],
)
def test_values_are_read_as_torch_reads_them(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = (torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    save_file(
        {
            "first": torch.ones(3),
            "x": values,
            "nothing": torch.empty(0, 4),
            "scalar": torch.tensor(2.5),
        },
        path,
    )
    with TensorFile(path) as file:
        ours, theirs = file.array("x"), load_file(path)["x"]
        assert ours.shape == (5, 7)
        assert np.array_equal(
            ours,
            theirs.double().numpy()
            if dtype == torch.float64
            else theirs.float().numpy()
            if dtype.is_floating_point
            else theirs.numpy(),
        )
        assert file.array("nothing").shape == (0, 4)
        assert file.array("scalar").shape == ()
        assert file.array("scalar") == 2.5
        assert file.take("x", np.array([0, 34])).tolist() == [ours[0, 0], ours[4, 6]]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
        ("F8_E8M0", torch.float8_e8m0fnu),
    ],
)
def test_all_256_codes_of_a_float8_are_widened_as_torch_does(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    codes = bytes(range(256))
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound_file({"x": (name, [256], codes)}))
    theirs = torch.frombuffer(bytearray(codes), dtype=dtype).float().numpy()
    with TensorFile(path) as file:
        ours = file.array("x")
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs, equal_nan=True)
    zeros = ours == 0
    assert np.array_equal(np.signbit(ours[zeros]), np.signbit(theirs[zeros]))


def test_all_65536_codes_of_bfloat16_are_widened_as_torch_does(tmp_path: Path) -> None:
    codes = np.arange(2**16, dtype="<u2").tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound_file({"x": ("BF16", [2**16], codes)}))
    theirs = torch.frombuffer(bytearray(codes), dtype=torch.bfloat16).float().numpy()
    with TensorFile(path) as file:
        assert np.array_equal(file.array("x"), theirs, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
        ("F8_E4M3", torch.float8_e4m3fn),
        ("F8_E5M2", torch.float8_e5m2),
    ],
)
def test_every_code_of_a_small_float_is_finite_or_not_as_torch_says(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    codes = np.arange(256**size, dtype=f"<u{size}")
    theirs = torch.from_numpy(codes).view(dtype).float()
    table = {
        f"t{code}": (name, [1], codes[code : code + 1].tobytes()) for code in range(len(codes))
    }
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound_file(table))
    with TensorFile(path) as file:
        found = [file.scan(f"t{code}") for code in range(len(codes))]
    assert [finite for finite, _ in found] == torch.isfinite(theirs).tolist()
    assert [any_value for _, any_value in found] == (theirs != 0).tolist()


@pytest.mark.parametrize("kind", ["F32", "F64"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, None])
def test_one_odd_value_in_the_last_block_of_many_is_found(
    kind: str, odd: float | None, tmp_path: Path
) -> None:
    dtype = "<f4" if kind == "F32" else "<f8"
    values = np.zeros(2 * BLOCK_BYTES // np.dtype(dtype).itemsize + 3, dtype)
    largest = np.finfo(dtype).max
    values[-1] = largest if odd is None else odd
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound_file({"x": (kind, [len(values)], values.tobytes())}))
    with TensorFile(path) as file:
        assert file.scan("x") == (odd is None, True)
    path.write_bytes(sound_file({"x": (kind, [len(values)], np.full_like(values, -0.0).tobytes())}))
    with TensorFile(path) as file:
        assert file.scan("x") == (True, False)


def test_tensors_may_lie_in_any_order_and_at_any_alignment(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    table = table_of({"odd": ("U8", [3], b"abc"), "x": ("F32", [1], struct.pack("<f", 1.5))})
    path.write_bytes(file_of(dict(reversed(table.items())), b"abc" + struct.pack("<f", 1.5)))
    with TensorFile(path) as file:
        assert file.array("x").tolist() == [1.5]


def test_dtypes_without_an_array_are_kept_as_bytes_and_refused_as_values(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(sound_file({"x": ("F4", [4], b"\1\2")}))
    with TensorFile(path) as file:
        assert bytes(file.raw("x")) == b"\1\2"
        with pytest.raises(FormatError, match="F4"):
            file.array("x")
