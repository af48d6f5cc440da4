"""An adapter out of the store again: a folder PEFT loads, of one's own; and views, which nobody edits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.store import Store
from tests.cli.calling import call
from tests.store.watching import left_over, sha256, unchanged
from tests.support.adapters import AdapterMaker
from tests.support.models import ModelMaker

PeftMaker = Callable[..., Path]


def inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def files(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): sha256(p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def logits(base: Path, adapter: Path | None) -> object:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model(torch.arange(3, 19)[None]).logits


@pytest.mark.parametrize("dialect", ["as PEFT wrote it", ".default.", "compiled", "without prefix"])
def test_peft_loads_what_was_checked_out_and_it_does_what_it_did(
    dialect: str, store: Store, tiny: ModelMaker, make_peft_adapter: PeftMaker, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tiny.llama()
    folder = make_peft_adapter(base, "peft", r=4, lora_alpha=8)
    expected = logits(base, folder)
    change: Callable[[str], str] = {
        "as PEFT wrote it": lambda name: name,
        ".default.": lambda name: name.replace(".weight", ".default.weight"),
        "compiled": lambda name: "_orig_mod." + name,
        "without prefix": lambda name: name.removeprefix("base_model.model."),
    }[dialect]
    path = folder / "adapter_model.safetensors"
    save_file(
        {change(name): tensor for name, tensor in load_file(path).items()},
        path,
        metadata={"format": "pt"},
    )
    store.add_folder(folder, name="tone")
    store.checkout(store.resolve("tone"), tmp_path / "out")
    for place in (tmp_path / "out", store.view(store.resolve("tone").digest)):
        found = logits(base, place)
        assert isinstance(found, torch.Tensor)
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(found, expected)
        plain = logits(base, None)
        assert isinstance(plain, torch.Tensor)
        assert not torch.allclose(found, plain)


def test_a_saved_head_in_a_dialect_is_loaded_too(
    store: Store, tiny: ModelMaker, make_peft_adapter: PeftMaker, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = tiny.llama()
    folder = make_peft_adapter(base, "peft", r=4, modules_to_save=["lm_head"])
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    head = "base_model.model.lm_head.weight"
    tensors[head] = tensors[head] + 1
    save_file(tensors, path)
    expected = logits(base, folder)
    tensors[head.replace(".weight", ".modules_to_save.default.weight")] = tensors.pop(head)
    save_file({name.replace("lora_A.", "lora_A.default."): t for name, t in tensors.items()}, path)
    store.add_folder(folder, name="tone")
    store.checkout(store.resolve("tone"), tmp_path / "out")
    found = logits(base, tmp_path / "out")
    assert isinstance(found, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    assert torch.equal(found, expected)


def test_a_checkout_is_the_same_files_with_inodes_of_their_own(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    folder = make_adapter()
    (folder / "deep").mkdir()
    (folder / "deep" / "notes.txt").write_text("notes")
    store.add_folder(folder, name="tone")
    store.view(store.resolve("tone").digest)
    out = tmp_path / "out"
    store.checkout(store.resolve("tone"), out)
    assert files(out) == files(folder)
    assert not inodes(out) & inodes(tmp_path / "home")
    assert all(path.stat().st_mode & stat.S_IWUSR for path in out.rglob("*"))
    (out / "adapter_model.safetensors").write_bytes(b"mine now")
    with unchanged(tmp_path / "home"):
        store.checkout(store.resolve("tone"), tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)


def test_what_is_added_from_a_checkout_is_the_same_adapter(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    first = store.add_folder(make_adapter(), name="tone")
    store.checkout(store.resolve("tone"), tmp_path / "out")
    assert store.add_folder(tmp_path / "out", name="again").digest == first.digest


def test_a_file_of_that_name_stays(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    out = tmp_path / "out"
    out.write_text("mine")
    for words in ([], ["--overwrite"]):
        said = call("checkout", "tone", out, *words)
        assert said.code == 1
        assert "is a file" in said.err
        assert out.read_text() == "mine"


@pytest.mark.parametrize("content", ["a file in it", "a hidden file in it"])
def test_what_is_there_is_not_overwritten_unasked(
    content: str, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    out = tmp_path / "out"
    out.mkdir()
    (out / (".hidden" if "hidden" in content else "mine.txt")).write_text("mine")
    before = files(out)
    said = call("checkout", "tone", out)
    assert said.code == 1
    assert f"adapterhub checkout tone {out} --overwrite" in said.err
    assert files(out) == before
    assert call("checkout", "tone", out, "--overwrite").code == 0
    assert "adapter_model.safetensors" in files(out)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    "target",
    [
        "a new folder",
        "an empty folder",
        "deep in new folders",
        "a link to an empty folder",
        "a link to a folder",
        "a dangling link",
        "the current folder",
    ],
)
def test_every_target_works_or_is_refused_with_a_reason(
    target: str,
    store: Store,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.add_folder(make_adapter(), name="tone")
    out, real = tmp_path / "a" / "out", tmp_path / "real"
    out.parent.mkdir()
    real.mkdir()
    if target == "an empty folder":
        out.mkdir()
    elif target == "deep in new folders":
        out = out / "x" / "y"
    elif target == "a link to an empty folder":
        out.symlink_to(real)
    elif target == "a link to a folder":
        (real / "mine").write_text("mine")
        out.symlink_to(real)
    elif target == "a dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif target == "the current folder":
        monkeypatch.chdir(out.parent)
        out = Path()
    overwrite = ["--overwrite"] if target == "a link to a folder" else []
    said = call("checkout", "tone", out, *overwrite)
    assert "Something went wrong inside" not in said.err
    if said.code == 0:
        assert "adapter_model.safetensors" in files(out)
    else:
        assert said.code == 1
    assert left_over(tmp_path) == []
    if target == "a link to a folder":
        assert (real / "mine").read_text() == "mine", "what the link led to isn't ours to delete"


@pytest.mark.parametrize(
    "precious", ["home", "", "home/store", "home/store/refs", "home/store/blobs/sha256"]
)
def test_not_even_overwrite_replaces_the_store(
    precious: str, store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone")
    with unchanged(tmp_path / "home"):
        assert call("checkout", "tone", tmp_path / precious, "--overwrite").code != 0
    assert call("show", "tone").code == 0


@pytest.mark.parametrize("moment", ["instead", "just after"])
@pytest.mark.parametrize(("call_name", "strike"), [("mkdir", 1), ("rename", 1), ("rename", 2)])
def test_an_interrupted_overwrite_leaves_the_old_folder_or_the_new_one_and_nothing_else(
    call_name: str,
    strike: int,
    moment: str,
    store: Store,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal that comes during a system call is raised when the call returns: the folder is there by then."""
    source = make_adapter()
    store.add_folder(source, name="tone")
    out = tmp_path / "x" / "out"
    out.mkdir(parents=True)
    (out / "mine").write_text("mine")
    real, seen = getattr(os, call_name), 0

    def system_call(*arguments: Any, **options: Any) -> None:
        nonlocal seen
        if str(out.parent) not in str(arguments[0]):
            return real(*arguments, **options)  # type: ignore[no-any-return]
        seen += 1
        if seen != strike or moment == "just after":
            real(*arguments, **options)
        if seen == strike:
            raise KeyboardInterrupt
        return None

    with monkeypatch.context() as patch:
        patch.setattr(os, call_name, system_call)
        assert call("checkout", "tone", out, "--overwrite").code == 130
    assert seen >= strike
    assert files(out) in ({"mine": sha256(b"mine")}, files(source))
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_removed_adapter_is_checked_out_by_its_digest(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    digest = store.add_folder(make_adapter(), name="tone").digest
    assert call("rm", "tone", "--yes").code == 0
    assert call("checkout", f"@{digest[7:19]}", tmp_path / "out").code == 0
    assert call("checkout", f"tone@{digest[7:19]}", tmp_path / "out2").code == 0


@pytest.mark.parametrize("dialect", ["plain", "named"])
@pytest.mark.parametrize("hard_links", [True, False])
def test_a_view_is_made_once_and_write_protected(
    hard_links: bool,
    dialect: str,
    store: Store,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the file system has no hard links, or the tensors had to be renamed for it."""
    from tests.store.test_no_space import spoil_names

    def refused(*_: object, **__: object) -> None:
        raise OSError("no hard links here")

    folder = make_adapter()
    if dialect == "named":
        spoil_names(folder)
    digest = store.add_folder(folder, name="tone").digest
    if not hard_links:
        monkeypatch.setattr(os, "link", refused)
    view = store.view(digest)
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode))
        for path in view.rglob("*")
        if path.is_file()
    }
    assert modes == dict.fromkeys(modes, "0o444")
    assert len(modes) == 2
    with unchanged(tmp_path / "home"):
        assert store.view(digest) == view
    assert left_over(tmp_path / "home") == []


def test_a_view_goes_by_digest_so_a_moved_name_gets_another_path(
    store: Store, make_adapter: AdapterMaker
) -> None:
    """vLLM's prefix cache is keyed by name and path: the same path must never mean other weights."""
    one = store.view(store.add_folder(make_adapter("one"), name="tone").digest)
    two = store.view(store.add_folder(make_adapter("two", seed=1), name="tone", move=True).digest)
    assert one != two
    assert one.is_dir()


def test_a_view_of_damaged_bytes_is_refused(
    store: Store, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    from adapterhub.errors import StoreDamagedError

    folder = make_adapter()
    added = store.add_folder(folder, name="tone")
    blob = store.layout.blob(
        "sha256:" + sha256((folder / "adapter_model.safetensors").read_bytes())
    )
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x77")
    with pytest.raises(StoreDamagedError):
        store.view(added.digest)
    assert left_over(tmp_path / "home") == []
