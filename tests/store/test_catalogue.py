"""The catalogue says what the files say: after any changes, after its own file was lost, and while others change both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError
from adapterhub.names import Name, parse_name
from adapterhub.store import Store
from adapterhub.store import cachefile as cachefile_module
from adapterhub.store import changes as changes_module
from adapterhub.store.cachefile import CacheFile
from adapterhub.store.catalogue import Catalogue
from adapterhub.store.garbage import collect
from adapterhub.store.history import undo
from adapterhub.store.journal import Change, new_id, now
from adapterhub.store.refs import Transaction
from adapterhub.store.search import Query, search
from tests.cli.calling import call, run
from tests.store.watching import refs
from tests.support.adapters import AdapterMaker

Names = dict[str, str | None]


@pytest.fixture
def folders(make_adapter: AdapterMaker) -> list[Path]:
    return [make_adapter(f"a{n}", seed=n) for n in range(3)]


@pytest.fixture
def catalogue(store: Store) -> Catalogue:
    return Catalogue(store.layout)


def names(catalogue: Catalogue) -> Names:
    """What the catalogue lists."""
    return catalogue.ask(lambda db: dict(db.execute("SELECT label, digest FROM names")))


def truth(home: Path) -> Names:
    """What the refs say, read without the product's code."""
    found = {}
    for path, text in refs(home).items():
        namespace, name, tag = path.split("/")
        found[str(Name("" if namespace == "_" else namespace, name, tag))] = text.strip()
    return found


def everything(catalogue: Catalogue) -> dict[str, Any]:
    """All that the catalogue knows of the store, without the numbers that SQLite gave the rows."""
    queries = {
        "names": "SELECT label, names.digest, added, names.error, adapters.digest FROM names LEFT JOIN adapters ON id = adapter",
        "files": "SELECT a.digest, path, f.digest, f.size FROM files f JOIN adapters a ON a.id = adapter",
        "parents": "SELECT digest, position, parent, name, how, at FROM parents JOIN adapters ON id = adapter",
        "based": """SELECT digest, b.fingerprint, b.repo, b.revision, b.how, b.at FROM based b
                    JOIN adapters ON id = adapter""",
        "search": "SELECT digest, names, about FROM search JOIN adapters ON id = search.rowid",
        "touched": "SELECT * FROM touched",
    }

    def dump(db: sqlite3.Connection) -> dict[str, Any]:
        found = {table: sorted(map(repr, db.execute(query))) for table, query in queries.items()}
        cursor = db.execute("SELECT * FROM adapters")
        columns = [column[0] for column in cursor.description]
        rows = [dict(zip(columns, row, strict=True)) for row in cursor]
        found["adapters"] = sorted(repr({**row, "id": 0, "shape": 0}) for row in rows)
        return found

    return catalogue.ask(dump)


