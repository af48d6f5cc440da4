"""The cache's file may be missing, old, damaged, locked, unwritable, deleted or killed at any moment: that costs time only."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue import cachefile as cachefile_module
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.catalogue import Catalogue
from tests.cli.calling import call
from tests.store.catalogued import Names, everything, names, rebuilt, truth
from tests.support.adapters import AdapterMaker


def test_a_file_deleted_while_it_is_read_costs_nothing_but_time(
    store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    store.add_folder(folders[0], name="one")
    store.add_folder(folders[1], name="two")

    def question(db: sqlite3.Connection) -> int:
        rows = db.execute("SELECT label FROM names")
        rows.fetchone()
        catalogue.file.path.unlink()
        return 1 + len(rows.fetchall())

    assert catalogue.ask(question) == 2
    assert names(catalogue) == truth(tmp_path / "home")
    assert catalogue.file.path.exists()


def test_a_file_deleted_before_it_is_written_is_not_written_into_another(
    store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    """Somebody else has made a new one meanwhile: what belongs to the old one must not end up there."""
    store.add_folder(folders[0], name="one")
    other = CacheFile(store.layout)

    def question(db: sqlite3.Connection) -> None:
        db.execute("SELECT 1 FROM names").fetchall()
        if catalogue.file.path.exists() and not made:
            catalogue.file.path.unlink()
            made.append(names(Catalogue(store.layout)))
        db.execute("INSERT OR REPLACE INTO seen VALUES ('f', 's', 'd', NULL)")

    made: list[Names] = []
    catalogue.ask(question)
    with other.connection() as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert names(catalogue) == made[0] == truth(tmp_path / "home")


def test_a_journal_left_beside_a_deleted_file_does_not_poison_the_next(
    store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    """A process killed in the middle of writing leaves a hot journal; then somebody deletes the database alone."""
    store.add_folder(folders[0], name="one")
    names(catalogue)
    path = catalogue.file.path
    script = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = TRUNCATE")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("UPDATE names SET digest = 'wrong', label = 'wrong'")
for n in range(5000):
    db.execute("INSERT INTO seen VALUES (?, hex(randomblob(200)), 'd', NULL)", (str(n),))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    journal = path.with_name(path.name + "-journal")
    assert journal.stat().st_size > 512, "the test needs a hot journal"
    torn, hot = path.read_bytes(), journal.read_bytes()
    assert b"wrong" in torn
    assert names(catalogue) == truth(tmp_path / "home"), "rolled back"
    path.unlink()
    journal.write_bytes(hot)
    assert names(catalogue) == truth(tmp_path / "home")


@pytest.mark.parametrize("tables", ["CREATE TABLE names (old TEXT)", "PRAGMA user_version = 99"])
def test_a_file_of_another_version_is_replaced(
    tables: str, store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    store.add_folder(folders[0], name="one")
    path = catalogue.file.path
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE something (x)")
        db.execute(tables)
    db.close()
    assert names(catalogue) == truth(tmp_path / "home")
    assert path.exists()


@given(
    places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4),
    filling=st.sampled_from(["zeros", "ones", "random"]),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_pages_are_noticed_and_the_file_is_made_anew(
    places: list[float], filling: str, tmp_path: Path, make_adapter: AdapterMaker
) -> None:
    """As a disk damages a file: sectors of zeros, of ones, or of something else.

    Not what is in the middle of a long text that is only searched: no structure gives that away.
    """
    catalogue = _some_adapters(tmp_path, make_adapter)
    expected = everything(catalogue)
    path = catalogue.file.path
    data = bytearray(path.read_bytes())
    for place in places:
        start = int(place * (len(data) // 4096)) * 4096
        noise = {"zeros": bytes(4096), "ones": b"\xff" * 4096}.get(filling) or os.urandom(4096)
        data[start : start + 4096] = noise
    path.write_bytes(data)
    assert names(catalogue) == truth(tmp_path / "home")
    path.write_bytes(data)
    assert {**everything(catalogue), "search": None} == {**expected, "search": None}


@given(
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=60
    )
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_single_wrong_bytes_never_end_in_a_traceback(
    damage: list[tuple[float, int]], tmp_path: Path, make_adapter: AdapterMaker
) -> None:
    """What no structure gives away (a letter in a text) is shown as it is there, until the file is made again."""
    catalogue = _some_adapters(tmp_path, make_adapter)
    path = catalogue.file.path
    good = path.read_bytes()
    data = bytearray(good)
    for place, value in damage:
        data[int(place * len(data))] = value
    path.write_bytes(data)
    try:
        for words in (["ls"], ["ls", "--json"], ["ls", "polite"], ["ls", "-q", "--kind", "lora"]):
            said = call(*words)
            assert "Something went wrong" not in said.err
    finally:
        path.write_bytes(good)


def _some_adapters(root: Path, make_adapter: AdapterMaker) -> Catalogue:
    """A store made once a test, with its catalogue up to date."""
    store = Store.open(root / "home")
    if not store.layout.store.exists():
        for n in range(3):
            folder = make_adapter(f"a{n}", seed=n)
            (folder / "README.md").write_text("very polite " * 400)
            store.add_folder(folder, name=f"ns/a{n}")
    catalogue = Catalogue(store.layout)
    names(catalogue)
    return catalogue


@pytest.mark.parametrize("place", ["below a file", "in /proc"])
def test_where_no_file_can_be_made_the_tables_live_in_memory(
    place: str, store: Store, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_folder(folders[0], name="one")
    (tmp_path / "file").write_text("")
    chosen = {"below a file": tmp_path / "file" / "cache", "in /proc": Path("/proc/adapterhub")}
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(chosen[place]))
    assert call("ls", "-q").out == "one\n"
    store.add_folder(folders[1], name="two")
    assert call("ls", "-q").out == "one\ntwo\n"


def test_a_full_disk_costs_nothing_but_time(store: Store, folders: list[Path]) -> None:
    """No file may grow beyond a few pages; the rest of the tables has no place."""
    for n, folder in enumerate(folders):
        (folder / "README.md").write_text("polite " * 5000)
        store.add_folder(folder, name=f"a{n}")
    shutil.rmtree(CacheFile(store.layout).path.parent)
    script = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
sys.argv = ["adapterhub", "ls", "-q", "polite"]
from adapterhub.cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a0\na1\na2\n", "")


def test_a_file_that_stays_locked_is_not_waited_for_for_ever(
    store: Store, catalogue: Catalogue, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cachefile_module, "PATIENCE_SECONDS", 0.1)
    store.add_folder(folders[0], name="one")
    names(catalogue)
    holder = sqlite3.connect(catalogue.file.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    store.tag(store.resolve("one"), parse_name("two"))
    assert set(names(Catalogue(store.layout))) == {"one", "two"}
    holder.execute("ROLLBACK")
    holder.close()


def test_a_copy_of_a_store_has_a_file_of_its_own(
    store: Store, folders: list[Path], tmp_path: Path
) -> None:
    store.add_folder(folders[0], name="one")
    names(Catalogue(store.layout))
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    copy.remove([parse_name("one")])
    assert names(Catalogue(copy.layout)) == {}
    assert set(names(Catalogue(store.layout))) == {"one"}


# Many processes

_WRITER = """
import sys
from pathlib import Path
from adapterhub.names import Name, parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue.catalogue import Catalogue
home, me, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = Store.open(home)
catalogue = Catalogue(store.layout)
one, two = store.resolve("one"), store.resolve("two")
def listed():
    return catalogue.ask(lambda db: dict(db.execute("SELECT label, digest FROM names")))
