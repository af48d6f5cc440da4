"""Going back: undo takes the last operations back whole or not at all, rollback gives a name its previous adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapterhub.errors import ConflictError, NotFoundError, UsageError
from adapterhub.names import parse_name
from adapterhub.store import Change, Store
from adapterhub.store.garbage import collect
from adapterhub.store.history import plan_undo, rollback, undo
from tests.cli.calling import call
from tests.store.ageing import DAY, age, everything, manifest, meaning
from tests.store.watching import journal, problems, refs, unchanged
from tests.support.adapters import AdapterMaker


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that share no file, a to e, and a store with `a`, `a:v1` and `b`. Every test gets a copy."""
    root = tmp_path_factory.mktemp("life")
    make, store = AdapterMaker(root / "adapters"), Store.open(root / "home")
    for seed, name in enumerate("abcde"):
        make(name, seed=seed, rank=seed + 2)
    for name in "ab":
        store.add_folder(root / "adapters" / name)
    store.tag(store.resolve("a"), parse_name("a:v1"))
    return root


@pytest.fixture
def folders(life: Path) -> dict[str, Path]:
    return {path.name: path for path in (life / "adapters").iterdir()}


@pytest.fixture
def home(life: Path, tmp_path: Path) -> Path:
    return shutil.copytree(life / "home", tmp_path / "home")


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open(home)


def sweep(store: Store, grace: float = 0, trash_grace: float = 30 * DAY) -> str | None:
    return collect(store, grace=grace, trash_grace=trash_grace).trash


def removed(store: Store, *names: str) -> None:
    store.remove([parse_name(name) for name in names])


