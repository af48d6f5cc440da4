"""One store for several: read from a file system that can't be written, and changed by the members of a group."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.store.ageing import DAY, age, flip, meaning, weights
from tests.store.watching import journal, problems, refs, unchanged
from tests.support.adapters import AdapterMaker

ROOT = Path(__file__).parents[2]
GROUP, ANN, BEN, EVE = 54320, 54321, 54322, 54323
"""A group, two users in it, and one who isn't. Nobody else has these numbers."""

_MOUNTED = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
_CALLS = """
import json, sys
from tests.cli.calling import call
print(json.dumps([(said.code, said.out, said.err) for said in (call(*words) for words in json.loads(sys.argv[1]))]))
"""


def read_only(home: Path, *commands: list[str]) -> list[tuple[int, str, str]]:
    """Runs the commands in one process that sees `home` mounted read-only; skips where nothing can be mounted."""
    mounted = ["unshare", "--mount", "sh", "-c", _MOUNTED, str(home)]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare (util-linux) to mount with")
    probe = subprocess.run([*mounted, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"mounting is not permitted here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", _CALLS, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def test_a_store_on_a_read_only_mount_can_be_read_searched_and_checked(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for seed, name in enumerate(("tone", "gone")):
        store.add_folder(make_adapter(name, seed=seed))
    store.tag(store.resolve("tone"), parse_name("tone:prod"))
    store.remove([parse_name("gone")])
    with unchanged(home):
        said = read_only(
            home,
            ["ls", "-q"],
            ["ls", "tone", "-q"],
            ["show", "tone", "-q"],
            ["log", "-q"],
            ["checkout", "tone", str(tmp_path / "out")],
            ["fsck", "--read-data", "--json"],
            ["gc", "--grace", "0s", "--dry-run", "--json"],
            ["undo", "--dry-run", "--json"],
            ["lineage", "tone"],
            ["duplicates"],
        )
    assert [code for code, _, _ in said] == [0] * len(said), said
    assert said[0][1] == "tone\ntone:prod\n"
    assert said[1][1] == "tone\ntone:prod\n"
    assert said[3][1].split() == ["gone", "tone:prod", "gone", "tone"]
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert json.loads(said[5][1])["damages"] == []
    assert json.loads(said[5][1])["blobs_read"] == 3
    assert len(json.loads(said[6][1])["garbage"]) == 3
    assert [row["name"] for row in json.loads(said[7][1])] == ["gone"]


@pytest.mark.slow
def test_adapters_of_a_read_only_store_can_be_compared(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    for seed, name in enumerate(("one", "two")):
        store.add_folder(make_adapter(name, seed=seed))
    ((code, out, err),) = read_only(tmp_path / "home", ["diff", "one", "two", "--json"])
    assert code == 0, err
    assert json.loads(out)


def test_damage_on_a_read_only_mount_is_found_and_told(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    flip(weights(tmp_path / "home", "tone"))
    (tmp_path / "home" / "store" / "leases").mkdir()
    (tmp_path / "home" / "store" / "leases" / "serve-1.json").write_text("{")
    said = read_only(tmp_path / "home", ["fsck", "--read-data", "--json"], ["gc", "--dry-run"])
    assert [code for code, _, _ in said] == [6, 6]
    assert {row["kind"] for row in json.loads(said[0][1])["damages"]} == {"blob", "lease"}


def test_what_would_change_a_read_only_store_says_that_it_cannot(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    store.add_folder(make_adapter("tone"))
    store.add_folder(make_adapter("gone", seed=2))
    store.remove([parse_name("gone")])
    other = make_adapter("other", seed=1)
    flip(weights(home, "tone"))
    with unchanged(home):
        said = read_only(
            home,
            ["add", str(other)],
            ["tag", "tone", "new"],
            ["rm", "tone", "--yes"],
            ["gc", "--grace", "0s", "--yes"],
            ["undo"],
            ["fsck", "--read-data", "--repair"],
        )
    for code, _, err in said:
        assert code == 1, err
        assert "read-only" in err
        assert "Traceback" not in err


def test_work_on_a_read_only_store_needs_no_lease(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    digest = store.add_folder(make_adapter("tone")).digest
    program = (
        "import sys; from pathlib import Path; from adapterhub.store import Store\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "with store.leases.held('serve', [sys.argv[2]], 'at a port'): print(store.leases.all())\n"
    )
    words = [str(store.home), sys.executable, "-c", program, str(store.home), digest]
    probe = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _MOUNTED, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode and "mount" in probe.stderr:
        pytest.skip(f"mounting is not permitted here: {probe.stderr.strip()}")
    assert probe.stdout == "[]\n", probe.stderr


# Several users


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that a group shares: its files are the group's, and so are those of the folders made in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders can't be entered by others
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folders(shared: Path) -> dict[str, str]:
    """Adapters that everybody can read."""
    make = AdapterMaker(shared / "adapters")
    found = {name: make(name, seed=seed) for seed, name in enumerate(("one", "two"))}
    for path in (shared / "adapters").glob("*/*"):
        path.chmod(0o644)
    return {name: str(folder) for name, folder in found.items()}


def steps(shared: Path, *done: tuple[int, list[str]]) -> list[dict[str, Any]]:
    """Runs each (user, words) as that user."""
    order = {
        "home": str(shared / "home"),
        "group": GROUP,
        "steps": [{"user": user, "member": user != EVE, "do": words} for user, words in done],
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.store.users"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    said: list[dict[str, Any]] = json.loads(result.stdout)
    return said


def all_well(shared: Path, *done: tuple[int, list[str]]) -> list[dict[str, Any]]:
    said = steps(shared, *done)
    for (user, words), answer in zip(done, said, strict=True):
        assert answer["code"] == 0, (user, words, answer)
    return said


def unusable(home: Path) -> list[str]:
    """What a member of the group couldn't change or read."""
    wrong = []
    for path in [home, *home.rglob("*")]:
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_gid != GROUP or not mode & stat.S_IRGRP:
            wrong.append(f"{path} {mode:o} {found.st_gid}")
        elif path.is_dir() and mode & 0o2070 != 0o2070:
            wrong.append(f"{path} {mode:o}")
        elif path.name in ("lock", "places.jsonl") or path.parent == home / "store" / "log":
            if not mode & stat.S_IWGRP:
                wrong.append(f"{path} {mode:o}")
    return wrong


def test_two_users_of_a_group_change_one_store_in_turn(
    shared: Path, folders: dict[str, str]
) -> None:
    home = shared / "home"
    all_well(
        shared,
        (ANN, ["add", folders["one"]]),
        (BEN, ["add", folders["one"], "--name", "again"]),
        (BEN, ["add", folders["two"]]),
        (ANN, ["tag", "two", "one", "--move"]),
        (ANN, ["attest", "one", "ann's"]),
        (BEN, ["attest", "one", "ben's"]),
        (BEN, ["view", "one"]),
        (ANN, ["view", "again"]),
        (BEN, ["use", "one"]),
        (ANN, ["use", "one"]),
        (BEN, ["rollback", "one"]),
        (ANN, ["undo"]),
        (BEN, ["rm", "again", "two", "--yes"]),
        (ANN, ["undo"]),
        (BEN, ["undo"]),
        (ANN, ["fsck", "--read-data"]),
    )
    assert unusable(home) == []
    assert problems(home) == []
    assert set(refs(home)) == {"_/one/latest"}
    age(home, 20 * DAY)  # what others have written can't be touched, only written anew
    (home / "config.toml").write_text("[store]\nkeep_releases = 0\n")
    (home / "config.toml").chmod(0o644)
    os.chown(home / "config.toml", ANN, GROUP)
    said = all_well(
        shared,
        (BEN, ["gc", "--yes", "--json"]),
        (ANN, ["undo"]),
        (ANN, ["add", folders["two"], "--name", "third"]),
        (BEN, ["add", folders["one"], "--name", "fourth"]),
        (ANN, ["undo", "2"]),
        (ANN, ["gc", "--grace", "0s", "--yes", "--json"]),
        (BEN, ["gc", "--grace", "0s", "--trash-grace", "0s", "--yes", "--json"]),
        (BEN, ["fsck", "--read-data"]),
        (ANN, ["ls"]),
        (ANN, ["show", "one"]),
    )
    assert json.loads(said[0]["out"])["trash"]
    assert json.loads(said[6]["out"])["deleted"]
    assert unusable(home) == []
    assert problems(home) == []
    assert {line["who"].partition("@")[0] for line in journal(home) if line["who"]} == {
        f"user{ANN}",
        f"user{BEN}",
    }


@pytest.mark.slow
def test_one_user_mends_what_the_other_has_written(shared: Path, folders: dict[str, str]) -> None:
    home = shared / "home"
    all_well(
        shared,
        (ANN, ["add", folders["one"]]),
        (ANN, ["add", folders["two"]]),
        (ANN, ["view", "one"]),
    )
    flip(weights(home, "one"))
    lines = (home / "store" / "log" / "refs.jsonl").read_bytes().splitlines(keepends=True)
    with (home / "store" / "log" / "refs.jsonl").open("wb") as file:
        file.writelines([lines[0], b"rubbish}\n", *lines[1:]])
    (home / "store" / "tmp" / ".1.a.tmp").write_bytes(b"half")
    os.chown(home / "store" / "tmp" / ".1.a.tmp", ANN, GROUP)
    digits = meaning(home, "one")
    all_well(
        shared,
        (BEN, ["fsck", "--read-data", "--repair"]),
        (ANN, ["tag", "one", "new"]),
        (ANN, ["rm", "one", "new", "--yes"]),
        (BEN, ["gc", "--grace", "0s", "--yes"]),
        (ANN, ["undo", "2"]),
        (BEN, ["fsck", "--read-data"]),
    )
    assert meaning(home, "one") == digits
    assert unusable(home) == []
    assert problems(home) == []


def test_who_is_not_in_the_group_reads_and_changes_nothing(
    shared: Path, folders: dict[str, str]
) -> None:
    home = shared / "home"
    all_well(
        shared,
        (ANN, ["add", folders["one"]]),
        (ANN, ["add", folders["two"]]),
        (ANN, ["rm", "two", "--yes"]),
    )
    with unchanged(home):
        all_well(
            shared,
            (EVE, ["ls"]),
            (EVE, ["show", "one"]),
            (EVE, ["log"]),
            (EVE, ["fsck", "--read-data"]),
            (EVE, ["gc", "--grace", "0s", "--dry-run"]),
            (EVE, ["undo", "--dry-run"]),
        )
        refused = steps(
            shared,
            (EVE, ["add", folders["two"]]),
            (EVE, ["tag", "one", "two"]),
            (EVE, ["rm", "one", "--yes"]),
            (EVE, ["undo"]),
            (EVE, ["gc", "--grace", "0s", "--yes"]),
        )
    for answer in refused:
        assert answer["code"] == 1, answer
        assert "permission denied" in answer["err"]
