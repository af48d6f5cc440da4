"""A disk that fills up: exit 1 with the reason, the store as before, the temporary file gone.

A small file system is mounted where the tests run as root; a limit on the size of files does for the rest.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import Said, call, run
from tests.store.watching import journal, left_over, listing, problems, refs, unchanged
from tests.support.adapters import AdapterMaker, llama_modules
from tests.support.models import ModelMaker

Mounter = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounter]:
    """mount(**options) -> a small file system of its own."""
    mounted: list[Path] = []

    def make(name: str = "disk", **options: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        words = ",".join(f"{key}={value}" for key, value in options.items())
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", words, "tmpfs", place],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield make
    for place in reversed(mounted):
        subprocess.run(["umount", "-l", place], check=True)


def told(said: Said) -> None:
    assert said.code == 1, said.err
    assert "no space" in said.err.lower()
    assert "Something went wrong inside" not in said.err
    assert "Make room" in said.err


def fill(disk: Path, leaving: int) -> None:
    """Takes all space of `disk` but so many bytes."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(b"\0" * max(0, free - leaving))


@pytest.fixture
def big(make_adapter: AdapterMaker) -> Path:
    """An adapter of 2.4 MB."""
    return make_adapter(
        "big",
        modules={f"model.layers.{n}.self_attn.q_proj": (1024, 1024) for n in range(12)},
        rank=24,
        seed=9,
    )


