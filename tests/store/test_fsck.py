"""Checking a store: every kind of damage is found and named with what it reaches, and nothing else is called damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.garbage import collect
from tests.cli.calling import call
from tests.store.ageing import DAY, age, blobs, flip, manifest, meaning, weights, write
from tests.store.watching import unchanged
from tests.support.adapters import AdapterMaker


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tone` with a tag, an evaluation and a view; `other`, of another rank; `child`, merged from tone; its `grandchild`."""
    root = tmp_path_factory.mktemp("life")
    make, store = AdapterMaker(root / "adapters"), Store.open(root / "home")
    tone = store.add_folder(make("tone"))
    store.add_folder(make("other", seed=1, rank=3))
    store.tag(store.resolve("tone"), parse_name("tone:prod"))
    store.attest(tone.digest, "eval", {"perplexity": 2.5})
    parent = tone.digest
    for seed, name in enumerate(("child", "grandchild"), 2):
        body = {"event": "merged", "parents": [{"digest": parent, "name": "whatever"}]}
        parent = store.add_folder(make(name, seed=seed, rank=seed + 3), provenance=body).digest
    store.view(tone.digest)
    age(root / "home", 10)
    return root


@pytest.fixture
def home(life: Path, tmp_path: Path) -> Path:
    """A copy whose view is made of links, as the store makes it."""
    home = tmp_path / "home"
    shutil.copytree(life / "home", home)
    shutil.rmtree(home / "store" / "views")
    Store.open(home).view(f"sha256:{meaning(home, 'tone')}")
    return home


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open(home)


def test_a_sound_store_has_no_damage_and_nothing_to_remark(store: Store, home: Path) -> None:
    with unchanged(home):
        said = call("fsck", "--read-data", "--json")
    assert said.code == 0
    assert said.json["damages"] == []
    assert said.json["remarks"] == []
    assert (said.json["adapters"], said.json["blobs"], said.json["blobs_read"]) == (4, 8, 8)
    assert said.json["bytes_read"] == sum(
        path.stat().st_size for path in (home / "store" / "blobs").glob("*/*/*")
    )
    assert call("fsck").out == "4 adapters, 8 files: no damage\n"


def test_no_store_is_a_sound_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "nowhere"))
    assert call("fsck", "--read-data").code == 0
    assert not (tmp_path / "nowhere").exists()


def rubbish_ref(home: Path) -> Path:
    path = home / "store" / "refs" / "_" / "tone" / "prod"
    path.write_text("rubbish")
    return path


def ref_of_another_length(home: Path) -> Path:
    path = home / "store" / "refs" / "_" / "tone" / "prod"
    path.write_text(path.read_text()[:-3])
    return path


def no_ref(home: Path) -> Path:
    path = home / "store" / "refs" / "_" / "tone" / "prod"
    path.unlink()
    return path


def changed_manifest(home: Path) -> Path:
    """A digit; it is as valid as before."""
    path = manifest(home, meaning(home, "tone"))
    write(path, path.read_bytes().replace(b'"rank":4', b'"rank":5'))
    return path


def torn_manifest(home: Path) -> Path:
    path = manifest(home, meaning(home, "tone"))
    write(path, path.read_bytes()[:100])
    return path


def no_manifest(home: Path) -> Path:
    path = manifest(home, meaning(home, "tone"))
    path.unlink()
    return path


def manifest_on_the_wrong_shelf(home: Path) -> Path:
    path = manifest(home, meaning(home, "tone"))
    wrong = path.parent.with_name("00" if path.parent.name != "00" else "01") / path.name
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)
    return path


def no_blob(home: Path) -> Path:
    path = weights(home, "tone")
    path.unlink()
    return path


def blob_on_the_wrong_shelf(home: Path) -> Path:
    path = weights(home, "tone")
    wrong = path.parent.with_name("00" if path.parent.name != "00" else "01") / path.name
    wrong.parent.mkdir(exist_ok=True)
    path.rename(wrong)
    return path


def torn_blob(home: Path) -> Path:
    path = weights(home, "tone")
    write(path, path.read_bytes()[:100])
    return path


def flipped_blob(home: Path) -> Path:
    path = weights(home, "tone")
    flip(path)
    return path


