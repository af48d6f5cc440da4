"""Mending a store from whatever has the right bytes; what can't be mended is set aside and named, nothing is deleted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.checking import check
from adapterhub.store.repair import Mended, repair
from tests.cli.calling import call
from tests.store.ageing import age, blobs, flip, manifest, meaning, weights, write
from tests.store.watching import problems, refs, sha256, unchanged
from tests.support.adapters import AdapterMaker


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tone` with a tag and an evaluation, `other`; added from folders that are gone since, so that no place has their bytes."""
    root = tmp_path_factory.mktemp("life")
    make, store = AdapterMaker(root / "passing"), Store.open(root / "home")
    store.add_folder(make("tone"))
    store.add_folder(make("other", seed=1, rank=3))
    store.tag(store.resolve("tone"), parse_name("tone:prod"))
    store.attest(store.resolve("tone").digest, "eval", {"perplexity": 2.5})
    (root / "passing").rename(root / "adapters")
    age(root / "home", 10)
    return root


@pytest.fixture
def home(life: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return Path(shutil.copytree(life / "home", tmp_path / "home"))


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open(home)


@pytest.fixture
def folder(life: Path, tmp_path: Path) -> Path:
    """A copy of the folder that `tone` was added from, somewhere else."""
    return Path(shutil.copytree(life / "adapters" / "tone", tmp_path / "found" / "somewhere"))


def flipped_weights(home: Path) -> Path:
    flip(weights(home, "tone"))
    return weights(home, "tone")


def torn_weights(home: Path) -> Path:
    write(weights(home, "tone"), weights(home, "tone").read_bytes()[:100])
    return weights(home, "tone")


def no_weights(home: Path) -> Path:
    path = weights(home, "tone")
    path.unlink()
    return path


def no_config(home: Path) -> Path:
    path = blobs(home, meaning(home, "tone"))["adapter_config.json"]
    path.unlink()
    return path


def flipped_manifest(home: Path) -> Path:
    path = manifest(home, meaning(home, "tone"))
    flip(path, 30)
    return path


def no_manifest(home: Path) -> Path:
    path = manifest(home, meaning(home, "tone"))
    path.unlink()
    return path


def flipped_attestation(home: Path) -> Path:
    path = next((home / "store" / "attestations" / meaning(home, "tone")).iterdir())
    flip(path, 30)
    return path


def nothing_left(home: Path) -> Path:
    """Manifest and files at once."""
    path = manifest(home, meaning(home, "tone"))
    for blob in blobs(home, meaning(home, "tone")).values():
        blob.unlink()
    path.unlink()
    return path


DAMAGES = [
    flipped_weights,
    torn_weights,
    no_weights,
    no_config,
    flipped_manifest,
    no_manifest,
    nothing_left,
]
DOCUMENTS = [flipped_attestation]


def from_the_trash(life: Path, home: Path, folder: Path) -> list[str]:
    shutil.copytree(
        life / "home" / "store",
        home / "store" / "trash" / "20260101-000000-abcdef",
        ignore=shutil.ignore_patterns("refs", "log", "lock", "id", "format-version", "tmp"),
    )
    return []


def from_another_store(life: Path, home: Path, folder: Path) -> list[str]:
    return ["--from", str(life / "home")]


def from_any_folder(life: Path, home: Path, folder: Path) -> list[str]:
    return ["--from", str(folder)]


def from_where_it_was_added(life: Path, home: Path, folder: Path) -> list[str]:
    passing = life / "passing" / "tone"
    shutil.copytree(folder, passing)
    return []


def from_a_checkout(life: Path, home: Path, folder: Path) -> list[str]:
    whole = Store.open(Path(shutil.copytree(life / "home", home.parent / "whole")))
    whole.checkout(whole.resolve("tone"), home.parent / "out")
    (home / "places.jsonl").write_bytes((whole.home / "places.jsonl").read_bytes())
    return []


SOURCES = [
    from_the_trash,
    from_another_store,
    from_any_folder,
    from_where_it_was_added,
    from_a_checkout,
]


@pytest.fixture(autouse=True)
def _nothing_passing(life: Path) -> None:
    shutil.rmtree(life / "passing", ignore_errors=True)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_mended_from_a_place_that_has_the_bytes(
    damage: Callable[[Path], Path],
    source: Callable[[Path, Path, Path], list[str]],
    life: Path,
    home: Path,
    folder: Path,
) -> None:
    whole = refs(home)
    path = damage(home)
    words = source(life, home, folder)
    said = call("fsck", "--read-data", "--repair", *words, "--json")
    assert said.code == 0, said.json
    assert {row["mended"] for row in said.json["damages"]} == {True}
    assert str(path) in {row["path"] for row in said.json["damages"]}
    assert problems(home) == []
    assert refs(home) == whole
    assert path.stat().st_mode & 0o777 == 0o444
    again = call("fsck", "--read-data", "--repair", "--json")
    assert (again.code, again.json["damages"]) == (0, [])


@pytest.mark.parametrize("source", [from_the_trash, from_another_store])
@pytest.mark.parametrize("damage", DOCUMENTS)
def test_a_damaged_attestation_is_mended_from_the_trash_or_another_store(
    damage: Callable[[Path], Path],
    source: Callable[[Path, Path, Path], list[str]],
    life: Path,
    home: Path,
    folder: Path,
) -> None:
    path = damage(home)
    assert call("fsck", "--repair", *source(life, home, folder)).code == 0
    assert path.name == sha256(path.read_bytes())
    assert problems(home) == []


@pytest.mark.parametrize("damage", [flipped_weights, no_weights])
def test_a_blob_is_mended_from_a_view(
    damage: Callable[[Path], Path], store: Store, home: Path
) -> None:
    view = store.view(store.resolve("tone").digest)
    copy = (view / "adapter_model.safetensors").read_bytes()
    (view / "adapter_model.safetensors").unlink()
    (view / "adapter_model.safetensors").write_bytes(copy)  # where links can't be made, it is one
    damage(home)
    assert call("fsck", "--read-data", "--repair").code == 0
    assert problems(home) == []
    assert call("fsck", "--read-data").code == 0


@pytest.mark.parametrize("damage", [flipped_weights, no_weights])
def test_a_blob_is_mended_from_the_hugging_face_cache(
    damage: Callable[[Path], Path], life: Path, home: Path, tmp_path: Path
) -> None:
    path = damage(home)
    cached = tmp_path / "hub" / "models--org--tone" / "blobs" / path.name
    cached.parent.mkdir(parents=True)
    shutil.copy(life / "adapters" / "tone" / "adapter_model.safetensors", cached)
    said = call("fsck", "--read-data", "--repair", "--json")
    assert said.code == 0
    assert "Hugging Face cache" in said.json["damages"][0]["how"]
    assert problems(home) == []


@pytest.mark.parametrize("damage", [flipped_weights, no_weights])
def test_a_blob_is_fetched_again_as_a_last_resort_and_not_believed(
    damage: Callable[[Path], Path], life: Path, store: Store, home: Path, tmp_path: Path
) -> None:
    damage(home)
    good = life / "adapters" / "tone" / "adapter_model.safetensors"
    bad = tmp_path / "bad"
    bad.write_bytes(good.read_bytes()[:-1] + b"\0")
    asked = []

    def fetch(place: Path) -> list[Mended]:
        def ask(_: Store, adapter: str, path: str) -> Path:
            asked.append((adapter, path))
            return place

        return repair(store, check(store, lambda found: found), (), ask)

    assert [outcome.mended for outcome in fetch(bad) if outcome.damage.kind == "blob"] == [False]
    assert [outcome.mended for outcome in fetch(good) if outcome.damage.kind == "blob"] == [True]
    assert set(asked) == {(store.resolve("tone").digest, "adapter_model.safetensors")}
    assert problems(home) == []


def test_a_wrong_candidate_is_never_taken(
    life: Path, store: Store, home: Path, folder: Path, tmp_path: Path
) -> None:
    """The same size, the same name, everywhere a repair looks."""
    digest = store.resolve("tone").digest
    path = no_weights(home)
    source = folder / "adapter_model.safetensors"
    flip(source)
    for place in (
        home / "store" / "trash" / "20260101-000000-abcdef" / path.relative_to(home / "store"),
        tmp_path / "hub" / "models--org--tone" / "blobs" / path.name,
        tmp_path / "elsewhere" / "store" / path.relative_to(home / "store"),
        life / "passing" / "tone" / "adapter_model.safetensors",
        home / "store" / "views" / digest[7:] / "adapter_model.safetensors",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    words = ["--from", str(folder), "--from", str(tmp_path / "elsewhere"), "--from", str(tmp_path)]
    said = call("fsck", "--read-data", "--repair", *words, "--json")
    assert said.code == 6
    (row,) = [row for row in said.json["damages"] if row["kind"] == "blob"]
    assert (row["mended"], row["how"]) == (False, "no other copy was found")
    assert not path.exists()
    assert list((home / "store" / "tmp").iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGES + DOCUMENTS)
def test_what_cannot_be_mended_is_in_quarantine_and_named_and_the_next_run_has_nothing_new(
    damage: Callable[[Path], Path], life: Path, home: Path, folder: Path
) -> None:
    whole = refs(home)
    path = damage(home)
    bytes_before = path.read_bytes() if path.exists() else None
    said = call("fsck", "--read-data", "--repair", "--json")
    assert said.code == 6
    assert str(path) in {row["path"] for row in said.json["damages"] if not row["mended"]}
    assert refs(home) == whole, "the names stay: they know what is lost"
    quarantine = home / "store" / "quarantine"
    aside = {file for file in quarantine.rglob("*") if file.is_file()}
    assert [file.read_bytes() for file in aside] == ([bytes_before] if bytes_before else [])
    again = call("fsck", "--read-data", "--repair", "--json")
    if damage is flipped_attestation:  # nothing else knows of it
        assert again.code == 0
    else:
        assert again.code == 6
        assert {row["how"] for row in again.json["damages"]} == {"no other copy was found"}
    assert {file for file in quarantine.rglob("*") if file.is_file()} == aside
    if damage not in DOCUMENTS:
        words = from_any_folder(life, home, folder)
        assert call("fsck", "--read-data", "--repair", *words).code == 0, "once a copy is found"
        assert problems(home) == []


# Refs, the journal, leases, views, shelves


@pytest.mark.parametrize("text", ["rubbish", "", None], ids=repr)
@pytest.mark.parametrize("where", ["store", "trash", "folder"])
def test_a_ref_is_set_to_what_the_journal_says_with_its_adapter_wherever_that_is(
    text: str | None, where: str, life: Path, store: Store, home: Path, folder: Path
) -> None:
    whole = refs(home)
    path = home / "store" / "refs" / "_" / "tone" / "latest"
    if where != "store":
        store.remove([parse_name("tone:prod")])
        nothing_left(home)
    words = (
        [] if where == "store" else SOURCES[{"trash": 0, "folder": 2}[where]](life, home, folder)
    )
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    said = call("fsck", "--repair", *words, "--json")
    assert said.code == 0, said.json["damages"]
    assert refs(home)["_/tone/latest"] == whole["_/tone/latest"]
    assert problems(home) == []
    assert call("fsck", "--json").json["damages"] == []


def test_a_ref_whose_adapter_is_lost_is_set_aside_and_its_name_is_gone(
    store: Store, home: Path
) -> None:
    path = home / "store" / "refs" / "_" / "tone" / "prod"
    path.write_text("rubbish")
    nothing_left(home)
    said = call("fsck", "--repair", "--json")
    assert said.code == 6
    assert "_/tone/prod" not in refs(home)
    (kept,) = (home / "store" / "quarantine").rglob("prod")
    assert kept.read_text() == "rubbish"
    assert {row["kind"] for row in call("fsck", "--json").json["damages"]} == {"manifest"}


def test_lines_of_the_journal_that_can_be_read_are_kept(home: Path) -> None:
    path = home / "store" / "log" / "refs.jsonl"
    mode = path.stat().st_mode
    lines = path.read_bytes().splitlines()
    damaged = [lines[0], b"rubbish}", *lines[1:3], b"{}", *lines[3:]]
    path.write_bytes(b"\n".join(damaged) + b"\n")
    said = call("fsck", "--repair", "--json")
    assert said.code == 0
    assert path.read_bytes() == b"\n".join(lines) + b"\n"
    assert path.stat().st_mode == mode, "others who share the store must be able to append"
    (kept,) = (home / "store" / "quarantine").rglob("refs.jsonl")
    assert kept.read_bytes() == b"\n".join(damaged) + b"\n"
    assert call("fsck", "--json").json["damages"] == []
    assert call("undo").code == 0
    assert "_/tone/prod" not in refs(home)


def test_a_lease_that_cannot_be_read_is_set_aside(home: Path) -> None:
    path = home / "store" / "leases" / "serve-1.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{")
    assert call("gc", "--dry-run").code == 6
    assert call("fsck", "--repair").code == 0
    assert not path.exists()
    (kept,) = (home / "store" / "quarantine").rglob("serve-1.json")
    assert kept.read_text() == "{"
    assert call("gc", "--dry-run").code == 0


@pytest.mark.parametrize("damage", ["another file", "no file"])
def test_a_damaged_view_is_made_again(damage: str, store: Store, home: Path) -> None:
    view = store.view(store.resolve("tone").digest)
    file = view / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if damage == "another file":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = call("fsck", "--read-data", "--repair", "--json")
    assert said.code == 0
    assert said.json["damages"][0]["how"] == "made again from the blobs"
    assert file.read_bytes() == whole
    assert call("fsck", "--read-data").code == 0


def test_a_view_that_shares_its_bytes_with_a_damaged_blob_serves_the_right_ones_again(
    life: Path, store: Store, home: Path, folder: Path
) -> None:
    view = store.view(store.resolve("tone").digest) / "adapter_model.safetensors"
    assert view.samefile(weights(home, "tone"))
    flipped_weights(home)
    assert call("fsck", "--read-data", "--repair", *from_any_folder(life, home, folder)).code == 0
    assert sha256(view.read_bytes()) == weights(home, "tone").name
    again = call("fsck", "--read-data", "--json")
    assert (again.code, again.json["damages"]) == (0, [])


def test_no_view_serves_bytes_that_cannot_be_mended(store: Store, home: Path) -> None:
    digest = store.resolve("tone").digest
    view = store.view(digest)
    flipped_weights(home)
    assert call("fsck", "--read-data", "--repair").code == 6
    assert not (view / "adapter_model.safetensors").exists()
    assert len(list((home / "store" / "quarantine").rglob("adapter_model.safetensors"))) == 1


@pytest.mark.parametrize("kind", ["manifest", "blob"])
def test_what_lies_on_a_wrong_shelf_is_put_right(kind: str, store: Store, home: Path) -> None:
    path = manifest(home, meaning(home, "tone")) if kind == "manifest" else weights(home, "tone")
    wrong = path.parent.with_name("00" if path.parent.name != "00" else "01") / path.name
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)
    assert call("fsck").code == 6
    assert call("fsck", "--repair").code == 0
    assert path.is_file()
    assert call("show", "tone").code == 0
    assert call("fsck", "--json").json["damages"] == []


