"""What the Hugging Face cache holds of a repository, read without asking anybody.

The layout is huggingface_hub's: refs/<revision> names a commit, snapshots/<commit>/ is that commit's folder, and each
file there is a link to blobs/<name>, whose name is the sha256 of a large file's bytes or git's id of a small one.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from adapterhub.fsio import write_file
from adapterhub.remote.address import HubAddress
from adapterhub.remote.fetching import Listing, digest_named, is_commit


def cached_listing(address: HubAddress) -> Listing | None:
    """The files of the address's revision that are in the cache, with the digests their blobs are named by; None if there are none."""
    commit = address.revision or "main"
    if not is_commit(commit):
        try:
            commit = (_root(address) / "refs" / commit).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
    snapshot = _root(address) / "snapshots" / commit
    if not is_commit(commit) or not snapshot.is_dir():
        return None
    files = {
        path.relative_to(snapshot).as_posix(): _named(path)
        for path in sorted(snapshot.rglob("*"))
        if path.is_file()
    }
    return Listing(commit, files)


def cached_place(address: HubAddress, commit: str, path: str) -> Path:
    """Where the file lies, or would lie, in the cache."""
    return _root(address) / "snapshots" / commit / path


def remember_revision(address: HubAddress, commit: str) -> None:
    """Records which commit the address's revision was, so that it is found without a connection. A read-only cache stays as it is."""
    revision = address.revision or "main"
    if not is_commit(revision):
        with suppress(OSError):
            write_file(_root(address) / "refs" / revision, commit.encode(), _root(address))


def _root(address: HubAddress) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=address.repo, repo_type=address.kind)
    return Path(constants.HF_HUB_CACHE).expanduser() / folder


def _named(path: Path) -> str | None:
    """One link only: a blob that repositories share is itself a link, named by another kind of digest."""
    return digest_named(path.readlink().name) if path.is_symlink() else None
