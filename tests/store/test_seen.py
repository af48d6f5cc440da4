"""A file's digest is remembered for exactly the file in exactly the state that was hashed, and never for a moment longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from adapterhub.store import Store
from adapterhub.store.catalogue import seen as seen_module
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.seen import (
    digest_of_file,
    mark_verified,
    remember_file,
    verified_at,
)

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def cache(store: Store) -> CacheFile:
    return CacheFile(store.layout)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has rested. The time of its inode can't be set back, so the rest is made short instead."""
    monkeypatch.setattr(seen_module, "REST_SECONDS", 0.05)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    time.sleep(0.1)
    return path


def test_a_rested_file_is_remembered_also_by_another_process(
    store: Store, cache: CacheFile, file: Path
) -> None:
    assert digest_of_file(cache, file) is None
    remember_file(cache, file, ONE)
    assert digest_of_file(CacheFile(store.layout), file) == ONE
    assert verified_at(cache, file, ONE) is None


def test_a_file_that_has_just_changed_is_not_remembered(cache: CacheFile, tmp_path: Path) -> None:
    path = tmp_path / "young"
    path.write_bytes(b"one")
    remember_file(cache, path, ONE)
    mark_verified(cache, path, ONE)
    assert digest_of_file(cache, path) is None
    os.utime(path, (1e9, 1e9))  # whoever sets the time back changes the inode now
    remember_file(cache, path, ONE)
    assert digest_of_file(cache, path) is None


def test_a_file_that_changed_while_it_was_hashed_is_not_remembered(
    cache: CacheFile, file: Path
) -> None:
    began = file.stat().st_mtime - 1
    remember_file(cache, file, ONE, began=began)
    mark_verified(cache, file, ONE, began=began)
    assert digest_of_file(cache, file) is None


@pytest.mark.parametrize("how", ["same size", "longer", "touched", "replaced", "mode"])
def test_any_change_of_the_file_makes_it_forgotten(how: str, cache: CacheFile, file: Path) -> None:
    remember_file(cache, file, ONE)
    mark_verified(cache, file, ONE)
    when = file.stat()
    if how == "replaced":
        other = file.with_name("other")
        other.write_bytes(b"two")
        os.utime(other, ns=(when.st_atime_ns, when.st_mtime_ns))
        other.replace(file)
    elif how == "mode":
        file.chmod(0o600)
    elif how == "touched":
        os.utime(file)
    else:
        file.write_bytes(b"two" if how == "same size" else b"longer")
        os.utime(file, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert digest_of_file(cache, file) is None
    assert verified_at(cache, file, ONE) is None


def test_what_was_verified_is_verified_for_that_digest_only(cache: CacheFile, file: Path) -> None:
    before = time.time()
    mark_verified(cache, file, ONE)
    assert before <= (verified_at(cache, file, ONE) or 0) <= time.time()
    assert verified_at(cache, file, TWO) is None
    remember_file(cache, file, ONE)
    assert verified_at(cache, file, ONE) is not None, "remembering takes nothing back"
    remember_file(cache, file, TWO)
    assert verified_at(cache, file, TWO) is None
    assert digest_of_file(cache, file) == TWO


def test_a_file_that_is_gone_is_unknown(cache: CacheFile, tmp_path: Path) -> None:
    remember_file(cache, tmp_path / "nothing", ONE)
    assert digest_of_file(cache, tmp_path / "nothing") is None


def test_no_cache_folder_costs_only_the_memory(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(file / "below a file"))
    cache = CacheFile(store.layout)
    remember_file(cache, file, ONE)
    assert digest_of_file(cache, file) == ONE
    assert digest_of_file(CacheFile(store.layout), file) is None
