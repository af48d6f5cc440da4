"""What people have on disk: which files of a training's output are the adapter, and which only lie beside it.

Trainers write everything into one folder: the adapter, the optimizer's state, logs, earlier checkpoints, merged models.
Of that only the adapter comes in. Nothing is left out silently: every reason becomes one remark.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from shlex import quote

from adapterhub.errors import ConflictError, FormatError, NotFoundError, UsageError
from adapterhub.formats.peft import find_peft
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.single import LONE_NAMES, read_single
from adapterhub.manifest import is_safe_relative_path
from adapterhub.names import DEFAULT_TAG, Name, parse_name, slug
from adapterhub.words import natural, some

_STATE, _WHOLE, _LOGS = "the training's state", "weights of a whole model", "the training's logs"
_CHECKPOINTS, _PICKLES = "other checkpoints", "pickled weights"
_CACHES = "version control or a cache"

_FILES: Mapping[str, str] = {
    "optimizer*.pt": _STATE, "optimizer*.bin": _STATE, "scheduler*.pt": _STATE, "scheduler*.bin": _STATE,
    "scaler*.pt": _STATE, "rng_state*.pth": _STATE, "random_states_*.pkl": _STATE, "sampler*.bin": _STATE,
    "training_args.bin": _STATE, "zero_to_fp32.py": _STATE, "latest": _STATE, "*.distcp": _STATE,
    "pytorch_model*.bin": _WHOLE, "pytorch_model*.bin.index.json": _WHOLE, "model*.safetensors": _WHOLE,
    "model*.safetensors.index.json": _WHOLE, "consolidated*": _WHOLE, "*.gguf": _WHOLE,
    "tf_model*.h5": _WHOLE, "flax_model*.msgpack": _WHOLE,
    "events.out.tfevents*": _LOGS, "*.log": _LOGS, "running_log.txt": _LOGS,
    "adapter_model*.bin": _PICKLES, "adapter_model.pt": _PICKLES,
    ".DS_Store": _CACHES,
}  # fmt: skip
"""What a file's name says it is, as shell patterns. What trainers write for people (plots, trainer_state.json) is kept."""
_FOLDERS: Mapping[str, str] = {
    "global_step*": _STATE, "pytorch_model_fsdp_*": _STATE, "optimizer_[0-9]*": _STATE,
    "checkpoint-[0-9]*": _CHECKPOINTS,
    "merged": _WHOLE, "consolidated*": _WHOLE,
    "runs": _LOGS, "wandb": _LOGS, "logs": _LOGS, "mlruns": _LOGS, "lightning_logs": _LOGS,
    ".git": _CACHES, ".cache": _CACHES, "__pycache__": _CACHES, ".ipynb_checkpoints": _CACHES,
}  # fmt: skip
"""The same for folders, wherever they lie in the adapter's."""


@dataclass(frozen=True)
class Source:
    """An adapter as it lies on disk: its files by relative POSIX path, as places or as bytes made of what was found."""

    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...]
    """What was left out, and why."""
    name: str
    """What to call it where nobody said."""


def why_left_out(path: str) -> str | None:
    """Why the file at this relative POSIX path of a training's output is no part of the adapter; None where it is one.

    The answer goes after "left out as": "the training's state", "weights of a whole model", ...
    """
    *folders, file = path.split("/")
    reasons = (_why(folder, _FOLDERS) for folder in folders)
    return next((reason for reason in reasons if reason), None) or _why(file, _FILES)


@dataclass(frozen=True)
class Found:
    """An adapter in a tree of folders, and the name proposed for it."""

    path: Path
    name: str


def find_source(path: Path) -> Source:
    """The adapter in the folder or the safetensors file `path`.

    Raises NotFoundError, FormatError and UnsupportedError where there is none that can be used.
    """
    if path.is_file():
        single, remarks = read_single(path)
        named = path.with_suffix("") if path.stem not in LONE_NAMES else path.parent
        return Source(single, tuple(remarks), _proposed_name(named))
    folder = find_peft(path).config.parent
    files, notes = adapter_files(folder)
    return Source(files, tuple(notes), _proposed_name(path))