for n in range(rounds):
    name = Name("mine", me, f"t{n % 3}")
    store.tag(one if n % 2 else two, name, move=True)
    assert listed().get(str(name)) == (one if n % 2 else two).digest, "my own change is not listed"
    if n % 4 == 3:
        store.remove([name])
        assert str(name) not in listed(), "what I removed is listed"
"""

_READER = """
import sys
from pathlib import Path
from adapterhub.store import Store
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.search import Query, search
layout = Store.open(Path(sys.argv[1])).layout
for n in range(int(sys.argv[3])):
    rows = Catalogue(layout).ask(lambda db: search(db, Query(text="one"), {}))
    assert "one" in [row.name for row in rows]
"""


def _processes(home: Path, scripts: list[str], rounds: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(home), f"p{n}", str(rounds)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for n, script in enumerate(scripts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("meanwhile", ["nothing", "deleted", "damaged"])
def test_processes_read_and_write_at_once_and_each_sees_its_own_changes(
    meanwhile: str, store: Store, folders: list[Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    store.add_folder(folders[0], name="one")
    store.add_folder(folders[1], name="two")
    path = CacheFile(store.layout).path
    processes = _processes(home, [_WRITER, _WRITER, _READER], 40)
    while any(process.poll() is None for process in processes):
        time.sleep(0.02)
        if meanwhile == "deleted":
            path.unlink(missing_ok=True)
        elif meanwhile == "damaged" and path.exists():
            with path.open("r+b") as file:
                file.seek(8192)
                file.write(b"\xff" * 4096)
    assert [process.communicate()[1] for process in processes] == [""] * 3
    assert names(Catalogue(store.layout)) == truth(home)
    assert everything(Catalogue(store.layout)) == rebuilt(Catalogue(store.layout))


@pytest.mark.slow
def test_killed_at_any_moment_the_next_one_lists_what_is_there(
    store: Store, folders: list[Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    store.add_folder(folders[0], name="one")
    store.add_folder(folders[1], name="two")
    for n in range(12):
        (process,) = _processes(home, [_WRITER], 1000)
        time.sleep(0.35 + 0.02 * n)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert names(Catalogue(store.layout)) == truth(home)
    assert everything(Catalogue(store.layout)) == rebuilt(Catalogue(store.layout))