def rebuilt(catalogue: Catalogue) -> dict[str, Any]:
    """The same from nothing, in another file."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", folder)
        return everything(Catalogue(catalogue.layout))


# Incremental is the same as from nothing

_NAMES = ("tone", "ns/tone", "ns/terms:v2")


class _Random:
    """Random operations on one store; each is called with two small numbers."""

    def __init__(self, root: Path) -> None:
        maker = AdapterMaker(root / "adapters")
        self.folders = [maker(f"a{n}", seed=n) for n in range(3)]
        (self.folders[0] / "README.md").write_text("---\nlicense: mit\n---\nvery polite")
        self.store = Store.open(root / "home")
        self.catalogue = Catalogue(self.store.layout)

    def add(self, one: int, two: int) -> None:
        provenance = None
        known = [digest for _, digest in self.store.refs.all()]
        if one == 2 and known:
            parents = [{"digest": known[two % len(known)], "name": "parent"}]
            provenance = {"event": "merged", "recipe": {"method": "ties"}, "parents": parents}
        self.store.add_folder(self.folders[one], name=_NAMES[two], move=True, provenance=provenance)

    def tag(self, one: int, two: int) -> None:
        self.store.tag(self.store.resolve(_NAMES[one]), parse_name(_NAMES[two]), move=True)

    def remove(self, one: int, _: int) -> None:
        self.store.remove([parse_name(_NAMES[one])])

    def attest(self, one: int, two: int) -> None:
        digest = self.store.resolve(_NAMES[one]).digest
        if two:
            self.store.attest(digest, "base", {"fingerprint": f"sha256:{two}", "repo": "org/b"})
        else:
            self.store.attest(digest, "note", {"text": f"note {one}"})

    def undo(self, *_: int) -> None:
        undo(self.store, 1)

    def gc(self, *_: int) -> None:
        collect(self.store, grace=-1e9, trash_grace=1e9)

    def lose_manifest(self, one: int, _: int) -> None:
        self.store.layout.manifest(self.store.resolve(_NAMES[one]).digest).unlink()

    def put_back(self, one: int, two: int) -> None:
        """A backup: refs as they once were, some of them torn, and another journal."""
        digest = self.store.resolve(_NAMES[two]).digest
        self.store.layout.journal.write_text(f'{{"id": "{new_id()}"}}\n')
        self.store.layout.ref(parse_name(_NAMES[one])).write_text("rubbish")
        by_hand = self.store.layout.ref(Name("by", "hand"))
        by_hand.parent.mkdir(parents=True, exist_ok=True)
        by_hand.write_text(digest)

    def lose_journal(self, *_: int) -> None:
        self.store.layout.journal.unlink(missing_ok=True)

    def look(self, *_: int) -> None:
        everything(self.catalogue)


_OPERATIONS = tuple(name for name in vars(_Random) if not name.startswith("_"))
_STEPS = st.tuples(st.sampled_from(_OPERATIONS), st.integers(0, 2), st.integers(0, 2))


@given(steps=st.lists(_STEPS, min_size=4, max_size=14))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_step_by_step_is_the_same_as_from_nothing(
    steps: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    random = _Random(root)
    random.add(0, 0)
    random.add(1, 1)
    random.look()
    for what, one, two in steps:
        with suppress(AdapterHubError, OSError):
            getattr(random, what)(one, two)
    assert everything(random.catalogue) == rebuilt(random.catalogue)
    shutil.rmtree(root)


def test_every_kind_of_change_is_seen_at_once(
    store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    """Without looking in between, with looking in between: the same either way."""
    home = tmp_path / "home"
    for folder in folders:
        store.add_folder(folder, name=f"ns/{folder.name}")
        assert names(catalogue) == truth(home)
    store.tag(store.resolve("ns/a0"), parse_name("ns/a0:v2"))
    assert names(catalogue) == truth(home)
    store.tag(store.resolve("ns/a1"), parse_name("ns/a0:v2"), move=True)
    assert names(catalogue) == truth(home)
    store.remove([parse_name("ns/a0:v2"), parse_name("ns/a2")])
    assert names(catalogue) == truth(home)
    undo(store, 1)
    assert names(catalogue) == truth(home)
    assert len(truth(home)) == 4


def test_a_thing_learned_about_an_adapter_is_found(
    store: Store, catalogue: Catalogue, folders: list[Path]
) -> None:
    digest = store.add_folder(folders[0], name="tone").digest
    assert found(catalogue, "melodious") == []
    store.attest(digest, "note", {"text": "Melodious and short"})
    assert found(catalogue, "melodious") == ["tone"]


def found(catalogue: Catalogue, text: str) -> list[str]:
    return [row.name for row in catalogue.ask(lambda db: search(db, Query(text=text), {}))]


def test_what_came_and_went_without_a_line_of_the_journal_is_seen(
    store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    """A backup of some names put back by hand, and names deleted by hand."""
    home = tmp_path / "home"
    store.add_folder(folders[0], name="ns/one")
    store.add_folder(folders[1], name="two")
    assert names(catalogue) == truth(home)
    shutil.copytree(home / "store" / "refs" / "ns", home / "store" / "refs" / "other")
    assert set(names(catalogue)) == {"ns/one", "other/one", "two"}
    shutil.rmtree(home / "store" / "refs" / "ns")
    assert names(catalogue) == truth(home)
    (home / "store" / "refs" / "_" / "two" / "latest").unlink()
    (home / "store" / "refs" / "_" / "two").rmdir()
    assert set(names(catalogue)) == {"other/one"}


@pytest.mark.parametrize("how", ["removed", "truncated", "another", "same length"])
def test_a_journal_that_is_not_the_one_it_read_makes_it_read_every_ref(
    how: str, store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    store.add_folder(folders[0], name="one")
    store.add_folder(folders[1], name="two")
    names(catalogue)
    ref, journal = store.layout.ref(parse_name("one")), store.layout.journal
    ref.write_text(store.layout.ref(parse_name("two")).read_text())  # as a restored backup would
    assert names(catalogue) != truth(tmp_path / "home"), "the test needs a change nothing tells of"
    data = journal.read_bytes()
    if how == "removed":
        journal.unlink()
    else:
        changed = {"truncated": data[:-40], "another": data.replace(b"one", b"uno") * 2}
        journal.write_bytes(changed.get(how, data[:-20] + b"x" * 19 + b"\n"))
    assert names(catalogue) == truth(tmp_path / "home")


def test_reading_again_costs_no_writing(
    store: Store, catalogue: Catalogue, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "RACY_SECONDS", -1.0)
    store.add_folder(folders[0], name="one")
    (store.layout.refs / "_" / "torn").mkdir()
    (store.layout.refs / "_" / "torn" / "latest").write_text("rubbish")
    names(catalogue)
    before = catalogue.file.path.read_bytes()
    for _ in range(3):
        assert set(names(catalogue)) == {"one", "torn"}
    assert catalogue.file.path.read_bytes() == before


# Damage in the store


def test_a_manifest_that_is_gone_is_reported_and_its_return_is_seen(
    store: Store, folders: list[Path]
) -> None:
    digest = store.add_folder(folders[0], name="one").digest
    store.add_folder(folders[1], name="two")
    assert call("ls").code == 0
    path = store.layout.manifest(digest)
    data = path.read_bytes()
    path.unlink()
    said = call("ls", "--json")
    assert said.code == 6
    assert [row["name"] for row in said.json] == ["two"]
    assert str(path) in said.error["why"]
    path.write_bytes(data)
    said = call("ls", "-q")
    assert (said.code, said.out) == (0, "one\ntwo\n")


def test_a_damaged_attestation_hides_nothing_else(store: Store, folders: list[Path]) -> None:
    digest = store.add_folder(folders[0], name="one").digest
    (path,) = store.layout.attestations(digest).iterdir()
    path.chmod(0o644)
    path.write_bytes(b"{}")
    said = call("ls", "--json")
    assert said.code == 6
    assert [(row["name"], row["rank"]) for row in said.json] == [("one", 4)]
    assert str(path) in said.err


# The cache's own file


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
    """As a disk damages a file: sectors of zeros, of ones, or of something else."""
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
    assert everything(catalogue) == expected


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


# Between the lines


def test_a_reader_between_journal_and_ref_sees_the_change_next_time(
    store: Store,
    catalogue: Catalogue,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, between = Transaction._put, []

    def read_first(transaction: Transaction, name: Name, digest: str | None) -> None:
        between.append(names(catalogue) == truth(tmp_path / "home"))
        put(transaction, name, digest)
        between.append(names(catalogue) == truth(tmp_path / "home"))

    monkeypatch.setattr(Transaction, "_put", read_first)
    store.add_folder(folders[0], name="one")
    store.add_folder(folders[1], name="one", move=True)
    store.remove([parse_name("one")])
    store.tag(store.resolve(f"@{store.log()[0].after[7:20]}"), parse_name("two"))  # type: ignore[index]
    assert names(catalogue) == truth(tmp_path / "home")
    assert between == [True] * 8


def test_a_change_that_a_crash_left_and_the_next_writer_took_back_is_seen_both_times(
    store: Store, catalogue: Catalogue, folders: list[Path], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    one, two = (store.add_folder(folder, name=folder.name).digest for folder in folders[:2])
    operation = new_id()
    lines = [
        Change(now(), "me@here", "tag", f"a{n}", before, after, "", operation)
        for n, (before, after) in enumerate([(one, two), (two, one)])
    ]
    store.refs.journal.append(lines)
    store.layout.ref(parse_name("a0")).write_text(f"{two}\n")  # and then the power went
    assert names(catalogue) == truth(home) == {"a0": two, "a1": two}
    store.tag(store.resolve("a1"), parse_name("third"))
    assert names(catalogue) == truth(home) == {"a0": one, "a1": two, "third": two}


def test_an_attestation_announced_before_it_is_written_is_found_when_it_is_there(
    store: Store, catalogue: Catalogue, folders: list[Path]
) -> None:
    digest = store.add_folder(folders[0], name="one").digest
    store.attest(digest, "note", {"text": "zebra"})
    note = max(
        store.layout.attestations(digest).iterdir(), key=lambda path: path.stat().st_mtime_ns
    )
    data = note.read_bytes()
    note.unlink()
    assert found(catalogue, "zebra") == []
    note.write_bytes(data)
    assert found(catalogue, "zebra") == ["one"]


# Many processes

_WRITER = """
import sys
from pathlib import Path
from adapterhub.names import Name, parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue import Catalogue
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
from adapterhub.store.catalogue import Catalogue
from adapterhub.store.search import Query, search
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


def test_a_store_on_a_read_only_file_system_is_listed(store: Store, folders: list[Path]) -> None:
    """Listing writes nothing into the store."""
    store.add_folder(folders[0], name="one")
    before = {path: path.stat().st_mtime_ns for path in store.home.rglob("*")}
    said = run("ls", "--json")
    assert json.loads(said.out)[0]["name"] == "one"
    assert {path: path.stat().st_mtime_ns for path in store.home.rglob("*")} == before
