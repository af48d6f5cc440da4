"""Collecting garbage: exactly what nothing leads to goes, into the trash; where that can't be known, nothing does."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.errors import StoreDamagedError
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.garbage import Collected, collect
from tests.cli.calling import call
from tests.store.ageing import (
    DAY,
    age,
    blobs,
    everything,
    flip,
    manifest,
    meaning,
    shelved,
    weights,
    write,
)
from tests.store.watching import left_over, problems, unchanged
from tests.support.adapters import AdapterMaker


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def sweep(store: Store, grace: float = 0, trash_grace: float = 30 * DAY) -> Collected:
    return collect(store, grace=grace, trash_grace=trash_grace)


def remove(store: Store, *names: str) -> None:
    store.remove([parse_name(name) for name in names])


def taken(done: Collected, kind: str) -> set[str]:
    """The hexadecimal digests of the garbage of one kind."""
    return {item.digest.removeprefix("sha256:") for item in done.plan.garbage if item.kind == kind}


def test_exactly_what_no_name_lease_release_or_recent_change_leads_to_is_taken(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    digits = {}
    for seed, name in enumerate(("named", "older", "newer", "leased", "gone", "recent")):
        # A rank of its own each: no two share a configuration.
        folder = make_adapter(name, seed=seed, rank=seed + 2)
        digits[name] = store.add_folder(folder).digest.removeprefix("sha256:")
    store.tag(store.resolve("newer"), parse_name("older"), move=True)
    remove(store, "gone", "leased")
    age(home, 20 * DAY)
    remove(store, "recent")
    before = everything(home)
    files = set(blobs(home, digits["gone"]).values())
    with store.leases.held("serve", [f"sha256:{digits['leased']}"], "at a port"):
        done = sweep(store, grace=14 * DAY)
    assert taken(done, "manifest") == {digits["gone"]}
    assert taken(done, "blob") == {path.name for path in files}
    assert taken(done, "attestation") == {digits["gone"]}
    trash = home / "store" / "trash" / str(done.trash)
    lost = before - everything(home)
    assert {
        path.relative_to(trash).as_posix() for path in trash.glob("[!c]*/**/*") if path.is_file()
    } == lost
    assert len(lost) == 4, "a manifest, two files and a provenance"
    assert problems(home) == []


def test_why_something_stays_is_said(store: Store, make_adapter: AdapterMaker, home: Path) -> None:
    for seed, name in enumerate(("older", "newer", "leased")):
        store.add_folder(make_adapter(name, seed=seed))
    store.tag(store.resolve("newer"), parse_name("older"), move=True)
    digest = store.resolve("leased").digest
    remove(store, "leased")
    age(home, 20 * DAY)
    store.add_folder(make_adapter("recent", seed=9))
    remove(store, "recent")
    with store.leases.held("serve", [digest], "at a port"):
        said = call("gc", "--dry-run").err
    assert "There is no garbage" in said
    assert "an earlier release of older, for rollback" in said
    assert "in use: at a port" in said
    assert "undo may need it" in said
    assert "(rm recent" in json.dumps(call("gc", "--dry-run", "--json").json["spared"])


def test_what_is_younger_than_the_grace_period_is_spared_though_the_journal_does_not_know_it(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("kept"))
    store.add_folder(make_adapter("tone", seed=1))
    digits = meaning(home, "tone")
    remove(store, "tone")
    age(home, 20 * DAY)
    os.utime(manifest(home, digits))
    assert sweep(store, grace=14 * DAY).plan.garbage == [], "a young manifest keeps its files"
    age(home, 20 * DAY)
    (weights_of_tone,) = set(blobs(home, digits).values()) - set(
        blobs(home, meaning(home, "kept")).values()
    )
    os.utime(weights_of_tone)
    done = sweep(store, grace=14 * DAY)
    assert {item.kind for item in done.plan.garbage} == {"manifest", "attestation"}
    assert [(item.kind, item.why) for item in done.plan.spared] == [
        ("blob", "it is younger than 14 days")
    ]
    assert weights_of_tone.exists()


def test_a_blob_stays_while_one_adapter_needs_it(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    for seed, name in enumerate(("one", "two")):
        store.add_folder(make_adapter(name, seed=seed))
    shared = blobs(home, meaning(home, "one"))["adapter_config.json"]
    assert shared == blobs(home, meaning(home, "two"))["adapter_config.json"]
    remove(store, "two")
    sweep(store)
    assert shared.exists()
    remove(store, "one")
    sweep(store)
    assert not shared.exists()
    assert shelved(home, "blobs") == set()


def test_views_go_with_their_adapter_and_stay_under_a_lease(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    digest = store.add_folder(make_adapter("tone")).digest
    view = store.view(digest)
    remove(store, "tone")
    with store.leases.held("serve", [digest], "at a port"):
        sweep(store)
        assert (view / "adapter_model.safetensors").is_file()
    done = sweep(store)
    assert taken(done, "view") == {view.name}
    assert not view.exists()
    assert everything(home) == set()


@pytest.mark.parametrize("grace", [0, 14 * DAY])
def test_what_a_killed_writer_left_goes_after_a_day_or_the_grace_period(
    grace: float, store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    """A temporary file, and a view that was never finished: that is a folder."""
    store.add_folder(make_adapter("tone"))
    file, folder = home / "store" / "tmp" / ".1.a.tmp", home / "store" / "views" / ".ab.1.a.tmp"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    file.write_bytes(b"half")
    if grace:
        assert sweep(store, grace=grace).plan.temporary == []
    age(home, 2 * DAY if grace else 1)
    done = sweep(store, grace=grace)
    assert {item.path for item in done.plan.temporary} == {file, folder}
    assert not file.exists()
    assert not folder.exists()
    assert left_over(home) == []


def test_the_trash_is_deleted_for_good_only_after_its_time(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    remove(store, "tone")
    trash = home / "store" / "trash" / str(sweep(store).trash)
    assert sweep(store, trash_grace=3600).plan.expired == []
    assert trash.is_dir()
    done = sweep(store, trash_grace=0)
    assert [item.digest for item in done.plan.expired] == [trash.name]
    assert done.plan.expired[0].size > 1000
    assert not trash.exists()


def test_a_folder_in_the_trash_that_no_collection_made_disturbs_nothing(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    (home / "store" / "trash" / "lost+found").mkdir(parents=True)
    remove(store, "tone")
    assert sweep(store, trash_grace=0).trash
    assert (home / "store" / "trash" / "lost+found").is_dir()
    assert call("fsck").code == 0


def test_a_dry_run_lists_bytes_and_reason_of_everything_and_changes_nothing(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("kept"))
    store.add_folder(make_adapter("tone", seed=1))
    store.view(store.resolve("tone").digest)
    remove(store, "tone")
    with unchanged(home):
        said = call("gc", "--grace", "0s", "--dry-run", "--json").json
        listed = call("gc", "--grace", "0s", "--dry-run").out.splitlines()
    assert said["trash"] is None
    assert {row["kind"] for row in said["garbage"]} == {"manifest", "blob", "attestation", "view"}
    assert all(row["why"] for row in said["garbage"])
    sizes = {row["path"]: row["size"] for row in said["garbage"]}
    for path, size in sizes.items():
        # The files of a view are links to blobs: they take no room of their own.
        assert size == (0 if Path(path).is_dir() else Path(path).stat().st_size)
    assert said["bytes"] == sum(sizes.values())
    assert listed[0].split("\t") == ["kind", "digest", "size", "why"]
    assert len(listed) == 1 + len(said["garbage"])
    done = call("gc", "--grace", "0s", "--yes", "--json").json
    assert {row["path"] for row in done["garbage"]} == sizes.keys()
    assert done["bytes"] == said["bytes"]


def test_off_a_terminal_nothing_is_collected_without_yes(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    remove(store, "tone")
    with unchanged(home):
        said = call("gc", "--grace", "0s", "--json")
    assert said.code == 2
    assert "--yes" in said.error["hint"]


def test_nothing_is_collected_while_somebody_adds(
    store: Store, make_adapter: AdapterMaker, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_folder(make_adapter("tone"))
    remove(store, "tone")
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0.1")
    with store.writing(), unchanged(home):
        assert call("gc", "--grace", "0s", "--yes").code == 7


# What can't be read may lead anywhere


def rubbish_ref(home: Path) -> Path:
    path = home / "store" / "refs" / "_" / "kept" / "latest"
    path.write_text("rubbish")
    return path


def flipped_manifest(home: Path) -> Path:
    path = manifest(home, meaning(home, "kept"))
    flip(path)
    return path


def manifest_of_garbage(home: Path) -> Path:
    """Not even one that no name leads to: its files may be somebody else's too."""
    (path,) = {manifest(home, digits) for digits in shelved(home, "manifests")} - {
        manifest(home, meaning(home, "kept"))
    }
    flip(path, 30)
    return path