def _cached_blobs(root: Path) -> list[Path]:
    """Where links in a snapshot of the Hub's cache may lead: blobs/ beside snapshots/, or the blobs all repositories share."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            repository = folder.parents[1]
            return [repository / "blobs", repository.parent / "blobs"]
    return []


def adapter_files(
    folder: Path, *, besides: Collection[str] = ()
) -> tuple[dict[str, Path], list[str]]:
    """Every regular file of the adapter by its relative POSIX path, and remarks on what was left out.

    `besides` are files at the top that the caller has a use of its own for: neither given nor remarked on. FormatError
    for a link that leads out of the folder, and for a path that can't be kept on every system.
    """
    root = folder.resolve()
    allowed = [root, *_cached_blobs(root)]
    files: dict[str, Path] = {}
    left_out: dict[str, list[str]] = {}
    notes: list[str] = []

    def walk(directory: Path) -> None:
        for path in sorted(directory.iterdir()):
            relative = path.relative_to(root).as_posix()
            if path.is_dir() and not path.is_symlink():
                own = "adapters of their own" if (path / CONFIG_NAME).is_file() else None
                if reason := own or _why(path.name, _FOLDERS):
                    left_out.setdefault(reason, []).append(f"{relative}/")
                else:
                    walk(path)
            elif relative in besides:
                continue
            elif path.is_file():
                if reason := _why(path.name, _FILES):
                    left_out.setdefault(reason, []).append(relative)
                    continue
                if not any(path.resolve().is_relative_to(place) for place in allowed):
                    raise FormatError(
                        f"{relative} is a link that leads out of {folder}.",
                        why="It is not part of the adapter.",
                        hint="Put the file itself in its place, or remove the link.",
                    )
                if not is_safe_relative_path(relative):
                    raise FormatError(
                        f"The file name {relative!r} can't be kept on every system.",
                        why="A backslash, a colon or a very long path means something else, or nothing, elsewhere.",
                        hint="Give it another name, then add the folder again.",
                    )
                files[relative] = path
            else:
                notes.append(f"{relative} is no regular file and was left out")

    walk(root)
    for reason, names in left_out.items():
        notes.append(f"left out as {reason}: {some(sorted(names, key=natural), most=5)}")
    return files, notes


def find_tree(
    path: Path, *, name: str | None = None, note: Callable[[str], None] = lambda _: None
) -> list[Found]:
    """Every folder below `path` that holds an adapter's configuration, in the order people count.

    Links to folders are not followed, hidden folders not entered. Names begin with `name`, by default that of `path`:
    `out/checkpoint-100` becomes `out:checkpoint-100`, `runs/a` stays, `runs/a/b` becomes `runs/a-b`. Raises
    NotFoundError where there is none, ConflictError where two would get one name.
    """
    first = parse_name(name if name is not None else slug(path.resolve().name))
    if name is not None and ":" in name:
        raise UsageError(
            f"{name} has a tag, which --recursive gives itself.",
            hint=f"Give the name alone: --name {first.path}",
        )
    found: list[Path] = []

    def walk(directory: Path) -> None:
        if (directory / CONFIG_NAME).is_file():
            found.append(directory)
        for below in sorted(directory.iterdir(), key=lambda below: natural(below.name)):
            if not below.is_dir() or below.name.startswith(".") or below.name == "__pycache__":
                continue
            if below.is_symlink():
                note(f"{below} is a link to a folder and was not followed; add it by itself")
            else:
                walk(below)

    if path.is_dir():
        walk(path)
    if not found:
        raise NotFoundError(
            f"There is no adapter in {path} or below it.",
            why=f"No folder there holds {CONFIG_NAME}." if path.is_dir() else "It is no folder.",
            hint="Give a folder in which adapters lie.",
        )
    named: dict[str, Found] = {}
    for folder in found:
        proposed = str(_name_below(first, folder.relative_to(path).parts))
        other = named.setdefault(proposed.casefold(), Found(folder, proposed))
        if other.path != folder:
            raise ConflictError(
                f"{other.path} and {folder} would both be called {proposed}.",
                why="Nothing was added.",
                hint=f"Rename one of them, or add it by itself: adapterhub add {quote(str(folder))} --name NAME",
            )
    return list(named.values())


def _name_below(first: Name, parts: tuple[str, ...]) -> Name:
    """What to call the adapter at `parts` below the folder called `first`. A checkpoint is a tag of what it belongs to."""
    is_checkpoint = bool(parts) and _why(parts[-1], _FOLDERS) == _CHECKPOINTS
    tag = slug(parts[-1]) if is_checkpoint else DEFAULT_TAG
    folders = "-".join(parts[:-1] if is_checkpoint else parts)
    if not folders:
        return Name(first.namespace, first.name, tag)
    if first.namespace:
        return Name(first.namespace, slug(f"{first.name}-{folders}"), tag)
    return Name(first.name, slug(folders), tag)


def _why(name: str, table: Mapping[str, str]) -> str | None:
    return next((reason for glob, reason in table.items() if fnmatchcase(name, glob)), None)


def _proposed_name(folder: Path) -> str:
    """The folder's name; that of the repository where it lies in the Hub's cache (models--org--name/snapshots/commit)."""
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        return "/".join(slug(part) for part in root.parents[1].name.split("--")[1:][:2])
    return slug(root.name)
