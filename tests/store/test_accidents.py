"""Accidents that `test_machine` has found, each told by itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapterhub.errors import StoreDamagedError
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.checking import check
from adapterhub.store.garbage import collect
from adapterhub.store.history import undo
from adapterhub.store.repair import repair
from tests.store.ageing import DAY, flip
from tests.store.leavings import leave_files, leave_operation
from tests.store.watched import Pool
from tests.store.watching import at, problems, refs, unchanged


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.make(tmp_path_factory.mktemp("pool"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_a_folder_made_for_servers_is_mended_with_the_blob_it_shares_its_bytes_with(
    store: Store, home: Path, pool: Pool
) -> None:
    known = pool.adapters[0]
    store.add_folder(known.folder, name="tone")
    weights = store.view(known.digest) / "adapter_model.safetensors"
    blob = at(home / "store" / "blobs", next(d for d, data in known.blobs.items() if data == weights.read_bytes()))  # fmt: skip
    assert weights.samefile(blob)
    flip(blob)
    report = check(store, lambda blobs: blobs)
    assert [damage.kind for damage in report.damages] == ["blob", "view"]
    assert all(item.mended for item in repair(store, report, [pool.home]))
    assert weights.read_bytes() == known.files[weights.name]
    assert check(store, lambda blobs: blobs).damages == []


def test_an_undone_collection_that_is_taken_again_leaves_no_manifest_without_its_blobs(
    store: Store, home: Path, pool: Pool
) -> None:
    """A writer put the blobs there and died; one that came later put the manifest to them, and died too."""
    known, other = pool.adapters[0], pool.adapters[4]
    store.add_folder(other.folder, name="other")
    leave_files(home, "blobs", known.blobs)
    collect(store, grace=0, trash_grace=30 * DAY)
    undo(store)
    leave_files(home, "manifests", {known.digits: known.manifest})
    undo(store)
    assert check(store, lambda blobs: blobs).damages == []
    assert {name: at(home / "store" / "blobs", name).is_file() for name in known.blobs} == dict.fromkeys(known.blobs, True)  # fmt: skip


def test_undo_after_a_crash_takes_back_what_was_done_last_and_not_what_was_cut_short(
    store: Store, home: Path, pool: Pool
) -> None:
    one, other = pool.adapters[0], pool.adapters[4]
    store.add_folder(one.folder, name="tone")
    store.add_folder(other.folder, name="other")
    store.remove([parse_name("other")])
    collect(store, grace=0, trash_grace=30 * DAY)
    undo(store)
    moves = [("_/other/latest", None, other.digest), ("_/third/latest", None, one.digest)]
    leave_operation(home, moves, now=datetime.now(UTC).isoformat(), applied=1, torn=False)
    undone = undo(store)  # the undo: so the collection is done again
    assert [operation.op for operation in undone.operations] == ["undo"]
    assert list(refs(home)) == ["_/tone/latest"]
    assert not at(home / "store" / "manifests", other.digits).exists()
    assert problems(home) == []


@pytest.mark.parametrize(
    "contents", ['["../../../precious"]', '["/etc/passwd"]', "[[]]", "{}", "["]
)
def test_a_trash_folder_whose_list_leads_out_of_the_store_gives_nothing_back(
    contents: str, store: Store, home: Path, pool: Pool
) -> None:
    store.add_folder(pool.adapters[0].folder, name="tone")
    store.remove([parse_name("tone")])
    trash = collect(store, grace=0, trash_grace=30 * DAY).trash
    (home / "store" / "trash" / str(trash) / "contents.json").write_text(contents)
    with unchanged(home), pytest.raises(StoreDamagedError):
        undo(store)
