"""The catalogue says what the files say: after any changes, after its own file was lost, and while others change both."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.errors import AdapterHubError
from adapterhub.names import Name, parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue import changes as changes_module
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.garbage import collect
from adapterhub.store.history import undo
from adapterhub.store.journal import Change, new_id, now
from adapterhub.store.refs import Transaction
from tests.cli.calling import call, run
from tests.store.catalogued import everything, found, names, rebuilt, truth
from tests.support.adapters import AdapterMaker

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
        self.look()  # before that journal is lost again: then nothing would tell

    def lose_journal(self, *_: int) -> None:
        self.store.layout.journal.unlink(missing_ok=True)

    def look(self, *_: int) -> None:
        everything(self.catalogue)


_OPERATIONS = tuple(name for name in vars(_Random) if not name.startswith("_"))
_STEPS = st.tuples(st.sampled_from(_OPERATIONS), st.integers(0, 2), st.integers(0, 2))


@given(steps=st.lists(_STEPS, min_size=4, max_size=14))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
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


def test_a_store_on_a_read_only_file_system_is_listed(store: Store, folders: list[Path]) -> None:
    """Listing writes nothing into the store."""
    store.add_folder(folders[0], name="one")
    before = {path: path.stat().st_mtime_ns for path in store.home.rglob("*")}
    said = run("ls", "--json")
    assert json.loads(said.out)[0]["name"] == "one"
    assert {path: path.stat().st_mtime_ns for path in store.home.rglob("*")} == before
