"""`hf://datasets/org/name[@revision][/path]`: files of a dataset repository, at one commit, in the Hugging Face cache.

The revision is looked up once and pinned to its commit; only the files that are asked for are fetched. Each must have
the bytes that the Hub states: one that is wrong in the cache is fetched again, once. Without a connection the cache's
copy is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import FormatError, NotFoundError
from adapterhub.remote.address import HubAddress, parse_address
from adapterhub.remote.cached import cached_listing, cached_place, remember_revision
from adapterhub.remote.fetching import GIT_PREFIX, Hub, Listing, git_id
from adapterhub.remote.refusals import UnreachableError
from adapterhub.words import short, some


@dataclass(frozen=True)
class FetchedData:
    """Files of a dataset on this machine, by their path in the repository, and the address with its commit."""

    address: HubAddress
    files: Mapping[str, Path]


def fetch_dataset(
    text: str, wanted: Callable[[str], bool], note: Callable[[str], None] = lambda _: None
) -> FetchedData:
    """The files below the address `text` (or the one it names) whose paths are `wanted`.

    Raises UsageError (the address), NotFoundError (repository, revision, path, or no such file in it), RemoteError
    (the Hub refuses or can't be reached) and FormatError (other bytes than it states).
    """
    from huggingface_hub import constants

    address = parse_address(text, "dataset")
    if constants.is_offline_mode():
        return _from_cache(address, wanted, note, "HF_HUB_OFFLINE is set")
    hub = Hub(address, note)
    try:
        listing = hub.listing()
    except UnreachableError as error:
        if cached_listing(address) is None:
            raise
        return _from_cache(address, wanted, note, error.what.rstrip("."))
    files: dict[str, Path] = {}
    for path, stated in _chosen(listing, address, wanted).items():
        files[path] = hub.fetch(listing.commit, path)
        if not _is_stated(files[path], stated):
            note(f"{path} in the cache isn't what the Hub states; it is fetched again")
            files[path] = hub.fetch(listing.commit, path, again=True)
            _require_stated(files[path], path, stated)
    remember_revision(address, listing.commit)
    return FetchedData(replace(address, revision=listing.commit), files)


def _from_cache(
    address: HubAddress, wanted: Callable[[str], bool], note: Callable[[str], None], why: str
) -> FetchedData:
    listing = cached_listing(address)
    if listing is None:
        raise NotFoundError(
            f"{address} is not in the Hugging Face cache.",
            why=f"The Hub is not asked: {why}.",
            hint=f"With a connection:  HF_HUB_OFFLINE=0 {address.command}",
        )
    chosen = _chosen(listing, address, wanted)
    files = {path: cached_place(address, listing.commit, path) for path in chosen}
    for path, stated in chosen.items():
        _require_stated(files[path], path, stated)
    newer = "" if address.revision == listing.commit else "; the Hub may have a newer one"
    note(
        f"{address} is taken from the Hugging Face cache ({why}): commit {short(listing.commit)}, with the files fetched"
        f" so far, {some(sorted(files), most=5)}{newer}"
    )
    return FetchedData(replace(address, revision=listing.commit), files)


def _chosen(
    listing: Listing, address: HubAddress, wanted: Callable[[str], bool]
) -> dict[str, str | None]:
    """The wanted files at the address, with their digests; NotFoundError where there is none."""
    here = {
        path: stated
        for path, stated in listing.files.items()
        if not address.folder or path == address.folder or path.startswith(f"{address.folder}/")
    }
    found = {path: stated for path, stated in sorted(here.items()) if wanted(path)}
    if not found:
        held = some(sorted(here or listing.files), most=8)
        what = f"{address} holds no file of data." if here else f"{address} is not there."
        raise NotFoundError(what, why=f"There is {held or 'nothing'}.")
    return found


def _require_stated(path: Path, name: str, stated: str | None) -> None:
    if not _is_stated(path, stated):
        raise FormatError(
            f"{name} is not what its digest says.",
            why=f"It should be {stated}.",
            hint=f"rm {path.resolve()}   and then run the same command again, with a connection.",
        )


def _is_stated(path: Path, stated: str | None) -> bool:
    """Whether the file has the digest that the Hub, or its name in the cache, states; True where nobody says."""
    if stated is None:
        return True
    if stated.startswith(GIT_PREFIX):
        return git_id(path, path.stat().st_size) == stated
    with path.open("rb") as file:
        return DIGEST_PREFIX + hashlib.file_digest(file, "sha256").hexdigest() == stated