OPERATIONS: dict[str, Callable[[Store, dict[str, Path]], object]] = {
    "tag": lambda store, _: store.tag(store.resolve("a"), parse_name("ns/a")),
    "tag --move": lambda store, _: store.tag(store.resolve("b"), parse_name("a"), move=True),
    "rm of several": lambda store, _: removed(store, "a", "a:v1", "b"),
    "add": lambda store, folders: store.add_folder(folders["c"]),
    "add of what is there": lambda store, folders: store.add_folder(folders["a"], name="again"),
    "add --move": lambda store, folders: store.add_folder(folders["c"], name="a", move=True),
    "rollback": lambda store, _: rollback(store, parse_name("b:moved")),
    "undo": lambda store, _: undo(store),
    "undo of several": lambda store, _: undo(store, 3),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_undone_and_done_again_and_undone(
    operation: str, store: Store, home: Path, folders: dict[str, Path]
) -> None:
    store.tag(store.resolve("a"), parse_name("b:moved"))
    store.tag(store.resolve("b"), parse_name("b:moved"), move=True)
    before = refs(home)
    OPERATIONS[operation](store, folders)
    after = refs(home)
    assert after != before
    for expected in (before, after, before):
        undo(store)
        assert refs(home) == expected
    assert problems(home) == []


@pytest.mark.slow
def test_a_merge_is_undone(store: Store, home: Path, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter("one", seed=7))
    store.add_folder(make_adapter("two", seed=8))
    before = refs(home)
    assert call("merge", "one", "two", "--name", "merged").code == 0
    merged = refs(home)
    said = call("undo")
    assert said.code == 0
    assert "merge" in said.err
    assert refs(home) == before
    assert call("undo").code == 0
    assert refs(home) == merged


def test_undo_n_goes_back_over_several_operations_as_one(
    store: Store, home: Path, folders: dict[str, Path]
) -> None:
    start = refs(home)
    store.add_folder(folders["c"])
    store.tag(store.resolve("c"), parse_name("a"), move=True)
    store.tag(store.resolve("b"), parse_name("a"), move=True)
    removed(store, "b", "c")
    end = refs(home)
    undone = undo(store, 4)
    assert [operation.op for operation in undone.operations] == ["rm", "tag", "tag", "add"]
    assert refs(home) == start
    undo(store)
    assert refs(home) == end


def test_operations_that_cancel_each_other_are_nothing_to_do(store: Store, home: Path) -> None:
    store.tag(store.resolve("a"), parse_name("b"), move=True)
    before = refs(home)
    undo(store)
    undo(store)
    assert undo(store, 2).moves == ()
    assert refs(home) == before


@pytest.mark.parametrize("count", [1, 6])
def test_more_than_was_ever_done_is_refused(count: int, tmp_path: Path, home: Path) -> None:
    if count == 1:
        empty = Store.open(tmp_path / "nothing")
        with pytest.raises(UsageError):
            undo(empty)
        return
    with unchanged(home):
        said = call("undo", str(count), "--json")
    assert said.code == 2
    assert "3 operations" in said.error["why"]


def test_a_name_that_is_not_what_the_journal_says_is_left_alone(store: Store, home: Path) -> None:
    """A restored backup, another tool: nobody knows what to go back to."""
    removed(store, "a", "b")
    (home / "store" / "refs" / "_" / "b").mkdir(parents=True)
    (home / "store" / "refs" / "_" / "b" / "latest").write_text(
        f"sha256:{meaning(home, '_/a/v1')}\n"
    )
    with unchanged(home):
        said = call("undo", "--json")
    assert said.code == 1
    assert "b " in said.error["what"]
    assert meaning(home, "_/a/v1")[:12] in said.error["why"]
    assert said.error["hint"].startswith("Set it yourself: adapterhub tag @")
    with pytest.raises(ConflictError):
        plan_undo(store)


def test_a_dry_run_says_what_would_happen_and_changes_nothing(store: Store, home: Path) -> None:
    removed(store, "a", "b")
    with unchanged(home):
        said = call("undo", "--dry-run", "--json")
    assert {row["name"] for row in said.json} == {"a", "b"}
    done = call("undo", "--json")
    assert done.json == said.json


def test_what_was_collected_comes_back_with_its_name(store: Store, home: Path) -> None:
    store.attest(store.resolve("b").digest, "eval", {"perplexity": 2.5})
    before, names = everything(home), refs(home)
    removed(store, "b")
    assert sweep(store)
    assert everything(home) < before
    undo(store, 2)
    assert everything(home) == before
    assert refs(home) == names
    assert problems(home) == []


def test_an_undo_of_rm_alone_takes_what_it_needs_out_of_the_trash(
    store: Store, home: Path, folders: dict[str, Path]
) -> None:
    """The collection stays done; only the adapter that a name means again is back."""
    for name in "cd":
        store.add_folder(folders[name])
    removed(store, "c", "d")
    sweep(store)
    rows = [line for line in journal(home) if line["op"] == "rm"]
    ref = home / "store" / "refs" / "_" / "c" / "latest"
    ref.parent.mkdir(parents=True)
    ref.write_text(f"{rows[0]['before']}\n")
    removed(store, "c")
    undo(store)
    assert problems(home) == []
    assert manifest(home, str(rows[0]["before"])[7:]).is_file()
    assert not manifest(home, str(rows[1]["before"])[7:]).exists()


@pytest.mark.parametrize("left", ["nothing", "no list"])
def test_what_was_deleted_for_good_does_not_come_back_as_a_name(
    left: str, store: Store, home: Path
) -> None:
    digits = meaning(home, "b")
    removed(store, "b")
    trash = home / "store" / "trash" / str(sweep(store))
    if left == "nothing":
        sweep(store, trash_grace=0)
    else:  # what a crash while deleting leaves
        (trash / "contents.json").unlink()
    with unchanged(home):
        said = call("undo", "2", "--json")
    assert said.code == 4, said.err
    assert said.error["why"]
    assert set(refs(home)) == {"_/a/latest", "_/a/v1"}
    assert not manifest(home, digits).exists()


def test_an_undone_collection_is_taken_back_again_but_for_what_is_needed_by_now(
    store: Store, home: Path, folders: dict[str, Path]
) -> None:
    for name in ("c", "d"):
        store.add_folder(folders[name])
    removed(store, "c", "d")
    digests = [
        str(line["before"])[7:] for line in journal(home) if line["op"] == "rm" and line["before"]
    ]
    sweep(store)
    undo(store)
    store.add_folder(folders["c"], name="kept")
    before = everything(home)
    undo(store, 2)
    assert "_/kept/latest" not in refs(home), "that was undone too"
    undo(store)
    assert everything(home) == before
    undo(store, 3)
    assert "_/kept/latest" not in refs(home), "as before the last three"
    undo(store)
    assert refs(home)["_/kept/latest"].strip() == f"sha256:{digests[0]}"
    assert everything(home) == before


def test_what_a_second_undo_sweeps_again_spares_what_has_a_name(store: Store, home: Path) -> None:
    digest = store.resolve("b").digest
    removed(store, "b")
    sweep(store)
    undo(store)
    ref = home / "store" / "refs" / "_" / "found" / "latest"
    ref.parent.mkdir(parents=True)
    ref.write_text(f"{digest}\n")
    undo(store)
    assert problems(home) == []
    ref.unlink()


def test_undoing_a_collection_and_its_undoing_at_once_changes_nothing(
    store: Store, home: Path
) -> None:
    removed(store, "b")
    before = everything(home)
    sweep(store)
    undo(store)
    undo(store, 2)
    assert everything(home) == before
    undo(store)
    assert everything(home) == before


def test_an_undone_collection_whose_trash_is_gone_is_not_half_taken_back(
    store: Store, home: Path
) -> None:
    removed(store, "b")
    sweep(store)
    undo(store)
    age(home, 60 * DAY)
    for folder in (home / "store" / "trash").iterdir():
        (folder / "contents.json").unlink()
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir()
        folder.rmdir()
    with unchanged(home), pytest.raises(NotFoundError):
        undo(store)


def test_a_name_that_once_meant_what_is_gone_for_good_is_no_hindrance(
    store: Store, home: Path, folders: dict[str, Path]
) -> None:
    """Its history names an adapter that nobody can read any more."""
    removed(store, "b")
    sweep(store)
    sweep(store, trash_grace=0)
    store.add_folder(folders["c"], name="b")
    store.add_folder(folders["d"])
    removed(store, "d")
    sweep(store)
    before = everything(home)
    undo(store)
    undo(store)
    assert everything(home) == before
    assert problems(home) == []


def test_an_undo_that_would_sweep_waits_until_nobody_adds(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed(store, "b")
    sweep(store)
    undo(store)
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0.1")
    with store.writing(), unchanged(home):
        assert call("undo").code == 7


def test_an_undo_that_finds_another_last_operation_than_it_prepared_for_is_refused(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody undoes the collection first: to undo that would sweep, which only the exclusive lock allows."""
    removed(store, "b")
    sweep(store)
    other, writing = Store.open(home), store.writing

    @contextmanager
    def late() -> Iterator[None]:
        undo(other)
        with writing():
            yield

    monkeypatch.setattr(store, "writing", late)
    with pytest.raises(ConflictError):
        undo(store)
    assert [line["op"] for line in journal(home)][-1] == "undo"
    assert problems(home) == []


# rollback


def test_rollback_goes_back_one_by_one_and_undo_forward_again(
    store: Store, home: Path, folders: dict[str, Path]
) -> None:
    was = {"a": store.resolve("a").digest}
    for letter in "cde":
        was[letter] = store.add_folder(folders[letter], name="a", move=True).digest
    tone = parse_name("a")
    for letter in "dca":
        assert rollback(store, tone)[1].digest == was[letter]
        assert refs(home)["_/a/latest"].strip() == was[letter]
    with unchanged(home), pytest.raises(NotFoundError):
        rollback(store, tone)
    undo(store)
    assert refs(home)["_/a/latest"].strip() == was["c"]
    rollback(store, tone)
    assert refs(home)["_/a/latest"].strip() == was["a"]
    undo(store, 5)
    assert refs(home)["_/a/latest"].strip() == was["e"], "as before all rollbacks"


def test_rollback_after_a_move_back_and_forth_goes_to_what_it_was(store: Store, home: Path) -> None:
    a, b = store.resolve("a"), store.resolve("b")
    name = parse_name("x")
    for resolved in (a, b, a):
        store.tag(resolved, name, move=True)
    assert rollback(store, name)[1].digest == b.digest
    assert rollback(store, name)[1].digest == a.digest
    with pytest.raises(NotFoundError):
        rollback(store, name)


def test_releases_survive_every_collection_as_often_as_config_says(
    store: Store, home: Path, folders: dict[str, Path]
) -> None:
    for name in "bcde":
        store.add_folder(folders[name], name="a", move=True)
    removed(store, "a:v1", "b")
    age(home, 100 * DAY)
    (home / "config.toml").write_text("[store]\nkeep_releases = 2\n")
    for _ in range(2):
        assert call("gc", "--trash-grace", "0s", "--yes").code == 0
    for _ in range(2):
        assert call("rollback", "a").code == 0
    assert store.resolve("a").digest == f"sha256:{meaning(home, 'a')}"
    assert problems(home) == []
    said = call("rollback", "a", "--json")
    assert said.code == 4
    assert "no longer in the store" in said.error["what"]
    assert "nor the trash" in said.error["why"]


def test_keeping_no_releases_keeps_none(store: Store, home: Path, folders: dict[str, Path]) -> None:
    store.add_folder(folders["c"], name="b", move=True)
    age(home, 100 * DAY)
    (home / "config.toml").write_text("[store]\nkeep_releases = 0\n")
    assert call("gc", "--yes").code == 0
    assert {path.name for path in (home / "store" / "manifests").glob("*/*/*")} == {
        meaning(home, "a"),
        meaning(home, "b"),
    }
    assert call("rollback", "b").code == 0, "from the trash"
    assert problems(home) == []


# What a crash left


@contextmanager
def as_a_crash_left_it(home: Path, changed: set[str]) -> Iterator[None]:
    """After the block, its last operation has no `done`, and of its refs only those in `changed` have changed."""
    before = refs(home)
    yield
    after = refs(home)
    path = home / "store" / "log" / "refs.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["op"] == "done"
    path.write_bytes(b"".join(lines[:-1]))
    for name in (before.keys() | after.keys()) - changed:
        ref = home / "store" / "refs" / name
        if name in before:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(before[name])
        else:
            ref.unlink(missing_ok=True)


NAMES = ["_/a/latest", "_/a/v1", "_/b/latest"]


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("then", ["fsck", "tag", "undo", "gc"])
def test_an_operation_that_a_crash_cut_short_is_seen_as_its_refs_are_and_ended_by_the_next(
    count: int, then: str, store: Store, home: Path
) -> None:
    before = refs(home)
    with as_a_crash_left_it(home, set(NAMES[:count])):
        removed(store, "a", "a:v1", "b")
    left = refs(home)
    assert set(left) == set(NAMES[count:])
    assert {str(entry.name) for entry in store.entries()} == {
        {"_/a/latest": "a", "_/a/v1": "a:v1", "_/b/latest": "b"}[name] for name in left
    }
    if then == "fsck":
        with unchanged(home):
            said = call("fsck", "--json")
        assert (said.code, said.json["damages"], said.json["remarks"]) == (0, [], [])
        return
    whole = {} if count == 3 else before
    if then == "tag":
        if count < 3:
            assert call("tag", "b", "new").code == 0
            whole = before | {"_/new/latest": before["_/b/latest"]}
    elif then == "undo":
        assert call("undo").code == 0
        whole = {name: text for name, text in before.items() if count == 3 or name != "_/a/v1"}
    else:
        assert call("gc", "--grace", "0s", "--yes").code == 0
        if count == 3:
            call("undo", "2")
            whole = before
    assert refs(home) == whole
    assert problems(home) == []
    assert call("fsck").code == 0


def test_the_remains_of_a_torn_line_are_no_damage_and_the_next_line_is_whole(
    store: Store, home: Path
) -> None:
    path = home / "store" / "log" / "refs.jsonl"
    with path.open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:00+00:00", "who": "some')
    before = refs(home)
    assert call("fsck").code == 0
    store.tag(store.resolve("a"), parse_name("new"))
    assert call("fsck").code == 0
    assert call("log", "new", "-q").out == "new\n"
    assert call("undo").code == 0
    assert refs(home) == before


def test_a_dry_run_after_a_crash_says_what_the_undo_will_do(
    store: Store, make_adapter: AdapterMaker
) -> None:
    """The next writer takes half an operation back, so the undo is of the one before."""
    store.add_folder(make_adapter("one"), name="one")
    store.tag(store.resolve("one"), parse_name("two"))
    digest = store.resolve("one").digest
    cut = [
        Change(
            "2026-01-01T00:00:00+00:00", "me@here", "rm", name, digest, None, "rm one two", "f" * 12
        )
        for name in ("one", "two")
    ]
    store.refs.journal.append(cut)
    store.layout.ref(parse_name("two")).unlink()
    foreseen = plan_undo(store)
    assert [operation.why for operation in foreseen.operations] == ["tag one two"]
    assert undo(store).moves == foreseen.moves
    assert not {"two"} & {str(name) for name in store.refs.names()}
    assert store.resolve("one").digest == digest
