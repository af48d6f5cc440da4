"""What removing names is said to do is what it does: the bytes that a collection frees then, the adapters it loses, who uses them."""

from __future__ import annotations

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.consequences import Removal, of_removing, uses
from adapterhub.store.garbage import make_plan
from tests.cli.calling import run
from tests.support.adapters import AdapterMaker


def said(store: Store, *names: str) -> Removal:
    parsed = [parse_name(name) for name in names]
    return Catalogue(store.layout).ask(lambda db: of_removing(store, db, parsed))


def freed(store: Store) -> int:
    """Bytes of blobs that a collection without any grace takes."""
    plan = make_plan(store, grace=0, trash_grace=0)
    return sum(item.size for item in plan.garbage if item.kind == "blob")


@pytest.fixture
def three(store: Store, make_adapter: AdapterMaker) -> Store:
    """Two adapters with equal weights and different configurations, and one of its own; the first has two names."""
    store.add_folder(make_adapter("a", seed=1), name="a")
    store.add_folder(make_adapter("b", seed=1, base="org/other"), name="b")
    store.add_folder(make_adapter("c", seed=2), name="c")
    store.tag(store.resolve("a"), parse_name("a:prod"))
    return store


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (("a",), 0),
        (("a", "a:prod"), 1),  # its files are those of b
        (("c",), 1),
        (("a", "a:prod", "b"), 2),
        (("a", "b", "c"), 2),
    ],
)
def test_what_is_said_is_what_a_collection_frees(
    three: Store, names: tuple[str, ...], lost: int
) -> None:
    before = said(three, *names)
    three.remove([parse_name(name) for name in names])
    assert len(before.lost) == lost
    assert before.frees == freed(three)
    assert (before.frees > 0) == ("c" in names or "b" in names)


def test_an_adapter_with_another_name_is_not_lost(three: Store) -> None:
    assert said(three, "a").words == ("no adapter is lost: each has another name",)


def test_a_server_that_uses_it_is_named_and_nothing_is_freed_under_it(three: Store) -> None:
    digest = three.resolve("c").digest
    with three.leases.held("serve", [digest], "at http://127.0.0.1:8000"):
        assert [use.words for use in uses(three)[digest]] == ["the server on :8000"]
        told = said(three, "c")
        assert told.words[-1] == "used by the server on :8000"
        three.remove([parse_name("c")])
        assert told.frees == freed(three) == 0
    assert uses(three) == {}


def test_a_release_that_rollback_needs_is_kept(three: Store) -> None:
    three.tag(three.resolve("c"), parse_name("b"), move=True)
    three.tag(three.resolve("a"), parse_name("c"), move=True)
    # only b's name leads to the third adapter now, and c's history does too
    told = said(three, "b")
    three.remove([parse_name("b")])
    assert (told.kept, told.frees) == (1, freed(three))


def test_a_damaged_lease_hides_no_other(three: Store) -> None:
    digest = three.resolve("c").digest
    with three.leases.held("merge", [digest], "into d"):
        (three.layout.leases / "odd.json").write_text("{")
        assert [use.words for use in uses(three)[digest]] == ["a merge into d"]


def test_the_command_says_the_same_before_it_asks(three: Store) -> None:
    shown = run("rm", "c")
    for words in said(three, "c").words:
        assert words in shown.err
    assert "needs a yes" in shown.err
    assert three.names_of(three.resolve("c").digest)
