"""A pickled adapter as a folder of safetensors. The pickle is read in a process of its own; see `unpickle`.

What comes back is not believed: the new file is opened with our own reader, and every tensor's bytes are hashed and
compared with what the other process says it read.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
    ExternalToolError,
    FormatError,
    NotFoundError,
)
from adapterhub.formats.folders import adapter_files
from adapterhub.formats.peft import PICKLE_NAMES, WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME, read_config
from adapterhub.formats.safetensors import TensorFile
from adapterhub.fsio import clone_or_copy, no_space, stage_copy
from adapterhub.words import human_size

SECONDS = 600
"""The longest a conversion may take; gigabytes take seconds."""
_SPARE_BYTES = 256 * 2**20
_TIMES = 4  # the file, its tensors, a contiguous copy of the largest, and as much again
_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True)
class Converted:
    """What came of a conversion."""

    pickle: str
    """The pickle's file name."""
    from_sha256: str
    tensors: int
    notes: tuple[str, ...]

    def provenance(self) -> dict[str, Any]:
        """What is recorded about the adapter made of it; adding puts in what the adapter's own files claim."""
        return {
            "event": "converted",
            "from_file": self.pickle,
            "from_sha256": self.from_sha256,
            "notes": list(self.notes),
        }


def find_pickle(source: Path) -> Path:
    """The pickled weights at `source`, a folder of PEFT's or the file itself.

    Raises NotFoundError where there is none, ConflictError where the folder is safetensors already.
    """
    folder = source if source.is_dir() else source.parent
    if not source.exists():
        raise NotFoundError(
            f"There is no {source}.", hint="Give the folder that PEFT's save_pretrained wrote."
        )
    if not (folder / CONFIG_NAME).is_file():
        raise NotFoundError(
            f"{folder} holds no adapter.",
            why=f"There is no {CONFIG_NAME} in it.",
            hint="Give the folder that PEFT's save_pretrained wrote.",
        )
    if (folder / WEIGHTS_NAME).is_file():
        raise ConflictError(
            f"{folder} has safetensors already; there is nothing to convert.",
            hint=f"adapterhub add {quote(str(folder))}",
        )
    if not source.is_dir():
        return source
    found = next((folder / name for name in PICKLE_NAMES if (folder / name).is_file()), None)
    if found is None:
        raise NotFoundError(
            f"{folder} holds no pickled weights.",
            why=f"None of {', '.join(PICKLE_NAMES)} is there.",
            hint="Was the download finished?",
        )
    return found


def convert_into(source: Path, building: Path) -> Converted:
    """Writes the pickled adapter at `source` into the empty folder `building`, with its other files as they are.

    Raises NotFoundError, ConflictError and FormatError; for a pickle that asks for more than tensors nothing of it runs.
    """
    pickle = find_pickle(source)
    read_config(pickle.parent / CONFIG_NAME)
    files, notes = adapter_files(pickle.parent, besides=[pickle.name])
    for relative, path in files.items():
        target = building / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        clone_or_copy(path, target)
    # Our own copy is hashed and read, so what is recorded is what was converted.
    copy = stage_copy(pickle, building)
    try:
        rows = _unpickle(copy.path, building / WEIGHTS_NAME, pickle, copy.size)
    finally:
        copy.path.unlink(missing_ok=True)
    _compare(building / WEIGHTS_NAME, rows)
    return Converted(
        pickle.name,
        copy.digest.removeprefix("sha256:"),
        len(rows),
        tuple(notes),
    )


def _unpickle(copy: Path, target: Path, pickle: Path, size: int) -> list[list[Any]]:
    memory = _TIMES * size + _SPARE_BYTES
    command = [
        sys.executable,
        "-I",
        "-m",
        "adapterhub.formats.unpickle",
        str(copy),
        str(target),
        str(memory),
        str(SECONDS),
    ]
    environment = {key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**environment, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _refusal(pickle, "time", f"It was ended after {SECONDS:g} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        if done.returncode < 0:
            raise _refusal(pickle, "killed", f"It ended with signal {-done.returncode}") from None
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ExternalToolError(
            f"Reading {pickle} ended with exit code {done.returncode}.",
            why=said[-1] if said else "It said nothing.",
            hint="Convert it with torch where you trust it.",
        ) from None
    if answer.get("refused") == "full":
        raise no_space(target.parent)
    if "refused" in answer:
        limit = f"It may take {human_size(memory)}, as a file of {human_size(size)}"
        raise _refusal(pickle, answer["refused"], answer["said"] or limit)
    rows: list[list[Any]] = answer["tensors"]
    return rows


def _refusal(pickle: Path, kind: str, why: str) -> AdapterHubError:
    what, hint = {
        "unsafe": (
            "asks for more than tensors, which could run code; nothing of it was run.",
            "Load it nowhere. Ask its author for adapter_model.safetensors.",
        ),
        "memory": (
            "unpacks to far more than its size.",
            "Ask its author for adapter_model.safetensors.",
        ),
        "other": (
            "holds more than an adapter's tensors.",
            "Save the adapter alone where you trust it: model.save_pretrained(FOLDER)",
        ),
    }.get(
        kind,
        ("can't be read as a file of torch.save.", "Fetch it again; it may be cut off or damaged."),
    )
    return FormatError(f"{pickle} {what}", why=f"{why[:1].upper()}{why[1:]}.", hint=hint)


def _compare(weights: Path, rows: list[list[Any]]) -> None:
    """FormatError unless the file holds exactly the tensors in `rows`, byte for byte."""
    with TensorFile(weights) as file:
        found = {
            name: [info.dtype, list(info.shape), hashlib.sha256(file.raw(name)).hexdigest()]
            for name, info in file.infos.items()
        }
    if found != {name: rest for name, *rest in rows}:
        raise FormatError(
            f"{weights.name} doesn't hold what was read from the pickle.",
            why="Its tensors were compared byte for byte.",
            hint="Run the same command again; check the disk if this happens twice.",
        )
