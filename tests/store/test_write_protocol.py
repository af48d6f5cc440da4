"""What a change leaves on the disk: write-once blobs, identities that are hashes, a journal line for every ref."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from adapterhub.errors import ConflictError, NotFoundError, UnsupportedError, UsageError
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.store.watching import at, journal, left_over, listing, problems, refs, sha256, unchanged
from tests.support.adapters import AdapterMaker


def test_looking_at_a_store_that_is_not_there_creates_nothing(store: Store, tmp_path: Path) -> None:
    assert store.entries() == []
    assert store.log() == []
    with pytest.raises(NotFoundError):
        store.resolve("tone")
    assert not (tmp_path / "home").exists()


def test_every_file_is_named_by_its_sha256_and_write_protected(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    (folder / "README.md").write_text("# tone\n")
    added = store.add_folder(folder, name="tone")
    home = tmp_path / "home"
    assert problems(home) == []
    assert left_over(home) == []
    for path in folder.iterdir():
        blob = at(home / "store" / "blobs", sha256(path.read_bytes()))
        assert blob.read_bytes() == path.read_bytes()
        assert stat.S_IMODE(blob.stat().st_mode) == 0o444
        assert blob.stat().st_ino != path.stat().st_ino
    manifest = at(home / "store" / "manifests", added.digest[7:])
    assert added.digest == f"sha256:{sha256(manifest.read_bytes())}"
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o444
    assert refs(home) == {"_/tone/latest": f"{added.digest}\n"}


def test_a_manifest_on_disk_says_what_the_design_says(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    added = store.add_folder(make_adapter(rank_pattern={"v_proj": 2}, use_rslora=True), name="tone")
    document = json.loads(
        at(tmp_path / "home" / "store" / "manifests", added.digest[7:]).read_bytes()
    )
    assert document["schema"] == "adapterhub.manifest/1"
    assert document["kind"] == "lora"
    assert document["base"] == {"repo": "org/tiny", "revision": None, "trained_on": None}
    assert document["lora"] == {
        "rank": 4,
        "alpha": 8,
        "targets": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {},
        "use_rslora": True,
        "use_dora": False,
        "bias": "none",
        "modules_to_save": [],
        "dtype": "float32",
        "modules": 4,
        "parameters": 2 * 4 * 128 + 2 * 2 * 96,
    }
    assert [entry["path"] for entry in document["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert document["content"] == added.manifest.content


def test_the_same_bytes_and_facts_are_the_same_digest_in_another_store_and_folder(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    elsewhere = shutil.copytree(folder, tmp_path / "another place" / "copy")
    (elsewhere / "adapter_config.json").touch()
    other = Store.open(tmp_path / "other")
    assert (
        other.add_folder(elsewhere, name="b/c:d").digest
        == store.add_folder(folder, name="a").digest
    )


def test_a_second_add_changes_nothing_at_all(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    first = store.add_folder(folder, name="tone")
    with unchanged(tmp_path / "home"):
        second = store.add_folder(folder, name="tone")
    assert (first.created, second.created) == (True, False)
    assert first.digest == second.digest


def test_the_same_adapter_under_another_name_shares_every_byte(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    store.add_folder(folder, name="one")
    before = set(listing(tmp_path / "home"))
    store.add_folder(folder, name="two")
    assert set(listing(tmp_path / "home")) - before == {"refs/_/two/latest"}


def test_another_readme_is_another_adapter_of_the_same_content(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    one = store.add_folder(folder, name="one")
    before = set(listing(tmp_path / "home"))
    (folder / "README.md").write_text("better words")
    two = store.add_folder(folder, name="two")
    assert one.digest != two.digest
    assert one.manifest.content == two.manifest.content
    assert sum(name.startswith("blobs/") for name in set(listing(tmp_path / "home")) - before) == 1


def test_unknown_files_and_folders_are_kept_and_rubbish_is_not(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter()
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "tokenizer.bin").write_bytes(b"\0\1")
    (folder / "empty.txt").touch()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").touch()
    (folder / ".git").mkdir()
    (folder / ".git" / "config").touch()
    (folder / "checkpoint-7").mkdir()
    shutil.copy(folder / "adapter_config.json", folder / "checkpoint-7")
    notes: list[str] = []
    added = store.add_folder(folder, name="tone", note=notes.append)
    assert {entry.path for entry in added.manifest.files} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "deep/er/tokenizer.bin",
        "empty.txt",
    }
    assert "checkpoint-7" in "; ".join(notes)


def test_every_change_of_a_ref_is_a_line_with_before_and_after(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    one = store.add_folder(make_adapter("one"), name="tone").digest
    two = store.add_folder(make_adapter("two", seed=1), name="tone", move=True).digest
    store.tag(store.resolve("tone"), parse_name("prod"))
    store.tag(store.resolve("tone"), parse_name("prod"))  # changes nothing, so it is no line
    store.remove([parse_name("tone")])
    lines = journal(tmp_path / "home")
    assert [(line["op"], line["ref"], line["before"], line["after"]) for line in lines] == [
        ("add", "tone", None, one),
        ("add", "tone", one, two),
        ("tag", "prod", None, two),
        ("rm", "tone", two, None),
    ]
    assert all(line["who"] and line["why"] and line["time"] for line in lines)
    assert [change.ref for change in store.log()] == ["tone", "tone", "prod", "tone"]
    assert [change.op for change in store.log(parse_name("prod"))] == ["tag"]


def test_a_moved_name_leaves_the_old_adapter_reachable_by_digest_and_in_the_log(
    store: Store, make_adapter: AdapterMaker
) -> None:
    one = store.add_folder(make_adapter("one"), name="tone").digest
    two = store.add_folder(make_adapter("two", seed=1), name="tone", move=True).digest
    assert store.resolve("tone").digest == two
    assert store.resolve(f"@{one[7:19]}").digest == one
    assert store.resolve(f"tone@{one}").digest == one
    assert one in {change.before for change in store.log(parse_name("tone"))}
    store.remove([parse_name("tone")])
    assert store.resolve(f"tone@{two[:20]}").digest == two


def test_a_name_at_a_digest_it_never_had_is_not_found(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("one"), name="tone")
    two = store.add_folder(make_adapter("two", seed=1), name="terms").digest
    with pytest.raises(NotFoundError):
        store.resolve(f"tone@{two}")


def test_a_prefix_of_two_adapters_is_refused_with_both(
    store: Store, tmp_path: Path, make_adapter: AdapterMaker
) -> None:
    digest = store.add_folder(make_adapter(), name="tone").digest[7:]
    twin = digest[:10] + digest[10:][::-1]
    at(tmp_path / "home" / "store" / "manifests", twin).write_text("{}")
    with pytest.raises(UsageError, match="2 adapters") as caught:
        store.resolve(f"@{digest[:8]}")
    assert digest[:16] in caught.value.why
    assert twin[:16] in caught.value.why


def test_tag_and_rm_change_refs_only(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    before = listing(tmp_path / "home")
    store.tag(store.resolve("tone"), parse_name("support/tone:prod"))
    store.remove([parse_name("support/tone:prod")])
    after = listing(tmp_path / "home")
    assert {name for name in after if before.get(name) != after[name]} == {"log/refs.jsonl"}
    assert before.keys() == after.keys()
    assert not (tmp_path / "home" / "store" / "refs" / "support").exists()


def test_a_refused_move_and_a_refused_removal_change_nothing(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("one"), name="one")
    store.add_folder(make_adapter("two", seed=1), name="two")
    with unchanged(tmp_path / "home"):
        with pytest.raises(ConflictError):
            store.tag(store.resolve("one"), parse_name("two"))
        with pytest.raises(NotFoundError):
            store.remove([parse_name("one"), parse_name("three")])


def test_a_store_of_a_newer_format_is_refused_with_both_numbers(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    version = tmp_path / "home" / "store" / "format-version"
    assert version.read_text() == "1\n"
    version.write_text("2\n")
    with unchanged(tmp_path / "home"), pytest.raises(UnsupportedError) as caught:
        Store.open(tmp_path / "home").add_folder(make_adapter("other"), name="other")
    assert "'2'" in caught.value.what
    assert "format 1" in caught.value.why


def test_a_manifest_of_a_newer_schema_is_refused_by_its_name(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    digest = store.add_folder(make_adapter(), name="tone").digest
    later = (
        at(home / "store" / "manifests", digest[7:])
        .read_bytes()
        .replace(b"manifest/1", b"manifest/2")
    )
    path = at(home / "store" / "manifests", sha256(later))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(later)
    with pytest.raises(UnsupportedError, match="manifest/2"):
        store.resolve(f"@{sha256(later)}")
    assert store.resolve("tone").digest == digest


def test_fields_of_a_later_version_survive_being_tagged_and_checked_out(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    digest = store.add_folder(make_adapter(), name="tone").digest
    document = json.loads(at(home / "store" / "manifests", digest[7:]).read_bytes())
    later = json.dumps(
        {**document, "tomorrow": [1]}, sort_keys=True, separators=(",", ":")
    ).encode()
    path = at(home / "store" / "manifests", sha256(later))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(later)
    resolved = store.resolve(f"@{sha256(later)}")
    assert resolved.manifest.document["tomorrow"] == [1]
    assert resolved.manifest.digest == f"sha256:{sha256(later)}"
    store.tag(resolved, parse_name("later"))
    store.checkout(store.resolve("later"), tmp_path / "out")
    assert path.read_bytes() == later


def test_what_is_learned_about_an_adapter_never_changes_its_digest(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    digest = store.add_folder(make_adapter(), name="tone").digest
    store.attest(digest, "eval", {"perplexity": 3.5})
    with unchanged(tmp_path / "home"):
        store.attest(digest, "eval", {"perplexity": 3.5})
    assert store.resolve("tone").digest == digest
    assert {item.type for item in store.attestations(digest)} == {"provenance", "eval"}
    assert problems(tmp_path / "home") == []


def test_attestations_come_oldest_first_also_within_a_second(
    store: Store, make_adapter: AdapterMaker
) -> None:
    """The fingerprint that counts is that of the last check."""
    digest = store.add_folder(make_adapter(), name="tone").digest
    for step in range(6):
        store.attest(digest, "base", {"fingerprint": f"sha256:{step}"})
    found = [item.body["fingerprint"] for item in store.attestations(digest) if item.type == "base"]
    assert found == [f"sha256:{step}" for step in range(6)]
    assert store.known_fingerprint(digest) == "sha256:5"


def test_provenance_names_the_claimed_base_and_is_written_once(
    store: Store, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter(base="/content/gemma")
    digest = store.add_folder(folder, name="one").digest
    store.add_folder(folder, name="two")
    (item,) = store.attestations(digest)
    assert item.type == "provenance"
    assert item.body["event"] == "imported"
    assert item.body["claimed_base"] == "/content/gemma"


def test_the_base_checked_against_is_attested_with_its_fingerprint(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path
) -> None:
    folder = make_adapter(base=None)
    added = store.add_folder(folder, name="tone", base=str(tiny_llama))
    body = next(item.body for item in store.attestations(added.digest) if item.type == "base")
    assert body["fingerprint"] == store.bases.open(str(tiny_llama)).fingerprint
    assert (body["modules_found"], body["modules_total"], body["allowed_mismatch"]) == (4, 4, [])
    assert store.known_fingerprint(added.digest) == body["fingerprint"]


def test_knowing_the_base_is_no_part_of_the_identity(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path
) -> None:
    """The manifest says what the author claims. `--base` is a check, and what it found is attested."""
    folder = make_adapter(base=None)
    plain = store.add_folder(folder, name="tone")
    store.bases.remember(store.bases.open(str(tiny_llama), repo="org/tiny"))
    checked = store.add_folder(folder, name="tone", base=str(tiny_llama))
    assert checked.digest == plain.digest


def test_an_adapter_once_checked_is_known_not_to_belong_to_other_weights(
    store: Store, make_adapter: AdapterMaker, tiny: object, tmp_path: Path
) -> None:
    from adapterhub.errors import IncompatibleError
    from tests.support.models import ModelMaker

    assert isinstance(tiny, ModelMaker)
    folder = make_adapter(base=None)
    store.add_folder(folder, name="tone", base=str(tiny.llama(seed=0)))
    with unchanged(tmp_path / "home"), pytest.raises(IncompatibleError, match="fingerprint"):
        store.add_folder(folder, name="tone", base=str(tiny.llama(seed=1)))


def test_a_torn_last_line_of_the_journal_is_no_change_and_does_no_harm(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    one = store.add_folder(make_adapter("one"), name="one").digest
    path = tmp_path / "home" / "store" / "log" / "refs.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert [change.after for change in store.log()] == [one]
    two = store.add_folder(make_adapter("two", seed=1), name="two").digest
    assert [change.after for change in store.log()] == [one, two]


def test_a_spoiled_line_in_the_middle_of_the_journal_hides_only_itself(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    digest = store.add_folder(make_adapter("one"), name="one").digest
    path = tmp_path / "home" / "store" / "log" / "refs.jsonl"
    path.write_bytes(b"\x00\xff rubbish\n[]\n{}\n\n" + path.read_bytes())
    assert [change.after for change in store.log()] == [digest]


def test_a_lost_journal_takes_no_adapter_with_it(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("one"), name="one")
    (tmp_path / "home" / "store" / "log" / "refs.jsonl").unlink()
    assert [str(entry.name) for entry in store.entries()] == ["one"]
    store.add_folder(make_adapter("two", seed=1), name="two")
    assert [change.ref for change in store.log()] == ["two"]


@pytest.mark.parametrize(
    "stray",
    [
        "refs/.DS_Store",
        "refs/_/.DS_Store",
        "refs/_/tone/.DS_Store",
        "refs/_/tone/.nfs0000001",
        "blobs/sha256/.DS_Store",
        "tmp/x.1.ab.tmp",
    ],
)
def test_files_that_systems_leave_behind_are_no_refs_and_no_damage(
    stray: str, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    (tmp_path / "home" / "store" / stray).write_bytes(b"\0\0\0\1Bud1")
    assert [str(entry.name) for entry in store.entries()] == ["tone"]
    assert store.resolve("tone").name is not None
    with pytest.raises(NotFoundError):
        store.resolve("other")
    store.tag(store.resolve("tone"), parse_name("tone:prod"))
