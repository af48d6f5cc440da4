"""Collecting garbage while others read, add, name and use the very adapters that are garbage at that moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub.errors import NotFoundError
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.garbage import Collected, collect, make_plan
from tests.store.ageing import DAY, age, everything
from tests.store.watching import problems, refs, unchanged
from tests.support.adapters import AdapterMaker


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def sweep(store: Store, grace: float = 0, trash_grace: float = 30 * DAY) -> Collected:
    return collect(store, grace=grace, trash_grace=trash_grace)


def remove(store: Store, *names: str) -> None:
    store.remove([parse_name(name) for name in names])


def test_a_reader_that_knows_the_digest_reads_from_the_trash(
    store: Store, make_adapter: AdapterMaker, home: Path, tmp_path: Path
) -> None:
    folder = make_adapter("tone")
    store.add_folder(folder)
    resolved = store.resolve("tone")
    store.attest(resolved.digest, "eval", {"perplexity": 2.5})
    told = store.attestations(resolved.digest)
    remove(store, "tone")
    sweep(store)
    assert everything(home) == set()
    assert store.manifest(resolved.digest) == resolved.manifest
    assert store.attestations(resolved.digest) == told
    assert len(store.facts(resolved).modules) == 4
    with store.tensors(resolved, verify=True) as tensors:
        assert len(tensors.infos) == 8
    store.checkout(resolved, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_a_name_given_to_what_was_just_collected_leads_to_it_in_the_store(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    """`tag` has read what its source means; then the last name goes, and a collection comes."""
    digest = store.add_folder(make_adapter("tone")).digest
    store.attest(digest, "eval", {"perplexity": 2.5})
    resolved, before = store.resolve("tone"), everything(home)
    remove(store, "tone")
    sweep(store)
    store.tag(resolved, parse_name("again"))
    assert problems(home) == []
    assert everything(home) == before
    sweep(store, trash_grace=0)
    assert problems(home) == []


def test_no_name_is_given_to_what_was_deleted_for_good(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    resolved = store.resolve("tone")
    remove(store, "tone")
    sweep(store)
    sweep(store, trash_grace=0)
    with unchanged(home), pytest.raises(NotFoundError):
        store.tag(resolved, parse_name("again"))


def test_a_lease_on_what_was_just_collected_brings_it_back(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    """A server that runs for longer than the trash keeps things must find its files to the end."""
    digest = store.add_folder(make_adapter("tone")).digest
    before = everything(home)
    remove(store, "tone")
    sweep(store)
    with store.leases.held("serve", [digest], "at a port"):
        sweep(store, trash_grace=0)
        sweep(store, trash_grace=0)
        assert everything(home) == before


def test_what_is_added_again_has_all_that_was_known_about_it(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    folder = make_adapter("tone")
    digest = store.add_folder(folder).digest
    store.attest(digest, "eval", {"perplexity": 2.5})
    told = store.attestations(digest)
    remove(store, "tone")
    sweep(store)
    store.add_folder(folder)
    sweep(store, trash_grace=0)
    assert store.attestations(digest) == told
    assert problems(home) == []


def test_a_name_whose_adapter_lies_in_the_trash_gets_it_back_before_the_trash_is_deleted(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    """Where locks lie, a name can be given to an adapter while it is swept: that must cost no data."""
    digest = store.add_folder(make_adapter("tone")).digest
    before = everything(home)
    ref = home / "store" / "refs" / "_" / "tone" / "latest"
    remove(store, "tone")
    sweep(store)
    ref.parent.mkdir(parents=True)
    ref.write_text(f"{digest}\n")
    with unchanged(home):
        make_plan(store, grace=0, trash_grace=0)
    sweep(store, trash_grace=0)
    sweep(store, trash_grace=0)
    assert everything(home) == before
    assert problems(home) == []


def test_names_that_a_crash_has_half_removed_keep_their_adapters(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    """The collection takes the unfinished `rm` back, so it must not take what the names lead to."""
    for seed, name in enumerate(("one", "two")):
        store.add_folder(make_adapter(name, seed=seed))
    age(home, 20 * DAY)
    kept = (home / "store" / "refs" / "_" / "two" / "latest").read_text()
    remove(store, "one", "two")
    journal = home / "store" / "log" / "refs.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["op"] == "done"
    journal.write_bytes(b"".join(lines[:-1]))
    ref = home / "store" / "refs" / "_" / "two" / "latest"
    ref.parent.mkdir(parents=True)
    ref.write_text(kept)
    assert make_plan(store, grace=0, trash_grace=DAY).garbage == []
    assert sweep(store).plan.garbage == []
    assert set(refs(home)) == {"_/one/latest", "_/two/latest"}
    assert problems(home) == []


def test_a_lease_that_ends_while_leases_are_read_is_no_error(
    store: Store, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_folder(make_adapter("tone"))
    folder = store.layout.leases
    folder.mkdir()
    gone = folder / "merge-1.json"
    monkeypatch.setattr(store.leases, "paths", lambda: [gone])
    assert store.leases.live() == []


_WORKER = """
import sys, time
from pathlib import Path
from adapterhub.errors import NotFoundError, StoreLockedError
from adapterhub.names import parse_name
from adapterhub.store import Store, locks
from adapterhub.store.garbage import collect
locks._POLL_SECONDS = 0.0005  # else the collection hardly ever gets its turn
home, gun, folder, role, rounds = *map(Path, sys.argv[1:4]), sys.argv[4], int(sys.argv[5])
store, name = Store.open(home), parse_name("tone")
print("ready", flush=True)
while not gun.exists():
    time.sleep(0.001)
