"""An adapter as a folder: PEFT folders for servers (`views/`) and for people (`checkout`), from verified blobs."""

from __future__ import annotations

import os
from pathlib import Path

from adapterhub.formats.keys import parse_key
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.safetensors import TensorFile, encode_header
from adapterhub.fsio import clone_or_copy, disk_errors
from adapterhub.manifest import Manifest
from adapterhub.store.blobs import Blobs


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


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another device, or no hard links there: a copy does as well
        return False
    return True


def _renamed(source: Path, target: Path) -> bool:
    """Writes `source` under PEFT's names; False where it has them already."""
    with TensorFile(source) as file:
        names = {name: parse_key(name) for name in file.infos}
        if all(key.peft == name or key.role == "full" for name, key in names.items()):
            return False
        order = sorted(file.infos.values(), key=lambda info: info.start)
        rows = [
            (names[info.name].peft, info.dtype, info.shape, info.end - info.start) for info in order
        ]
        with disk_errors(target), target.open("xb") as writer:
            writer.write(encode_header(rows, file.metadata))
            for info in order:
                writer.write(file.raw(info.name))
    return True
