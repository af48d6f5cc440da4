"""Several processes at one store: nothing lost, nothing half read, and a lock that is held is said to be held."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapterhub.store import Store
from tests.cli.calling import call
from tests.store.watching import journal, left_over, problems, refs, unchanged
from tests.support.adapters import AdapterMaker

# Waits for the starting gun, so that all processes change the store at the same moment.
_WORKER = """
import sys, time
from pathlib import Path
from adapterhub.errors import ConflictError
from adapterhub.names import parse_name
from adapterhub.store import Store
home, gun, work = Path(sys.argv[1]), Path(sys.argv[2]), [job.split("|") for job in sys.argv[3:]]
store = Store.open(home)
print("ready", flush=True)
while not gun.exists():
    time.sleep(0.001)
for what, *arguments in work:
    if what == "add":
        store.add_folder(Path(arguments[0]), name=arguments[1], move=True)
    elif what == "try":
        try:
            print("created", store.add_folder(Path(arguments[0]), name=arguments[1]).created)
        except ConflictError:
            print("refused")
    elif what == "rm":
        store.remove([parse_name(arguments[0])])
    elif what == "ls":
        for entry in store.entries():
            store.facts(store.resolve("@" + entry.digest[7:]))
        store.log()
"""


def race(home: Path, *jobs: list[str]) -> list[str]:
    """Runs every list of jobs in a process of its own, all at once; returns what each printed."""
    gun = home.parent / "gun"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(home), str(gun), *work],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for work in jobs
    ]
    for worker in workers:
        assert worker.stdout
        assert worker.stdout.readline() == "ready\n"
    gun.touch()
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [err for _, err in said] == [""] * len(workers)
    return [out for out, _ in said]


def test_different_adapters_under_different_names_are_all_there(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folders = [make_adapter(f"a{n}", seed=n) for n in range(12)]
    race(
        tmp_path / "home",
        *([f"add|{folder}|{folder.name}" for folder in folders[n::4]] for n in range(4)),
    )
    assert {str(entry.name) for entry in store.entries()} == {folder.name for folder in folders}
    assert problems(tmp_path / "home") == []
    assert left_over(tmp_path / "home") == []
    assert {line["ref"] for line in journal(tmp_path / "home")} == {
        folder.name for folder in folders
    }


@pytest.mark.slow
def test_one_adapter_under_different_names_is_there_under_all(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    race(tmp_path / "home", *([f"add|{folder}|n{n}-{k}" for k in range(3)] for n in range(4)))
    assert len(refs(tmp_path / "home")) == 12
    assert len(set(refs(tmp_path / "home").values())) == 1
    (digest,) = {entry.digest for entry in store.entries()}
    assert [item.type for item in store.attestations(digest)] == ["provenance"]
    assert problems(tmp_path / "home") == []


def test_one_adapter_under_one_name_is_created_once(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    said = race(tmp_path / "home", *([f"try|{folder}|tone"] for _ in range(4)))
    assert sorted(said) == ["created False\n"] * 3 + ["created True\n"]
    assert len(journal(tmp_path / "home")) == 1


@pytest.mark.slow
def test_different_adapters_under_one_name_one_wins_and_the_others_are_refused(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folders = [make_adapter(f"a{n}", seed=n) for n in range(4)]
    said = race(tmp_path / "home", *([f"try|{folder}|tone"] for folder in folders))
    assert sorted(said) == ["created True\n"] + ["refused\n"] * 3
    assert len(journal(tmp_path / "home")) == 1
    assert problems(tmp_path / "home") == []


@pytest.mark.slow
def test_moving_one_name_from_all_sides_keeps_an_unbroken_chain(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folders = [make_adapter(f"a{n}", seed=n) for n in range(4)]
    race(tmp_path / "home", *([f"add|{folder}|tone" for _ in range(4)] for folder in folders))
    lines = journal(tmp_path / "home")
    assert lines[0]["before"] is None
    assert [line["before"] for line in lines[1:]] == [line["after"] for line in lines[:-1]]
    assert refs(tmp_path / "home")["_/tone/latest"].strip() == lines[-1]["after"]
    assert {line["after"] for line in lines} == {
        store.resolve(f"@{line['after'] or ''}"[:20].replace("sha256:", "")).digest
        for line in lines
    }


def test_readers_are_never_disturbed_by_names_that_come_and_go(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    store.add_folder(folder, name="here/to-stay")
    changes = ["add|{0}|ns{1}/comes-and-goes", "rm|ns{1}/comes-and-goes"] * 40
    race(
        tmp_path / "home",
        [change.format(folder, 1) for change in changes],
        ["ls"] * 300,
        ["ls"] * 300,
    )
    assert list(refs(tmp_path / "home")) == ["here/to-stay/latest"]


@contextmanager
def held(path: Path, mode: int) -> Iterator[None]:
    """Somebody else's lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, mode)
        yield
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("lock", ["lock", "log/refs.jsonl"])
def test_a_lock_that_is_held_is_exit_7_and_nothing_changes(
    lock: str, make_adapter: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    call("add", make_adapter("one"), "--name", "one")
    other = make_adapter("two", seed=1)
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0.2")
    with held(home / "store" / lock, fcntl.LOCK_EX), unchanged(home):
        for words in (
            ["add", other, "--name", "two"],
            ["tag", "one", "other"],
            ["rm", "one", "--yes"],
        ):
            began = time.monotonic()
            said = call(*words, "--json")
            assert said.code == 7
            assert 0.2 <= time.monotonic() - began < 5
            assert str(home) in said.error["what"]
            assert "0.2 seconds" in said.error["why"]
            assert said.error["hint"]
    assert call("add", other, "--name", "two").code == 0


def test_reading_needs_no_lock(
    make_adapter: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    call("add", make_adapter("one"), "--name", "one")
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0")
    with (
        held(home / "store" / "lock", fcntl.LOCK_EX),
        held(home / "store" / "log" / "refs.jsonl", fcntl.LOCK_EX),
    ):
        for words in (["ls"], ["show", "one"], ["log"], ["checkout", "one", tmp_path / "out"]):
            assert call(*words).code == 0


def test_a_killed_process_leaves_no_locked_store(
    make_adapter: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    call("add", make_adapter("one"), "--name", "one")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl,time;f=open({str(home / 'store' / 'lock')!r},'r+');fcntl.flock(f,fcntl.LOCK_EX);print('held',flush=True);time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    holder.stdout.readline()
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0.1")
    assert call("tag", "one", "two").code == 7
    holder.kill()
    holder.communicate()
    assert call("tag", "one", "two").code == 0


def test_a_lock_wait_that_is_no_number_is_a_usage_error(
    make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter()
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "soon")
    said = call("add", folder, "--json")
    assert said.code == 2
    assert "ADAPTERHUB_LOCK_WAIT" in json.dumps(said.error)