def no_manifest(home: Path) -> Path:
    path = manifest(home, meaning(home, "kept"))
    path.unlink()
    return path


def manifest_on_the_wrong_shelf(home: Path) -> Path:
    path = manifest(home, meaning(home, "kept"))
    wrong = path.parent.with_name("00" if path.parent.name != "00" else "01") / path.name
    wrong.parent.mkdir(exist_ok=True)
    return path.rename(wrong)


def lease(home: Path) -> Path:
    path = home / "store" / "leases" / "serve-1.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"kind": "serve"')
    return path


def journal_line(home: Path) -> Path:
    path = home / "store" / "log" / "refs.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"op": rubbish}\n'
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        rubbish_ref,
        flipped_manifest,
        manifest_of_garbage,
        no_manifest,
        manifest_on_the_wrong_shelf,
        lease,
        journal_line,
    ],
)
def test_where_something_that_leads_on_cannot_be_read_nothing_is_taken_and_the_hint_helps(
    damage: Callable[[Path], Path], store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("kept"))
    store.add_folder(make_adapter("tone", seed=1))
    remove(store, "tone")
    age(home, 20 * DAY)
    place = damage(home)
    with unchanged(home):
        said = call("gc", "--grace", "0s", "--trash-grace", "0s", "--yes", "--json")
        dry = call("gc", "--grace", "0s", "--dry-run", "--json")
    assert said.code == dry.code == 6
    assert said.error == dry.error
    assert place.name in said.error["what"] + said.error["why"]
    hint = said.error["hint"].partition("adapterhub ")[2]
    assert hint, said.error
    call(*shlex.split(hint))
    done = call("gc", "--grace", "0s", "--yes", "--json")
    assert done.code == 0, done.err


