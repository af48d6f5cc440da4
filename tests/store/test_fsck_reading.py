"""Which bytes a check reads again, and that nobody who works beside it makes it cry damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store, views
from adapterhub.store.checking import Report, check
from adapterhub.store.garbage import collect
from adapterhub.store.reading import Reading
from tests.cli.calling import call
from tests.store.ageing import DAY, age, blobs, flip, meaning, weights
from tests.support.adapters import AdapterMaker


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with four adapters that share no file."""
    root = tmp_path_factory.mktemp("life")
    make, store = AdapterMaker(root / "adapters"), Store.open(root / "home")
    for seed, name in enumerate(("tone", "other", "third", "fourth")):
        store.add_folder(make(name, seed=seed, rank=seed + 2))
    age(root / "home", 10)
    return root


@pytest.fixture
def home(life: Path, tmp_path: Path) -> Path:
    """A copy with a view."""
    home = Path(shutil.copytree(life / "home", tmp_path / "home"))
    Store.open(home).view(f"sha256:{meaning(home, 'tone')}")
    return home


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open(home)


def everything_read(store: Store) -> Report:
    return check(store, lambda found: found)


def chosen(store: Store, text: str, max_age: str | None = None) -> list[str]:
    reading = Reading.parse(text, max_age)
    assert reading
    choose = reading.of(store)
    read: list[str] = []

    def watch(found: list[tuple[str, Path, int]]) -> list[tuple[str, Path, int]]:
        picked = list(choose(found))
        read.extend(digest for digest, _, _ in picked)
        return picked

    assert check(store, watch).read == len(read)
    return read


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_parts_together_read_everything_exactly_once(parts: int, store: Store) -> None:
    read = [digest for n in range(parts) for digest in chosen(store, f"{n + 1}/{parts}")]
    assert sorted(read) == sorted(set(read))
    assert len(read) == 8


def test_a_percentage_reads_what_was_read_longest_ago(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    time.sleep(2.1)  # a file is only remembered once it has rested
    assert len(everything_read(store).damages) == 0
    store.add_folder(make_adapter("new", seed=9, rank=9))
    new = {path.name for path in blobs(home, meaning(home, "new")).values()}
    total = sum(path.stat().st_size for path in (home / "store" / "blobs").glob("*/*/*"))
    seen: list[str] = []
    for _ in range(3):
        read = chosen(store, "40%")
        size = sum(store.layout.blob(digest).stat().st_size for digest in read)
        assert 0.4 * total <= size < total
        assert not set(read) & set(seen) or len(set(seen)) == 10
        seen += [digest for digest in read if digest not in seen]
    assert len(seen) == 10
    assert {digest[7:] for digest in seen[-2:]} == new, "they were hashed last, on their way in"
    assert chosen(store, "0.001%") == chosen(store, "0.001%") or len(chosen(store, "1%")) == 1


def test_what_was_verified_recently_is_skipped_unless_it_has_changed_since(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("new", seed=9, rank=9))
    new = {f"sha256:{path.name}" for path in blobs(home, meaning(home, "new")).values()}
    assert not new & set(chosen(store, "all", "1h")), "they were hashed on their way in"
    assert new <= set(chosen(store, "all", "0s"))
    flip(weights(home, "new"))
    found = everything_read(store)
    assert [damage.path for damage in found.damages] == [weights(home, "new")]
    assert call("fsck", "--read-data", "--max-age", "1h").code == 6
    path = weights(home, "new")
    flip(path)
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert new & set(chosen(store, "all", "1h")), "put right, and nobody has looked since"


def test_a_change_that_hides_behind_the_old_time_is_found(store: Store, home: Path) -> None:
    time.sleep(2.1)
    everything_read(store)
    path = weights(home, "tone")
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert call("fsck", "--read-data", "--max-age", "1h").code == 6


@pytest.mark.parametrize(
    "words",
    [
        ["--read-data=0/7"],
        ["--read-data=8/7"],
        ["--read-data=1/0"],
        ["--read-data=0%"],
        ["--read-data=101%"],
        ["--read-data=some"],
        ["--read-data="],
        ["--max-age", "7d"],
        ["--read-data", "--max-age", "7"],
        ["--from", "/tmp"],
    ],
    ids=" ".join,
)
def test_a_wrong_choice_is_a_usage_error_that_says_what_is_right(
    words: list[str], home: Path
) -> None:
    said = call("fsck", *words, "--json")
    assert said.code == 2
    assert said.error["hint"]


# Beside others


def test_what_a_collection_takes_while_files_are_read_is_no_damage(
    store: Store, home: Path
) -> None:
    """Reading may last hours: names come and go meanwhile."""

    def slowly(found: list[tuple[str, Path, int]]) -> list[tuple[str, Path, int]]:
        store.remove([parse_name("other")])
        assert collect(store, grace=0, trash_grace=DAY).trash
        return found

    report = check(store, slowly)
    assert report.damages == []


def test_a_view_that_goes_while_it_is_looked_at_is_no_damage(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = views.wrong_files

    def late(folder: Path, *rest: Any, **more: Any) -> list[str]:
        shutil.rmtree(folder)
        return before(folder, *rest, **more)

    monkeypatch.setattr(views, "wrong_files", late)
    assert everything_read(store).damages == []


_BUSY = """
import sys
from contextlib import suppress
from pathlib import Path
from adapterhub.errors import AdapterHubError, NotFoundError
from adapterhub.names import parse_name
from adapterhub.store import Store, locks
from adapterhub.store.garbage import collect
from adapterhub.store.history import undo
locks._POLL_SECONDS = 0.0005
home, folder, name, done = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
store = Store.open(home)
print("ready", flush=True)
while not done.exists():
    digest = store.add_folder(folder, name=name).digest
    store.tag(store.resolve(name), parse_name("shared"), move=True)
    store.attest(digest, "eval", {"n": 1})
    store.view(digest)
    with store.leases.held("merge", [digest], "into both"), suppress(NotFoundError):
        store.remove([parse_name(name)])  # unless an undo has taken the name
    collect(store, grace=0, trash_grace=0.5)
    if name == "one":
        with suppress(AdapterHubError):  # where the other was quicker
            undo(store)
"""


@pytest.mark.slow
def test_beside_running_writers_nothing_is_called_damage(
    store: Store, make_adapter: AdapterMaker, home: Path, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _BUSY, home, make_adapter(name, seed=seed), name, done],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, name in enumerate(("one", "two"), 20)
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    damages = []
    end = time.monotonic() + 15
    while time.monotonic() < end:
        damages += check(store, lambda found: found).damages
    done.touch()
    assert [writer.communicate(timeout=100)[1] for writer in writers] == ["", ""]
    assert damages == []
    assert everything_read(store).damages == []
