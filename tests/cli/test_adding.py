"""`add` and `convert` on the command line: trees of checkpoints, single files, pickles, and what is said of each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapterhub.store import Store
from tests.cli.calling import call, run
from tests.store.watching import left_over, problems, refs, sha256, unchanged
from tests.support.adapters import AdapterMaker
from tests.support.outputs import axolotl


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def tree(make_adapter: AdapterMaker) -> Path:
    """out/ with an adapter, two checkpoints and a run below it."""
    for seed, name in enumerate(("", "/checkpoint-10", "/checkpoint-9", "/ablations/a")):
        make_adapter(f"out{name}", seed=seed)
    return make_adapter.root / "out"


NAMES = ["out", "out/ablations-a", "out:checkpoint-9", "out:checkpoint-10"]


def test_a_tree_comes_in_with_every_checkpoint_under_its_tag(tree: Path, home: Path) -> None:
    said = call("add", tree, "--recursive", "--json")
    assert said.code == 0
    assert [row["name"] for row in said.json] == NAMES
    assert all(row["created"] and row["error"] is None for row in said.json)
    assert [Path(row["path"]).name for row in said.json] == [
        "out",
        "a",
        "checkpoint-9",
        "checkpoint-10",
    ]
    shown = {row["name"]: row["digest"] for row in call("ls", "--json").json}
    assert shown == {row["name"]: row["digest"] for row in said.json}
    assert len(set(shown.values())) == 4
    assert problems(home) == []


def test_adding_a_tree_again_changes_nothing(tree: Path, home: Path) -> None:
    call("add", tree, "-r")
    with unchanged(home):
        said = call("add", tree, "-r", "--json")
    assert said.code == 0
    assert [row["created"] for row in said.json] == [False] * 4


def test_the_table_says_each_name_digest_and_reason(tree: Path) -> None:
    (tree / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"cut off")
    said = call("add", tree, "--recursive")
    assert said.code == 3
    lines = [line.split("\t") for line in said.out.splitlines()]
    assert lines[0] == ["name", "digest", "created", "error"]
    assert [line[0] for line in lines[1:]] == NAMES
    assert [line[2] for line in lines[1:]] == ["yes", "yes", "no", "yes"]
    assert "not a sound safetensors file" in lines[3][3]
    assert "3 of 4 are in the store" in said.err
    assert "error: adapter_model.safetensors is not a sound" in said.err


def test_refused_ones_are_reported_with_their_reasons_and_the_rest_is_added(
    tree: Path, home: Path
) -> None:
    (tree / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"cut off")
    (tree / "ablations" / "a" / "adapter_model.safetensors").unlink()
    (tree / "ablations" / "a" / "adapter_model.bin").write_bytes(b"x")
    said = call("add", tree, "--recursive", "--json")
    assert said.code == 3
    errors = {row["name"]: row["error"] for row in said.json}
    assert [name for name, error in errors.items() if error is None] == ["out", "out:checkpoint-10"]
    assert "sound safetensors" in errors["out:checkpoint-9"]["what"]
    assert "pickle" in errors["out/ablations-a"]["what"]
    assert errors["out/ablations-a"]["hint"].startswith(f"adapterhub convert {tree}/ablations/a -o")
    assert sorted(refs(home)) == ["_/out/checkpoint-10", "_/out/latest"]
    assert problems(home) == []


def test_where_every_one_is_refused_it_failed(tree: Path, home: Path) -> None:
    for path in tree.rglob("adapter_model.safetensors"):
        path.write_bytes(b"")
    call("ls")
    assert run("add", tree, "--recursive").code == 1
    assert refs(home) == {}
    assert left_over(home) == []


def test_quiet_prints_the_digests_of_what_is_in_the_store(tree: Path) -> None:
    (tree / "checkpoint-9" / "adapter_config.json").write_text("{")
    said = call("add", tree, "--recursive", "-q")
    assert said.code == 3
    assert [line[:7] for line in said.out.splitlines()] == ["sha256:"] * 3


def test_a_clash_of_names_is_found_before_anything_is_added(
    tree: Path, make_adapter: AdapterMaker, home: Path
) -> None:
    make_adapter("out/ablations-a")
    with unchanged(home):
        said = call("add", tree, "--recursive", "--json")
    assert said.code == 1
    assert "would both be called out/ablations-a" in said.error["what"]
    assert refs(home) == {}


def test_a_name_that_is_taken_keeps_only_that_one_out(
    tree: Path, make_adapter: AdapterMaker
) -> None:
    call("add", make_adapter("other", seed=9), "--name", "out:checkpoint-9")
    said = call("add", tree, "--recursive", "--json")
    assert said.code == 3
    assert [row["name"] for row in said.json if row["error"]] == ["out:checkpoint-9"]
    again = call("add", tree, "--recursive", "--move", "--json")
    assert again.code == 0
    assert [row["created"] for row in again.json] == [False, False, True, False]


def test_a_prefix_names_them_all(tree: Path) -> None:
    said = call("add", tree, "-r", "--name", "support/tone", "-q")
    assert said.code == 0
    assert sorted(row["name"] for row in call("ls", "--json").json) == [
        "support/tone",
        "support/tone-ablations-a",
        "support/tone:checkpoint-10",
        "support/tone:checkpoint-9",
    ]


def test_links_that_lead_round_in_circles_end(tree: Path) -> None:
    (tree / "ablations" / "round").symlink_to(tree)
    (tree / "self").symlink_to("self")
    said = call("add", tree, "--recursive", "--json")
    assert said.code == 0
    assert [row["name"] for row in said.json] == NAMES
    assert "ablations/round is a link to a folder and was not followed" in said.err


def test_a_base_that_is_not_there_is_one_error(tree: Path, home: Path) -> None:
    said = call("add", tree, "--recursive", "--base", tree / "nowhere", "--json")
    assert said.code == 4
    assert said.out == ""
    assert refs(home) == {}


@pytest.mark.parametrize("address", ["hf://org/repo", "hf://org/repo/sub"])
def test_a_tree_on_the_hub_is_a_usage_error(address: str) -> None:
    said = call("add", address, "--recursive", "--json")
    assert said.code == 2
    assert f"adapterhub add {address}/FOLDER" in said.error["hint"]


def test_what_a_trainer_left_behind_is_said_and_kept_in_the_adapters_notes(
    make_adapter: AdapterMaker,
) -> None:
    output = axolotl(make_adapter("run"))
    said = call("add", output.folder, "--json")
    assert all(words in said.err for words in output.said)
    assert set(output.said) <= set(call("show", "run", "--json").json["notes"])


def test_a_single_file_is_added_by_its_own_name(make_adapter: AdapterMaker) -> None:
    folder = make_adapter("somewhere")
    (folder / "adapter_model.safetensors").rename(folder / "polite.safetensors")
    assert call("add", folder / "polite.safetensors", "-q").code == 0
    assert call("show", "polite", "--json").json["lora"]["rank"] == 4


# convert


@pytest.fixture
def old(make_adapter: AdapterMaker) -> Path:
    """A pickled adapter."""
    folder = make_adapter("old")
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    return folder


def test_the_refusal_of_a_pickle_is_followed_by_the_command_that_helps(
    old: Path, home: Path
) -> None:
    hint = call("add", old, "--json").error["hint"].split()
    assert hint[:2] == ["adapterhub", "convert"]
    said = run(*hint[1:])
    assert said.code == 0
    assert call("add", f"{old}-safetensors", "-q").code == 0
    assert problems(home) == []


def test_convert_writes_a_folder_that_holds_the_same_tensors(old: Path, tmp_path: Path) -> None:
    said = call("convert", old, "-o", tmp_path / "new", "--json")
    assert said.code == 0
    assert said.json["tensors"] == 8
    assert said.json["from_sha256"] == sha256((old / "adapter_model.bin").read_bytes())
    found = load_file(tmp_path / "new" / "adapter_model.safetensors")
    expected = torch.load(old / "adapter_model.bin", weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_convert_puts_the_result_into_the_store_with_what_it_was_made_of(
    old: Path, store: Store, home: Path
) -> None:
    (old / "optimizer.pt").touch()
    said = call("convert", old, "--name", "support/old", "--json")
    assert said.code == 0
    resolved = store.resolve("support/old")
    assert said.json["digest"] == resolved.digest
    told = [item.body for item in store.attestations(resolved.digest) if item.type == "provenance"]
    assert told == [
        {
            "event": "converted",
            "from_file": "adapter_model.bin",
            "from_sha256": sha256((old / "adapter_model.bin").read_bytes()),
            "claimed_base": "org/tiny",
            "notes": ["left out as the training's state: optimizer.pt"],
        }
    ]
    assert problems(home) == []
    assert "converted" in call("show", "support/old").out


def test_converting_again_changes_nothing(old: Path, home: Path) -> None:
    first = call("convert", old, "--name", "old", "--json")
    with unchanged(home):
        again = call("convert", old, "--name", "old", "--json")
    assert (again.json["digest"], again.json["created"]) == (first.json["digest"], False)


def test_convert_into_both_is_one_adapter(old: Path, tmp_path: Path, store: Store) -> None:
    assert call("convert", old, "-o", tmp_path / "new", "--name", "old", "-q").code == 0
    assert call("add", tmp_path / "new", "--name", "again", "-q").out.strip() == (
        store.resolve("old").digest
    )


def test_convert_has_to_be_told_where_to(old: Path) -> None:
    said = call("convert", old, "--json")
    assert said.code == 2
    assert f"adapterhub convert {old} -o FOLDER" in said.error["hint"]
    assert "--name NAME" in said.error["hint"]


def test_convert_never_writes_over_anything_unasked(old: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    said = call("convert", old, "-o", tmp_path / "full", "--json")
    assert said.code == 1
    assert "--overwrite" in said.error["hint"]
    assert call("convert", old, "-o", old, "--overwrite", "--json").code == 1
    assert (old / "adapter_model.bin").is_file()
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    assert call("convert", old, "-o", tmp_path / "full", "--overwrite", "-q").code == 0
    assert not (tmp_path / "full" / "mine").exists()


class Evil:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_hostile_pickle_leaves_no_trace(old: Path, tmp_path: Path, home: Path) -> None:
    torch.save({"a": Evil(tmp_path / "canary")}, old / "adapter_model.bin")
    call("ls")
    with unchanged(home):
        for target in (["-o", tmp_path / "new"], ["--name", "evil"]):
            said = run("convert", old, *target, "--json")
            assert said.code == 1
            assert "nothing of it was run" in said.error["what"]
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "new").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"adapters", "home", "cache"}


def test_what_cannot_be_added_is_said_after_converting(old: Path, home: Path) -> None:
    """The form is one thing, the adapter another: the configuration contradicts the tensors."""
    config = json.loads((old / "adapter_config.json").read_text())
    (old / "adapter_config.json").write_text(json.dumps({**config, "r": 7}))
    said = call("convert", old, "--name", "old", "--json")
    assert said.code == 1
    assert "contradicts the tensors" in said.error["what"]
    assert refs(home) == {}
