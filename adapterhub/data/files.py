"""From what people type to files of data: files, folders of them, and datasets on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from adapterhub.data.records import ENDINGS
from adapterhub.errors import FormatError, NotFoundError
from adapterhub.fsio import is_folder, typed_path
from adapterhub.words import natural, some

Paths = str | Path | Sequence[str | Path]
"""One path or address, or several."""
Note = Callable[[str], None]

# What the library `datasets` keeps beside the rows.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\D*)\Z")


@dataclass(frozen=True)
class DataFile:
    """One file to read: `name` is what errors call it, `source` says where it came from (an address with its commit)."""

    path: Path
    name: str
    source: str


def find_files(paths: Paths, note: Note = lambda _: None) -> tuple[DataFile, ...]:
    """The files that `paths` mean, in that order, those of a folder as people sort them.

    Of a folder all files of data are taken, also in the folders in it, but nothing hidden. Raises NotFoundError (nothing
    there), FormatError (a part of a sharded file is missing) and, for an address on the Hub, what `fetch_dataset` raises.
    """
    found: list[DataFile] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found += _files_of(str(path), note)
    names = Counter(file.name for file in found)
    return tuple(
        file if names[file.name] == 1 else replace(file, name=file.source) for file in found
    )


def _files_of(text: str, note: Note) -> list[DataFile]:
    from adapterhub.remote.address import is_hub

    if is_hub(text):
        return _from_hub(text, note)
    path = typed_path(text)
    if is_folder(path):
        return _in_folder(path)
    if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a name longer than any can be
        raise NotFoundError(f"There is no data file {text}.")
    return [DataFile(path, path.name, text)]


def _in_folder(folder: Path) -> list[DataFile]:
    relative = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    names = _in_order(name for name in relative if is_data(name))
    if not names:
        raise NotFoundError(
            f"The folder {folder} holds no file of data.",
            why=f"Files of data end in {', '.join(ENDINGS)}. There is"
            f" {some(sorted(relative), most=5) or 'nothing'}.",
        )
    _refuse_missing_shards(names, str(folder))
    return [DataFile(folder / name, name, str(folder / name)) for name in names]


def _from_hub(text: str, note: Note) -> list[DataFile]:
    from adapterhub.remote.datasets import fetch_dataset

    fetched = fetch_dataset(text, is_data, note)
    address = fetched.address
    names = _in_order(fetched.files)
    if names != [address.folder]:
        _refuse_missing_shards(names, str(address))
    return [
        DataFile(fetched.files[name], name, str(replace(address, folder=name))) for name in names
    ]


def is_data(name: str) -> bool:
    """Whether a file below a folder is one of rows: by its ending, neither hidden nor about the rows."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in ENDINGS and not hidden and path.name not in _ABOUT


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (natural(name), name))


def _refuse_missing_shards(names: Iterable[str], where: str) -> None:
    """FormatError where `train-00000-of-00007.parquet` is there and one of its seven parts isn't."""
    parts: defaultdict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        if match := _SHARD.match(name):
            parts[match[1], match[3], match[4]].add(int(match[2]))
    for (stem, total, ending), there in parts.items():
        if len(there) < int(total):
            missing = min(set(range(len(there) + 1)) - there)
            raise FormatError(
                f"{where} is not whole: {stem} has {int(total)} parts, and {len(there)} of them are there.",
                why=f"Missing, for one: {stem}-{missing:05}-of-{total}{ending}.",
                hint="Fetch the rest, or name the files to use one by one.",
            )
