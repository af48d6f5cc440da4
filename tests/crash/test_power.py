"""The simulated power cut itself: what was flushed is there, the rest is lost in every way a disk may lose it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.events import Record
from tests.crash.power import Disk, Entry, Fate, State, read_state, write_state

FOLDER = Entry(0o755)


def file(data: bytes) -> Entry:
    return Entry(0o644, data)


def cut(
    base: State, log: list[Record], now: State, *, lost: float = 0, fate: Fate = "cut"
) -> State:
    disk = Disk(base)
    disk.take_in(log)
    return disk.cut(now, lost=lost, fates=[fate], draw=random.Random(1))


def test_a_file_that_was_never_flushed_is_empty_or_rubbish() -> None:
    log: list[Record] = [("create", "f", None)]
    now = {"f": file(b"abc")}
    assert cut({}, log, now) == {"f": file(b"")}
    assert cut({}, log, now, fate="zeros") == {"f": file(b"\0\0\0")}
    assert cut({}, log, now, fate="rubbish") == {"f": file(b"\xa5\xa5\xa5")}
    assert cut({}, log, now, fate="kept") == now


def test_what_was_appended_after_the_flush_is_lost_and_no_more() -> None:
    log: list[Record] = [("create", "f", None), ("sync", "f", b"ab")]
    now = {"f": file(b"abcd")}
    assert cut({}, log, now) == {"f": file(b"ab")}
    assert cut({}, log, now, fate="zeros") == {"f": file(b"ab\0\0")}
    (left,) = cut({}, log, now, fate="part").values()
    assert left.data is not None
    assert b"abcd".startswith(left.data)
    assert left.data.startswith(b"ab")


def test_a_file_overwritten_in_place_and_not_flushed_is_the_old_one_or_damaged() -> None:
    base, now = {"f": file(b"old")}, {"f": file(b"other")}
    assert cut(base, [], now) == base
    assert cut(base, [], now, fate="zeros") == {"f": file(b"o\0\0\0\0")}


def test_a_rename_is_lost_until_its_folder_is_flushed() -> None:
    base = {"d": FOLDER, "d/new": file(b"1"), "d/name": file(b"0")}
    now = {"d": FOLDER, "d/name": file(b"1")}
    rename: Record = ("rename", "d/new", "d/name")
    assert cut(base, [rename], now) == now
    assert cut(base, [rename], now, lost=1) == base
    assert cut(base, [rename, ("syncdir", "d", None)], now, lost=1) == now
    assert cut(base, [("syncdir", "d", None), rename], now, lost=1) == base


def test_a_file_moved_between_folders_is_never_in_neither() -> None:
    base = {"a": FOLDER, "a/f": file(b"1"), "b": FOLDER}
    now = {"a": FOLDER, "b": FOLDER, "b/f": file(b"1")}
    both = {**base, "b/f": file(b"1")}
    rename: Record = ("rename", "a/f", "b/f")
    assert cut(base, [rename], now, lost=1) == base
    assert cut(base, [rename, ("syncdir", "b", None)], now, lost=1) == both
    assert cut(base, [rename, ("syncdir", "a", None)], now, lost=1) == now
    for seed in range(20):
        disk = Disk(base)
        disk.take_in([rename])
        left = disk.cut(now, lost=0.5, fates=["cut"], draw=random.Random(seed))
        assert left in (base, now, both)


def test_a_folder_is_moved_whole() -> None:
    base = {"a": FOLDER, "a/d": FOLDER, "a/d/f": file(b"1"), "b": FOLDER}
    now = {"a": FOLDER, "b": FOLDER, "b/d": FOLDER, "b/d/f": file(b"1")}
    rename: Record = ("rename", "a/d", "b/d")
    assert cut(base, [rename], now, lost=1) == base
    assert cut(base, [rename, ("syncdir", "b", None)], now, lost=1) == now


def test_what_lies_in_a_lost_folder_is_lost_however_well_it_was_flushed() -> None:
    log: list[Record] = [
        ("mkdir", "d", None),
        ("create", "d/f", None),
        ("sync", "d/f", b"1"),
        ("syncdir", "d", None),
    ]
    now = {"d": FOLDER, "d/f": file(b"1")}
    assert cut({}, log, now, lost=1) == {}
    left = cut({}, [*log, ("syncdir", ".", None)], now, lost=1)
    assert left == now


def test_a_removal_is_lost_until_its_folder_is_flushed() -> None:
    base = {"d": FOLDER, "d/f": file(b"1")}
    remove: Record = ("remove", "d/f", None)
    rmdir: Record = ("rmdir", "d", None)
    assert cut(base, [remove], {"d": FOLDER}, lost=1) == base
    assert cut(base, [remove, ("syncdir", "d", None)], {"d": FOLDER}, lost=1) == {"d": FOLDER}
    # The folder's own removal is flushed, that of the file in it is not: then the folder can't be gone.
    assert cut(base, [remove, rmdir, ("syncdir", ".", None)], {}, lost=1) == base


def test_a_later_rename_may_survive_an_earlier_creation() -> None:
    log: list[Record] = [
        ("create", "tmp", None),
        ("sync", "tmp", b"1"),
        ("mkdir", "d", None),
        ("syncdir", ".", None),
        ("create", "tmp2", None),
        ("sync", "tmp2", b"2"),
        ("rename", "tmp2", "d/f"),
        ("syncdir", "d", None),
    ]
    now = {"d": FOLDER, "d/f": file(b"2"), "tmp": file(b"1")}
    assert cut({}, log, now, lost=1) == now


def test_a_linked_file_keeps_its_bytes_when_one_name_is_lost() -> None:
    base = {"f": file(b"1")}
    now = {"f": file(b"1"), "g": file(b"1")}
    assert cut(base, [("link", "f", "g")], now, lost=1) == base
    assert cut(base, [("link", "f", "g"), ("syncdir", ".", None)], now, lost=1) == now


def test_a_file_made_past_the_log_is_an_error_and_not_overlooked() -> None:
    with pytest.raises(AssertionError, match="made past Python"):
        cut({}, [], {"f": file(b"1")})


def test_a_state_is_written_as_it_was_read(tmp_path: Path) -> None:
    state = {
        "d": FOLDER,
        "d/f": Entry(0o444, b"1"),
        "d/g": Entry(0o644, b""),
        "link": Entry(0o777, target="d/f"),
    }
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert read_state(tmp_path, scratch=["d"]) == {"link": state["link"]}