def test_an_adapter_larger_than_the_disk_changes_nothing(
    mount: Mounter, make_adapter: AdapterMaker, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = mount(size="1m") / "home"
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    assert call("add", make_adapter("good")).code == 0
    with unchanged(home):
        told(call("add", big))
    assert call("show", "good").code == 0


def test_wherever_the_disk_becomes_full_no_ref_changes_and_it_works_once_there_is_room(
    mount: Mounter, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bytes run out in the copy, the manifest, the attestation, the journal or the ref, a page at a time."""
    disk = mount(size="4m")
    home = disk / "home"
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    assert call("add", make_adapter("good")).code == 0
    folder = make_adapter("new", seed=1)
    template = disk.parent / "template"
    shutil.copytree(home, template)
    failures = 0
    for pages in range(12):
        shutil.rmtree(home)
        shutil.copytree(template, home)
        before, lines = refs(home), journal(home)
        fill(disk, pages * 4096)
        said = call("add", folder, "--name", "new")
        if said.code != 0:
            failures += 1
            told(said)
            assert refs(home) == before
            assert journal(home) == lines
            assert left_over(home) == []
        assert problems(home) == []
        (disk / "ballast").unlink()
        assert call("add", folder, "--name", "new").code == 0
        store = Store.open(home)
        digest = store.resolve("new").digest
        assert [item.type for item in store.attestations(digest)] == ["provenance"], (
            f"with {pages} pages free"
        )
        assert store.log()[-1].after == digest
    assert 3 <= failures < 12


def test_a_disk_without_room_for_one_more_file_is_full_too(
    mount: Mounter, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of inodes: no folder and no file can be made."""
    disk = mount(size="4m", nr_inodes="100")
    home = disk / "home"
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    assert call("add", make_adapter("good")).code == 0
    folder = make_adapter("new", seed=1)
    used = 0
    while True:  # take all that is left
        try:
            (disk / f"file{used}").touch()
        except OSError:
            break
        used += 1
    for free in range(14):
        before, lines = refs(home), journal(home)
        said = call("add", folder, "--name", "new")
        if said.code == 0:
            assert free > 2
            break
        told(said)
        assert refs(home) == before
        assert journal(home) == lines
        assert left_over(home) == []
        (disk / f"file{free}").unlink()
    else:
        pytest.fail("it never found room")


def test_a_checkout_that_does_not_fit_leaves_no_folder(
    mount: Mounter, store: Store, big: Path, tmp_path: Path
) -> None:
    store.add_folder(big)
    disk = mount(size="1m")
    with unchanged(tmp_path / "home"):
        told(call("checkout", "big", disk / "out"))
    assert list(disk.iterdir()) == []


def test_a_checkout_without_inodes_leaves_no_folder(
    mount: Mounter, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    for free in (1, 2, 3):
        disk = mount(f"disk{free}", size="1m", nr_inodes=str(free))
        told(call("checkout", "tone", disk / "out"))
        assert list(disk.iterdir()) == []


def test_a_view_that_does_not_fit_leaves_nothing(
    mount: Mounter, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors under another dialect's names are written anew for a view."""
    disk = mount(size="4m", nr_inodes="200")
    home = disk / "home"
    folder = make_adapter("new", modules=llama_modules(), rank=32)
    spoil_names(folder)
    store = Store.open(home)
    digest = store.add_folder(folder).digest
    fill(disk, 8192)
    before = set(listing(home))
    with pytest.raises(Exception, match="no space left") as caught:
        store.view(digest)
    assert type(caught.value).__name__ == "OutOfSpaceError"
    assert set(listing(home)) == before


def spoil_names(folder: Path) -> None:
    """The dialect that keeps the adapter's name in the tensors'."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file(
        {name.replace(".weight", ".default.weight"): t for name, t in load_file(path).items()}, path
    )


@pytest.mark.parametrize("free", [0, 4096, 3 * 4096, 10 * 4096])
def test_a_merge_that_does_not_fit_changes_no_ref_and_says_why(
    free: int, mount: Mounter, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount(size="4m")
    home = disk / "home"
    monkeypatch.setenv("ADAPTERHUB_HOME", str(home))
    for seed, name in enumerate(("one", "two")):
        assert call("add", make_adapter(name, modules=llama_modules(), rank=8, seed=seed)).code == 0
    before, lines = refs(home), journal(home)
    fill(disk, free)
    told(call("merge", "one", "two", "--name", "merged"))
    assert refs(home) == before
    assert journal(home) == lines
    assert left_over(home) == []
    assert not list(home.glob("runs/*/adapter"))
    (disk / "ballast").unlink()
    assert call("merge", "one", "two", "--name", "merged").code == 0


def test_an_export_that_does_not_fit_leaves_no_folder(
    mount: Mounter, store: Store, make_adapter: AdapterMaker, tiny: ModelMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    base = tiny.llama()
    disk = mount(size="128k")
    with unchanged(tmp_path / "home"):
        said = call("export", "tone", "--base", base, "-o", disk / "model")
    assert said.code == 1
    assert "no space" in said.err
    assert list(disk.iterdir()) == []


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writing fails in the middle, like on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_journal_that_cannot_grow_keeps_its_lines_and_no_ref_changes(
    room: int, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    store.add_folder(make_adapter("tone"))
    path = home / "store" / "log" / "refs.jsonl"
    while path.stat().st_size < 20_000:
        path.write_bytes(path.read_bytes() * 2)
    limit = path.stat().st_size + room
    new = make_adapter("new", seed=1)
    with unchanged(home), files_at_most(limit):
        told(call("tag", "tone", "other"))
        told(call("rm", "tone", "--yes"))
    before, lines = refs(home), path.read_bytes()
    with files_at_most(limit):
        told(call("add", new))
    assert (refs(home), path.read_bytes(), left_over(home)) == (before, lines, [])
    assert [change.op for change in store.log()][-1] == "add"
    store.tag(store.resolve("tone"), parse_name("other"))


def test_a_copy_that_cannot_grow_is_removed(
    store: Store, make_adapter: AdapterMaker, big: Path, tmp_path: Path
) -> None:
    store.add_folder(make_adapter("tone"))
    with unchanged(tmp_path / "home"), files_at_most(100_000):
        told(call("add", big))
    with files_at_most(4_000):
        told(call("checkout", "tone", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert left_over(tmp_path) == []


def test_a_full_output_is_no_bug_of_ours(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    from tests.cli.calling import PROGRAM

    store.add_folder(make_adapter("tone"))
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [PROGRAM, "ls"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "Something went wrong inside" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="mounts read-only")
def test_a_store_that_cannot_be_written_is_read_and_a_change_says_so(
    mount: Mounter, make_adapter: AdapterMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mount(size="4m")
    monkeypatch.setenv("ADAPTERHUB_HOME", str(disk / "home"))
    assert call("add", make_adapter("tone")).code == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for words in (["ls"], ["show", "tone"], ["log"], ["checkout", "tone", str(tmp_path / "out")]):
        assert call(*words).code == 0, words
    for words in (
        ["add", str(make_adapter("new", seed=1))],
        ["tag", "tone", "other"],
        ["rm", "tone", "--yes"],
    ):
        said = call(*words)
        assert said.code == 1
        assert "Something went wrong inside" not in said.err
        assert "read-only" in said.err.lower()


@pytest.mark.parametrize("where", ["a file", "below a file", "a broken link"])
def test_a_home_that_is_no_folder_is_said(
    where: str, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter("tone")
    place = tmp_path / "place"
    if where == "a broken link":
        place.symlink_to("/nowhere/at/all")
    else:
        place.write_text("x")
    home = place / "home" if where == "below a file" else place
    said = run("add", folder, ADAPTERHUB_HOME=str(home))
    assert said.code in (1, 2)
    assert "Something went wrong inside" not in said.err
    assert str(home) in said.err
