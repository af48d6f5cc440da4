"""`add hf://org/repo[@revision][/folder]`: an adapter from the Hugging Face Hub into the store, at one commit.

The revision is looked up once and pinned to its commit. The files go into the Hugging Face cache, where other tools
find them too, and from there into the store. Nothing is stored whose bytes aren't those the Hub states: a file that
is wrong in the cache is fetched again, once. Without a connection the cache's copy is taken if it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, FormatError, NotFoundError
from adapterhub.formats.folders import Source
from adapterhub.fsio import Staged
from adapterhub.names import parse_name
from adapterhub.remote.address import HubAddress, is_hub, parse_address
from adapterhub.remote.cached import cached_listing, cached_place, remember_revision
from adapterhub.remote.choosing import choose
from adapterhub.remote.fetching import GIT_PREFIX, Hub, Listing, git_id
from adapterhub.remote.refusals import UnreachableError, page
from adapterhub.store import Added, Store
from adapterhub.words import short

__all__ = ["add_from_hub", "is_hub"]


class _WrongBytesError(FormatError):
    """A file isn't what its digest says."""

    def __init__(self, path: str, stated: str, found: str) -> None:
        super().__init__(f"{path} is wrong.")
        self.path, self.stated, self.found = path, stated, found


@dataclass(frozen=True)
class _Fetched:
    """An adapter in the Hugging Face cache. `stated` are the digests its files must have (None: nobody said)."""

    address: HubAddress
    commit: str
    files: dict[str, Path]
    stated: Mapping[str, str | None]
    notes: tuple[str, ...]
    again: Callable[[str], Path] | None
    """Fetches a file again; None without a connection."""

    @property
    def pinned(self) -> HubAddress:
        return HubAddress(self.address.repo, self.commit, self.address.folder)

    @property
    def folder(self) -> Path:
        return cached_place(self.address, self.commit, self.address.folder)

    def provenance(self) -> dict[str, Any]:
        """What is attested; adding puts in what the adapter's own files claim."""
        return {
            "event": "imported",
            "from": "hf",
            "source": str(self.pinned),
            "repo": self.address.repo,
            "revision": self.commit,
            "subfolder": self.address.folder,
            "files": {path: digest for path, digest in self.stated.items() if digest is not None},
        }


def add_from_hub(
    store: Store,
    text: str,
    *,
    name: str | None = None,
    base: str | None = None,
    allow_mismatch: bool = False,
    move: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Added:
    """Puts the adapter at the address `text` into the store, by default under `org/repo` or `org/repo-folder`.

    Raises what `Store.add_folder` raises, and UsageError (the address), NotFoundError (repository, revision, folder),
    RemoteError (the Hub refuses or can't be reached), FormatError (other bytes than it states). The store is then as it was.
    """
    address = parse_address(text)
    target = str(parse_name(name if name is not None else address.name))
    fetched = _fetch(address, note)
    mended: set[str] = set()
    while True:  # ends: no file is mended twice
        try:
            return store.add_folder(
                fetched.folder,
                source=Source(fetched.files, fetched.notes, target),
                name=target,
                base=base,
                allow_mismatch=allow_mismatch,
                move=move,
                provenance=fetched.provenance(),
                why=f"add {fetched.pinned}",
                note=note,
                verify=partial(_verify, fetched.stated),
            )
        except _WrongBytesError as wrong:
            if fetched.again is None or wrong.path in mended:
                raise _told(wrong, fetched) from None
            mended.add(wrong.path)
            note(f"{wrong.path} in the cache isn't what the Hub states; it is fetched again")
            fetched.files[wrong.path] = fetched.again(wrong.path)
        except AdapterHubError as error:  # the cache's folder means nothing to who typed an address
            place = str(fetched.folder)
            error.what = error.what.replace(place, str(address))
            error.why = error.why.replace(place, str(address))
            error.hint = error.hint.replace(f"adapterhub add {place}", address.command)
            error.hint = error.hint.replace(place, str(address))
            raise


def _fetch(address: HubAddress, note: Callable[[str], None]) -> _Fetched:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return _from_cache(address, note)
    hub = Hub(address, note)
    try:
        listing = hub.listing()
    except UnreachableError as error:
        if cached_listing(address) is None:
            raise
        note(f"{error.what} What is in the Hugging Face cache is used")
        return _from_cache(address, note)
    choice = choose(listing.files, address)
    files = {path: hub.fetch(listing.commit, whole) for path, whole in choice.files.items()}
    remember_revision(address, listing.commit)
    stated = _stated(choice.files, listing, note, "the Hub states no digest of it")

    def again(path: str) -> Path:
        if not files[path].is_symlink():  # a cache without links: only a missing file is replaced
            files[path].unlink(missing_ok=True)
        return hub.fetch(listing.commit, choice.files[path], again=True)

    return _Fetched(address, listing.commit, files, stated, choice.notes, again)


def _from_cache(address: HubAddress, note: Callable[[str], None]) -> _Fetched:
    listing = cached_listing(address)
    if listing is None:
        raise NotFoundError(
            f"{address} is not in the Hugging Face cache.",
            why="The Hub is not asked, because HF_HUB_OFFLINE is set.",
            hint=f"With a connection:  HF_HUB_OFFLINE=0 {address.command}",
        )
    try:
        choice = choose(listing.files, address)
    except AdapterHubError as error:
        error.why = f"{error.why} Only the cache was looked at (commit {short(listing.commit)}); it may not be whole."
        error.hint = f"With a connection:  HF_HUB_OFFLINE=0 {address.command}"
        raise
    newer = "" if address.revision == listing.commit else "; the Hub may have a newer one"
    note(
        f"taken from the Hugging Face cache, commit {short(listing.commit)}, with the files fetched so far{newer}"
    )
    files = {
        path: cached_place(address, listing.commit, whole) for path, whole in choice.files.items()
    }
    stated = _stated(choice.files, listing, note, "the cache doesn't say what it should be")
    return _Fetched(address, listing.commit, files, stated, choice.notes, None)


def _stated(
    files: Mapping[str, str], listing: Listing, note: Callable[[str], None], otherwise: str
) -> dict[str, str | None]:
    stated = {path: listing.files[whole] for path, whole in files.items()}
    for path, digest in stated.items():
        if digest is None:
            note(f"{path} couldn't be checked: {otherwise}")
    return stated


def _verify(stated: Mapping[str, str | None], path: str, copy: Staged) -> None:
    wanted = stated[path]
    if wanted is None:
        return
    found = git_id(copy.path, copy.size) if wanted.startswith(GIT_PREFIX) else copy.digest
    if found != wanted:
        raise _WrongBytesError(path, wanted, found)


def _told(wrong: _WrongBytesError, fetched: _Fetched) -> FormatError:
    if fetched.again is None:
        place = fetched.files[wrong.path].resolve()
        return FormatError(
            f"{wrong.path} of {fetched.pinned} has changed in the Hugging Face cache.",
            why=f"It should be {wrong.stated}, and is {wrong.found}. Nothing was stored.",
            hint=f"rm {place}   and then, with a connection:  HF_HUB_OFFLINE=0 {fetched.address.command}",
        )
    return FormatError(
        f"The Hub sends something else than it states for {wrong.path} of {fetched.pinned}.",
        why=f"It states {wrong.stated}, and sent {wrong.found}, also when asked again. Nothing was stored.",
        hint=f"Try later or from another network; if it stays so, tell its owner: {page(fetched.address)}/discussions",
    )
