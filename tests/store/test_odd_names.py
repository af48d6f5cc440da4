"""Names of files that Linux allows and a document, a database or another system doesn't."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from adapterhub.base import read_base
from adapterhub.errors import FormatError, NotFoundError
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.checking import check
from adapterhub.store.repair import repair
from tests.support.adapters import AdapterMaker

NO_UTF8 = os.fsdecode(b"caf\xe9")


def test_a_log_whose_name_is_no_utf8_is_left_out_and_told_of(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter("tone")
    (folder / f"{NO_UTF8}.log").touch()
    (folder / NO_UTF8).symlink_to("nowhere")
    digest = store.add_folder(folder).digest
    (told,) = store.attestations(digest)
    assert "caf?.log" in " ".join(told.remarks)
    assert "caf? is no regular file" in " ".join(told.remarks)
    assert store.add_folder(folder).digest == digest


def test_a_base_whose_path_is_no_utf8_is_read_and_not_remembered(
    store: Store, tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama, tmp_path / NO_UTF8)
    model = read_base(tmp_path / NO_UTF8)
    with pytest.raises(FormatError, match="can't be remembered"):
        store.bases.remember(model)
    assert store.bases.records() == []
    assert store.bases.open(str(model.path)).fingerprint == read_base(tiny_llama).fingerprint


@pytest.mark.parametrize("text", ["x" * 5000, "~nobody-here", "~nobody-here/x", "a" * 300 + "/b"])
def test_a_base_that_no_path_can_name_is_not_there(store: Store, text: str) -> None:
    with pytest.raises(NotFoundError):
        store.bases.open(text)


def test_a_folder_in_the_place_of_a_ref_is_a_damage_that_a_repair_sets_aside(
    store: Store, make_adapter: AdapterMaker
) -> None:
    digest = store.add_folder(make_adapter("tone"), name="tone").digest
    ref = store.layout.ref(parse_name("tone"))
    ref.unlink()
    ref.mkdir()
    (damage,) = check(store).damages
    assert (damage.kind, damage.path) == ("ref", ref)
    assert [mended.mended for mended in repair(store, check(store))] == [True]
    assert store.resolve("tone").digest == digest