def evaluation(home: Path) -> Path:
    (path,) = (
        path
        for path in (home / "store" / "attestations" / meaning(home, "tone")).iterdir()
        if json.loads(path.read_bytes())["type"] == "eval"
    )
    return path


def flipped_attestation(home: Path) -> Path:
    path = evaluation(home)
    write(path, path.read_bytes().replace(b"2.5", b"1.5"))
    return path


def attestation_about_another(home: Path) -> Path:
    path = evaluation(home)
    return path.rename(home / "store" / "attestations" / meaning(home, "other") / path.name)


def view_without_a_file(home: Path) -> Path:
    view = home / "store" / "views" / meaning(home, "tone")
    (view / "adapter_config.json").unlink()
    return view


def view_with_another_file(home: Path) -> Path:
    view = home / "store" / "views" / meaning(home, "tone")
    data = bytearray((view / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (view / "adapter_model.safetensors").unlink()
    (view / "adapter_model.safetensors").write_bytes(data)
    return view


DAMAGES: dict[Callable[[Path], Path], tuple[str, bool]] = {
    rubbish_ref: ("ref", False),
    ref_of_another_length: ("ref", False),
    no_ref: ("ref", False),
    changed_manifest: ("manifest", False),
    torn_manifest: ("manifest", False),
    no_manifest: ("manifest", False),
    manifest_on_the_wrong_shelf: ("manifest", False),
    no_blob: ("blob", False),
    blob_on_the_wrong_shelf: ("blob", False),
    torn_blob: ("blob", False),
    flipped_blob: ("blob", True),
    flipped_attestation: ("attestation", False),
    attestation_about_another: ("attestation", False),
    view_without_a_file: ("view", False),
    view_with_another_file: ("view", True),
}
"""How to make it -> its kind, and whether only reading the data finds it."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named_with_all_it_reaches(
    damage: Callable[[Path], Path], store: Store, home: Path
) -> None:
    kind, deep = DAMAGES[damage]
    digest = store.resolve("tone").digest
    with store.leases.held("serve", [digest], "at a port"):
        path = damage(home)
        before = path.stat().st_mtime_ns if path.exists() else None
        if deep:
            assert call("fsck").code == 0
        said = call("fsck", "--json", *(["--read-data"] if deep else []))
        shown = call("fsck", *(["--read-data"] if deep else []))
        after = path.stat().st_mtime_ns if path.exists() else None
        assert after == before, "a check changes nothing"
    assert said.code == 6
    (row,) = [row for row in said.json["damages"] if row["path"] == str(path)]
    assert row["kind"] == kind
    names = {"other"} if damage is attestation_about_another else {"tone", "tone:prod"}
    assert set(row["names"]) == names
    if damage is not attestation_about_another:
        assert row["merges"] == ["child", "grandchild"]
        assert row["users"] == [f"serve at a port (process {os.getpid()} on {os.uname().nodename})"]
    # Where a file of a view is a link to the damaged blob, its bytes are wrong too.
    expected = ["blob", "view"] if damage in (flipped_blob, torn_blob) and deep else [kind]
    assert [other["kind"] for other in said.json["damages"]] == expected, "nothing else is damaged"
    for part in (str(path), *names, *row["merges"], *row["users"]):
        assert part in shown.err, part
    assert f"damaged in {len(expected)} place" in shown.out


@pytest.mark.parametrize(
    "text", [b"{", b"\xff\xfe", b"[]", b'{"kind": "serve", "digests": 7}'], ids=repr
)
def test_a_lease_that_cannot_be_read_is_damage(text: bytes, home: Path) -> None:
    path = home / "store" / "leases" / "serve-1.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text)
    said = call("fsck", "--json")
    assert said.code == 6
    assert [(row["kind"], row["path"]) for row in said.json["damages"]] == [("lease", str(path))]


@pytest.mark.parametrize("line", [b'{"op": rubbish}', b'{"a": 1}', b"\xff}"], ids=repr)
def test_a_damaged_line_in_the_journal_is_damage_and_its_number_is_said(
    line: bytes, home: Path
) -> None:
    path = home / "store" / "log" / "refs.jsonl"
    lines = path.read_bytes().splitlines()
    lines.insert(2, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    said = call("fsck", "--json")
    assert said.code == 6
    (row,) = said.json["damages"]
    assert row["kind"] == "journal"
    assert "line 3 " in row["what"]


@pytest.mark.parametrize("kept", ["nothing", "begun", "nul bytes"])
def test_a_torn_end_of_the_journal_is_no_damage_even_when_lines_follow(
    kept: str, store: Store, home: Path
) -> None:
    """A crash while appending; a file system may also leave the length without the bytes."""
    torn = {"nothing": b"", "begun": b'{"time": "2026-01', "nul bytes": b"\0" * 40}[kept]
    with (home / "store" / "log" / "refs.jsonl").open("ab") as file:
        file.write(torn)
    assert call("fsck").code == 0
    store.tag(store.resolve("tone"), parse_name("new"))
    assert call("fsck").code == 0


def test_a_ref_that_leads_to_no_manifest_names_the_ref(home: Path) -> None:
    path = home / "store" / "refs" / "_" / "tone" / "prod"
    path.write_text("sha256:" + "ab" * 32 + "\n")
    said = call("fsck", "--json")
    assert said.code == 6
    (row,) = said.json["damages"]
    assert (row["kind"], row["names"]) == ("manifest", ["tone:prod"])
    assert "missing" in row["what"]
    assert "though its last recorded change" in json.dumps(said.json["remarks"])


def test_a_blob_that_lies_in_the_trash_is_said_to(store: Store, home: Path) -> None:
    path = weights(home, "tone")
    trash = home / "store" / "trash" / "20260101-000000-abcdef" / path.relative_to(home / "store")
    trash.parent.mkdir(parents=True)
    path.rename(trash)
    said = call("fsck", "--json")
    assert said.code == 6
    assert "in the trash" in said.json["damages"][0]["what"]


def test_a_shared_blob_names_every_adapter_that_needs_it(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("twin", seed=9), name="twin")
    blobs(home, meaning(home, "twin"))["adapter_config.json"].unlink()
    (row,) = call("fsck", "--json").json["damages"]
    assert set(row["names"]) == {"tone", "tone:prod", "twin"}


def test_several_damages_are_all_told(home: Path) -> None:
    flip(weights(home, "tone"))
    no_ref(home)
    manifest(home, meaning(home, "other")).unlink()
    said = call("fsck", "--read-data", "-q")
    assert said.code == 6
    assert len(said.out.splitlines()) == 4, "two files, a view of one of them, and a ref"
    assert all(Path(line).is_relative_to(home) for line in said.out.splitlines())


def test_what_is_left_over_is_remarked_upon_and_no_damage(
    store: Store, make_adapter: AdapterMaker, home: Path
) -> None:
    store.add_folder(make_adapter("gone", seed=9))
    digits = meaning(home, "gone")
    store.remove([parse_name("gone")])
    manifest(home, digits).unlink()
    (home / "store" / "tmp" / ".1.a.tmp").write_bytes(b"half")
    (home / "store" / "views" / ".ab.1.a.tmp").mkdir()
    (home / "store" / "views" / ".ab.1.a.tmp" / "file").write_bytes(b"half")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    with store.leases.held("serve", ["sha256:" + "0" * 64], "at a port"):
        (path,) = (home / "store" / "leases").iterdir()
        lease = json.loads(path.read_text()) | {"pid": process.pid}
    path.write_text(json.dumps(lease))
    said = call("fsck", "--read-data", "--json")
    assert said.code == 0
    assert said.json["damages"] == []
    remarks = json.dumps(said.json["remarks"])
    for part in ("of no adapter", "2 temporary files", "attestation", "is stale"):
        assert part in remarks, part
    collect(store, grace=0, trash_grace=DAY)
    assert "folder in the trash" in json.dumps(call("fsck", "--json").json["remarks"])


def test_a_manifest_of_a_later_version_is_not_taken_for_damage(store: Store, home: Path) -> None:
    """Its bytes are those of its name; a newer adapterhub has written it."""
    document = json.loads(manifest(home, meaning(home, "tone")).read_bytes())
    document["schema"] = "adapterhub.manifest/2"
    data = json.dumps(document).encode()
    import hashlib

    path = manifest(home, hashlib.sha256(data).hexdigest())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    said = call("fsck", "--json")
    assert said.code == 0
    assert "adapterhub.manifest/2" in json.dumps(said.json["remarks"])
    assert call("fsck", "--repair").code == 0
    assert path.exists()
