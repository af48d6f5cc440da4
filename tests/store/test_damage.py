"""A store that doesn't hold what it recorded: found before it is used, named, and put right by what the message says."""

from __future__ import annotations

import json
import re
import shlex
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.store import Store
from tests.cli.calling import Said, call
from tests.store.watching import at, problems, refs, sha256
from tests.support.adapters import AdapterMaker


@pytest.fixture
def folder(make_adapter: AdapterMaker) -> Path:
    return make_adapter("tone")


@pytest.fixture
def home(store: Store, folder: Path, make_adapter: AdapterMaker, tmp_path: Path) -> Path:
    """A store with a sound adapter, `other`, beside the one that will be damaged, `tone`."""
    store.add_folder(folder)
    store.add_folder(make_adapter("other", seed=1, alpha=6))  # shares no blob with the first
    return tmp_path / "home"


def blob(home: Path, folder: Path, name: str = "adapter_model.safetensors") -> Path:
    return at(home / "store" / "blobs", sha256((folder / name).read_bytes()))


def manifest(home: Path) -> Path:
    return at(home / "store" / "manifests", refs(home)["_/tone/latest"].strip()[7:])


def write(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def flip(path: Path, place: int = -1) -> None:
    """Changes one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    write(path, bytes(data))


def use(how: str, tmp_path: Path) -> Said:
    """Every way to use the bytes of `tone`."""
    base = str(tmp_path / "no-base")
    return {
        "checkout": lambda: call("checkout", "tone", tmp_path / "out", "--json"),
        "merge": lambda: call("merge", "tone", "other", "--name", "merged", "--json"),
        "export": lambda: call(
            "export", "tone", "-o", tmp_path / "model", "--base", base, "--json"
        ),
        "diff": lambda: call("diff", "tone", "other", "--json"),
        "show": lambda: call("show", "tone", "--json"),
    }[how]()


@pytest.mark.parametrize("how", ["checkout", "merge", "diff"])
def test_a_changed_blob_is_found_before_it_is_used(
    how: str, home: Path, folder: Path, tmp_path: Path
) -> None:
    flip(blob(home, folder))
    said = use(how, tmp_path)
    assert said.code == 6
    assert str(blob(home, folder)) in said.error["why"]
    assert said.error["hint"]
    assert not (tmp_path / "out").exists()
    assert "merged" not in str(refs(home))


@pytest.mark.parametrize("how", ["checkout", "merge", "diff", "show"])
def test_a_changed_configuration_is_found_before_its_alpha_is_used(
    how: str, home: Path, folder: Path, tmp_path: Path
) -> None:
    """One digit of lora_alpha: every number computed from it would be wrong, and the JSON is as valid as before."""
    path = blob(home, folder, "adapter_config.json")
    changed = path.read_bytes().replace(b'"lora_alpha": 8', b'"lora_alpha": 9')
    assert changed != path.read_bytes()
    write(path, changed)
    said = use(how, tmp_path)
    assert said.code == 6, said.out
    assert str(path) in said.error["why"]
    assert "merged" not in str(refs(home))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("how", ["checkout", "merge", "diff"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_a_missing_or_torn_blob_is_damage(
    damage: str, how: str, name: str, home: Path, folder: Path, tmp_path: Path
) -> None:
    path = blob(home, folder, name)
    if damage == "missing":
        path.unlink()
    else:
        write(path, b"" if damage == "empty" else path.read_bytes()[: path.stat().st_size // 2])
    said = use(how, tmp_path)
    assert said.code == 6, said.err
    assert str(path) in said.error["why"]
    assert said.error["hint"]


@pytest.mark.parametrize("damage", ["missing", "changed", "rubbish"])
def test_a_damaged_manifest_is_named(damage: str, home: Path) -> None:
    path = manifest(home)
    if damage == "missing":
        path.unlink()
    else:
        write(
            path,
            path.read_bytes().replace(b'"rank":4', b'"rank":5') if damage == "changed" else b"\0",
        )
    said = call("show", "tone", "--json")
    assert said.code == 6
    assert str(path) in said.error["why"]
    assert call("show", "other").code == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rubbish",
        "sha256:",
        "sha256:" + "g" * 64,
        "sha256:" + "A" * 64,
        "../../etc/passwd",
        "\xff",
    ],
)
def test_a_damaged_ref_is_named(text: str, home: Path) -> None:
    path = home / "store" / "refs" / "_" / "tone" / "latest"
    path.write_text(text, "latin-1")
    said = call("show", "tone", "--json")
    assert said.code == 6
    assert str(path) in said.error["why"]
    assert call("show", "other").code == 0


def test_a_ref_to_an_adapter_that_is_not_there_is_damage(home: Path) -> None:
    (home / "store" / "refs" / "_" / "tone" / "latest").write_text(f"sha256:{'0' * 64}\n")
    assert call("show", "tone").code == 6


def test_a_changed_attestation_is_named(home: Path) -> None:
    digest = refs(home)["_/tone/latest"].strip()
    (path,) = (home / "store" / "attestations" / digest[7:]).iterdir()
    write(path, path.read_bytes().replace(b"imported", b"invented"))
    said = call("show", "tone", "--json")
    assert said.code == 6
    assert str(path) in said.err


DAMAGES: dict[str, Callable[[Path, Path], None]] = {
    "ref": lambda home, _: void(
        (home / "store" / "refs" / "_" / "tone" / "latest").write_text("rubbish")
    ),
    "manifest changed": lambda home, _: flip(manifest(home)),
    "manifest missing": lambda home, _: manifest(home).unlink(),
    "blob changed": lambda home, folder: flip(blob(home, folder)),
    "blob missing": lambda home, folder: blob(home, folder).unlink(),
    "config changed": lambda home, folder: flip(blob(home, folder, "adapter_config.json"), 3),
}


def void(_: object) -> None:
    """Takes a value where none is wanted."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_adapter_does_not_hide_the_others(
    damage: str, home: Path, folder: Path, tmp_path: Path
) -> None:
    DAMAGES[damage](home, folder)
    said = call("ls", "--json")
    assert "other" in [row["name"] for row in json.loads(said.out or "[]")]
    assert call("show", "nobody", "--json").code == 4
    assert call("checkout", "other", tmp_path / "out").code == 0
    assert call("log").code == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_doing_what_the_message_says_puts_it_right(
    damage: str, home: Path, folder: Path, tmp_path: Path
) -> None:
    """The hint is the next command to type: delete a file where it says so, then the command it names."""
    DAMAGES[damage](home, folder)
    error = call("checkout", "tone", tmp_path / "out", "--json").error
    if "elete that file" in error["hint"]:
        found = re.search(r"(/\S+)", error["why"])
        assert found
        Path(found[1]).unlink()
    commands = re.findall(r"adapterhub ([^`;:]*[^`;:\s])", error["hint"])
    if not commands and "add the adapter again" in error["hint"]:
        commands = ["add FOLDER"]
    assert commands, error
    for command in commands:
        digest = call("log", "tone", "--json").json[0]["after"]
        words = command.replace("FOLDER", str(folder)).replace("@DIGEST", f"@{digest[7:19]}")
        said = call(*shlex.split(words))
        assert said.code == 0, (command, said.err)
    assert call("checkout", "tone", tmp_path / "out").code == 0
    assert problems(home) == []


@pytest.mark.parametrize(
    "damage",
    ["manifest changed", "manifest missing", "blob changed", "blob missing", "config changed"],
)
def test_adding_it_again_never_says_all_is_well_over_damage(
    damage: str, home: Path, folder: Path, tmp_path: Path
) -> None:
    """What `add` has acknowledged is there, whole: it either mends the damage or exits 6."""
    DAMAGES[damage](home, folder)
    said = call("add", folder, "--name", "again")
    if said.code == 0:
        assert call("checkout", "again", tmp_path / "out").code == 0
        assert problems(home) == []
    else:
        assert said.code == 6


def test_mended_bytes_are_write_protected_again(home: Path, folder: Path) -> None:
    blob(home, folder).unlink()
    call("add", folder)
    assert stat.S_IMODE(blob(home, folder).stat().st_mode) == 0o444
