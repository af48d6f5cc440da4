"""An adapter as a folder: PEFT folders for servers (`views/`) and for people (`checkout`), from verified blobs."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from adapterhub.errors import FormatError, StoreDamagedError
from adapterhub.formats.keys import parse_key
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.safetensors import TensorFile, encode_header
from adapterhub.fsio import clone_or_copy, disk_errors, new_folder
from adapterhub.manifest import Manifest
from adapterhub.store.blobs import Blobs, hash_file


def fill(folder: Path, manifest: Manifest, blobs: Blobs, *, link: bool) -> None:
    """Writes the adapter's files into the empty `folder`, the tensors under the names PEFT looks for.

    Args:
        link: hard links where the file system can; only for folders that nobody edits.
    """
    for entry in manifest.files:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = blobs.verified(entry.digest)
        renamed = entry.path == WEIGHTS_NAME and _renamed(source, target)
        if not renamed and not (link and _linked(source, target)):
            clone_or_copy(source, target)
        target.chmod(0o444 if link else 0o644)


def make(target: Path, manifest: Manifest, blobs: Blobs) -> Path:
    """A view at `target`, whole or not at all."""
    try:
        with new_folder(target) as building:
            fill(building, manifest, blobs, link=True)
    except OSError:
        if not target.is_dir():  # otherwise another process was quicker, with the same bytes
            raise
    return target


def wrong_files(
    folder: Path, manifest: Manifest, blobs: Blobs, *, deep: bool, damaged: Collection[str] = ()
) -> list[str]:
    """The files of a view that aren't what `fill` made; with `deep`, by their bytes and not only their presence.

    Args:
        damaged: blobs whose bytes are known to have changed: so have those of their hard links.
    """
    return [
        entry.path
        for entry in manifest.files
        if not (folder / entry.path).is_file()
        or (deep and not _same(folder / entry.path, blobs, entry.digest, damaged))
    ]


def _same(path: Path, blobs: Blobs, digest: str, damaged: Collection[str]) -> bool:
    """Whether a view's file holds a blob's bytes, or its tensors under other names."""
    try:
        source = blobs.path(digest)
    except StoreDamagedError:  # reported as such: it says nothing about the view
        return True
    if path.samefile(source):
        return digest not in damaged
    if hash_file(path) == digest:
        return True
    try:
        with TensorFile(path) as made, TensorFile(source) as kept:
            return made.infos.keys() == {parse_key(name).peft for name in kept.infos} and all(
                made.raw(parse_key(name).peft) == kept.raw(name) for name in kept.infos
            )
    except FormatError:
        return False


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another device, or no hard links there: a copy does as well
        return False
    return True


def _renamed(source: Path, target: Path) -> bool:
    """Writes `source` under PEFT's names; False where it has them already."""
    with TensorFile(source) as file:
        keys = {name: parse_key(name) for name in file.infos}
        # AdaLoRA's factors are bare parameters, LoRA's are the weights of layers.
        triples = any(key.role == "lora_E" for key in keys.values())
        names = {
            name: key.peft.removesuffix(".weight") if triples and key.role != "full" else key.peft
            for name, key in keys.items()
        }
        if all(names[name] == name or key.role == "full" for name, key in keys.items()):
            return False
        once = {names[info.name]: info for info in file.infos.values()}  # PEFT saves some twice
        order = sorted(once.values(), key=lambda info: info.start)
        rows = [(names[info.name], info.dtype, info.shape, info.end - info.start) for info in order]
        with disk_errors(target), target.open("xb") as writer:
            writer.write(encode_header(rows, file.metadata))
            for info in order:
                writer.write(file.raw(info.name))
    return True