def test_a_repair_of_a_sound_store_changes_nothing(home: Path) -> None:
    with unchanged(home):
        assert call("fsck", "--read-data", "--repair").code == 0


def test_a_repair_waits_until_nobody_adds(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_weights(home)
    monkeypatch.setenv("ADAPTERHUB_LOCK_WAIT", "0.1")
    with store.writing():
        assert call("fsck", "--repair").code == 7


def test_of_several_damages_those_that_can_be_are_mended(
    life: Path, home: Path, folder: Path
) -> None:
    """And what was found only while mending is told too."""
    flip(weights(home, "other"))
    nothing_left(home)
    (home / "store" / "refs" / "_" / "tone" / "prod").unlink()
    (home / "store" / "leases").mkdir(exist_ok=True)
    (home / "store" / "leases" / "serve-1.json").write_text("{")
    words = from_another_store(life, home, folder)
    shutil.rmtree(life / "passing", ignore_errors=True)
    other = weights(life / "home", "other")
    hidden = other.rename(other.with_name("hidden"))
    try:
        said = call("fsck", "--read-data", "--repair", *words, "--json")
    finally:
        hidden.rename(other)
    assert said.code == 6
    assert {(row["kind"], row["mended"]) for row in said.json["damages"]} == {
        ("lease", True),
        ("manifest", True),
        ("ref", True),
        ("blob", True),
        ("blob", False),
    }
    assert [row["names"] for row in said.json["damages"] if not row["mended"]] == [["other"]]
    assert problems(home) == ["_/other/latest lacks adapter_model.safetensors"]