# Strange stores


def test_a_view_of_a_missing_adapter_is_garbage_without_a_fuss(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("kept"))
    orphan = home / "store" / "views" / ("ab" * 32)
    shutil.copytree(store.view(store.resolve("kept").digest), orphan)
    done = sweep(store)
    assert [(item.kind, item.path) for item in done.plan.garbage] == [("view", orphan)]
    assert done.plan.garbage[0].size > 1000, "these files are nobody else's"


def test_a_store_full_of_strange_files_is_collected_all_the_same(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("kept"))
    for place in ("blobs", "manifests", "attestations", "refs", "trash", "leases", "views"):
        (home / "store" / place).mkdir(exist_ok=True)
        (home / "store" / place / ".DS_Store").write_bytes(b"x")
    (home / "store" / "blobs" / "sha256" / "ab").mkdir(exist_ok=True)
    (home / "store" / "blobs" / "sha256" / "ab" / "notes.txt").write_text("mine")
    sweep(store)
    assert call("fsck").code == 0
    assert call("show", "kept").code == 0
    assert (home / "store" / "blobs" / "sha256" / "ab" / "notes.txt").exists()


def test_a_manifest_changed_to_another_valid_one_is_not_believed(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    """One that names other files would make the right ones garbage."""
    store.add_folder(make_adapter("kept"))
    store.add_folder(make_adapter("other", seed=1))
    write(
        manifest(home, meaning(home, "kept")), manifest(home, meaning(home, "other")).read_bytes()
    )
    with unchanged(home), pytest.raises(StoreDamagedError):
        sweep(store)
    assert weights(home, "other").exists()
