"""Which files of a repository are the adapter that an address means, judged by their paths before anything is fetched."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from adapterhub.errors import AdapterHubError, FormatError, NotFoundError
from adapterhub.formats.folders import why_left_out
from adapterhub.formats.peft import PICKLE_NAMES, WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.manifest import is_safe_relative_path
from adapterhub.remote.address import HubAddress
from adapterhub.words import natural, some

_OWN = "adapters of their own"
_MOST_COMMANDS = 20
# The Hub puts this file into every repository; it is about git, as the folder .git is.
_OF_GIT = ".gitattributes"


@dataclass(frozen=True)
class Choice:
    """The adapter's files: path within the adapter -> path within the repository. `notes` say what was left out."""

    files: Mapping[str, str]
    notes: tuple[str, ...]


def choose(paths: Collection[str], address: HubAddress) -> Choice:
    """The files of the adapter at `address`, of all the `paths` of its repository.

    NotFoundError where there is none, with the commands that add the ones elsewhere in the repository; FormatError
    where its weights are a pickle, or a path can't be kept on every system.
    """
    prefix = f"{address.folder}/" if address.folder else ""
    below = {path.removeprefix(prefix): path for path in paths if path.startswith(prefix)}
    if CONFIG_NAME not in below:
        raise _no_adapter(paths, address, bool(below))
    if WEIGHTS_NAME not in below:
        raise _no_weights(below, address)
    nested = [folder for folder in _adapter_folders(below) if folder]
    files: dict[str, str] = {}
    left_out: dict[str, set[str]] = {}
    for path, whole in sorted(below.items()):
        own = next((folder for folder in nested if path.startswith(f"{folder}/")), None)
        reason = _OWN if own else why_left_out(path)
        if reason:
            left_out.setdefault(reason, set()).add(f"{own}/" if own else path)
        elif not is_safe_relative_path(path):
            raise FormatError(
                f"The file name {path!r} of {address} can't be kept on every system.",
                why="Nothing was fetched.",
            )
        elif path != _OF_GIT:
            files[path] = whole
    notes = (
        f"left out as {reason}: {some(sorted(names, key=natural), most=5)}"
        for reason, names in left_out.items()
    )
    return Choice(files, tuple(notes))


def _adapter_folders(paths: Collection[str]) -> list[str]:
    """The folders that hold an adapter, "" for the top, as people sort them."""
    folders = {path.rpartition("/")[0] for path in paths if path.split("/")[-1] == CONFIG_NAME}
    return sorted(folders, key=natural)


def _no_adapter(paths: Collection[str], address: HubAddress, exists: bool) -> NotFoundError:
    found = _adapter_folders(paths)
    commands = [replace(address, folder=folder).command for folder in found]
    if len(commands) > _MOST_COMMANDS:
        commands[_MOST_COMMANDS:] = [f"... and {len(commands) - _MOST_COMMANDS} more"]
    if not exists:
        what = (
            f"{address.repo} has no folder {address.folder}."
            if address.folder
            else f"{address.repo} is empty."
        )
        return NotFoundError(
            what, why=_where(found), hint="\n  ".join(commands) or "Is the address right?"
        )
    whole = not found and any(path.split("/")[-1] == "config.json" for path in paths)
    return NotFoundError(
        f"{address} holds no adapter.",
        why=f"There is no {CONFIG_NAME} in it. "
        + ("It looks like a whole model." if whole else _where(found)),
        hint="\n  ".join(commands) or "Give the repository that an adapter was pushed to.",
    )


def _where(found: list[str]) -> str:
    if not found:
        return "Nor is there an adapter elsewhere in the repository."
    return "The repository has one elsewhere:" if len(found) == 1 else "The repository has these:"


def _no_weights(below: Mapping[str, str], address: HubAddress) -> AdapterHubError:
    pickle = next((name for name in PICKLE_NAMES if name in below), None)
    if pickle:
        into = address.name.replace("/", "-")
        revision = f" --revision {shlex.quote(address.revision)}" if address.revision else ""
        only = f" --include {shlex.quote(f'{address.folder}/*')}" if address.folder else ""
        folder = shlex.quote(f"{into}/{address.folder}" if address.folder else into)
        return FormatError(
            f"{pickle} of {address} is a pickle, which can run code when it is loaded.",
            why="adapterhub reads safetensors only; nothing was fetched.",
            hint=f"hf download {address.repo}{revision}{only} --local-dir {into}\n"
            f"adapterhub convert {folder} --name {address.name}",
        )
    return NotFoundError(
        f"{address} has a {CONFIG_NAME} but no {WEIGHTS_NAME}.",
        why="The configuration alone is no adapter.",
        hint="Was the upload finished? Another revision may have it: hf://org/repo@revision",
    )