if role == "write":
    for _ in range(rounds):
        added = store.add_folder(folder, name="tone")
        assert store.layout.manifest(added.digest).is_file()
        for entry in added.manifest.files:
            assert store.blobs.intact(entry.digest), entry.path
        store.remove([name])
        time.sleep(0.001)
    store.add_folder(folder, name="tone")
elif role == "tag":
    for _ in range(rounds):
        try:
            resolved = store.resolve("tone")
            store.tag(resolved, parse_name("tagged"), move=True)
        except NotFoundError:
            continue
        for path in (store.layout.manifest(resolved.digest), *(store.layout.blob(e.digest) for e in resolved.manifest.files)):
            assert path.is_file(), path
        store.remove([parse_name("tagged")])
elif role == "read":
    for _ in range(rounds):
        try:
            resolved = store.resolve("tone")
        except NotFoundError:
            continue
        store.facts(resolved)
        with store.tensors(resolved, verify=True):
            pass
        assert store.attestations(resolved.digest)
else:
    swept = 0
    for _ in range(rounds):
        try:
            swept += collect(store, grace=0, trash_grace=float(role)).trash is not None
        except StoreLockedError:
            pass
        time.sleep(0.002)
    assert swept, "there was no race"
"""


def race(home: Path, folder: Path, *jobs: tuple[str, int]) -> None:
    """Runs every (role, rounds) in a process of its own, all at once; each fails on what it mustn't see."""
    gun = home.parent / "gun"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, home, gun, folder, role, str(rounds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for role, rounds in jobs
    ]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    gun.touch()
    said = [worker.communicate(timeout=200)[1] for worker in workers]
    assert said == [""] * len(workers), "\n".join(said)


def test_adding_the_very_adapter_that_is_garbage_never_leaves_a_name_without_its_files(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    folder = make_adapter("tone")
    store.add_folder(folder)
    race(home, folder, ("write", 15), ("0", 30))
    sweep(store, trash_grace=0)
    assert problems(home) == []
    assert set(refs(home)) == {"_/tone/latest"}


@pytest.mark.slow
def test_readers_and_taggers_beside_writers_and_collections(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    folder = make_adapter("tone")
    store.add_folder(folder)
    race(home, folder, ("write", 60), ("read", 400), ("tag", 150), ("3600", 150))
    sweep(store)
    assert problems(home) == []
