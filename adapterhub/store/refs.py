"""Refs and their journal: which name means which digest, and every change of that since the store was made.

A change is journalled first and the ref is written last, both durable; where the two disagree after a crash, the ref
is right, and the journal still knows both digests.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import AdapterHubError, ConflictError, NotFoundError, StoreDamagedError
from adapterhub.fsio import disk_errors, fsync_directory, make_directory, write_file
from adapterhub.names import Name, is_name_part, parse_name
from adapterhub.store.layout import NO_NAMESPACE, Layout
from adapterhub.store.locks import locked
from adapterhub.words import did_you_mean, short


@dataclass(frozen=True)
class Change:
    """One line of the journal. `before` and `after` are digests; None where the ref did not or does not exist."""

    time: str
    who: str
    op: str
    ref: str
    before: str | None
    after: str | None
    why: str


class Refs:
    """Reads and changes the refs of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def read(self, name: Name) -> str | None:
        """The digest `name` means, or None. StoreDamagedError when the file isn't one digest."""
        path = self._layout.ref(name)
        try:
            text = path.read_text("ascii").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            text = ""
        digits = text.removeprefix(DIGEST_PREFIX)
        if (
            not text.startswith(DIGEST_PREFIX)
            or len(digits) != 64
            or not set(digits) <= set("0123456789abcdef")
        ):
            raise StoreDamagedError(
                f"The ref {name} is damaged.",
                why=f"{path} doesn't hold a digest.",
                hint=f"`adapterhub log {name}` knows what it was; set it again: adapterhub tag @DIGEST {name} --move",
            )
        return text

    def names(self) -> list[Name]:
        """Every name, in order, whether or not its ref can be read. Files that systems leave behind are no names."""
        found = []
        for namespace in _entries(self._layout.refs):
            for name in _entries(namespace):
                for tag in _entries(name):
                    parts = (
                        "" if namespace.name == NO_NAMESPACE else namespace.name,
                        name.name,
                        tag.name,
                    )
                    if all(map(is_name_part, filter(None, parts))):
                        found.append(Name(*parts))
        return found

    def all(self) -> list[tuple[Name, str]]:
        """Every name and its digest, in order."""
        return [(name, digest) for name in self.names() if (digest := self.read(name)) is not None]

    def require(self, name: Name) -> str:
        """The digest `name` means; NotFoundError with the nearest names when there is none."""
        digest = self.read(name)
        if digest is None:
            known = [str(other) for other in self.names()]
            same_last = [other for other in known if parse_name(other).name == name.name]
            guess = (
                f"Did you mean {' or '.join(same_last[:3])}?"
                if same_last
                else did_you_mean(str(name), known)
            )
            raise NotFoundError(
                f"There is no adapter named {name}.",
                why=guess,
                hint="`adapterhub ls` shows all names."
                if known
                else "The store is empty: adapterhub add FOLDER",
            )
        return digest

    @contextmanager
    def changing(self) -> Iterator[Transaction]:
        """The right to change refs, for one process at a time."""
        make_directory(self._layout.journal.parent)
        with locked(self._layout.journal, exclusive=True):
            yield Transaction(self, self._layout)

    def journal(self) -> list[Change]:
        """Every change, oldest first. A torn last line (a crash while appending) is no change."""
        try:
            data = self._layout.journal.read_bytes()
        except FileNotFoundError:
            return []
        changes = []
        for line in data.split(b"\n")[:-1]:
            with suppress(msgspec.MsgspecError):
                changes.append(msgspec.json.decode(line, type=Change))
        return changes


class Transaction:
    """Changes made under the journal's lock."""

    def __init__(self, refs: Refs, layout: Layout) -> None:
        self._refs = refs
        self._layout = layout

    def set(self, name: Name, digest: str, *, op: str, why: str, move: bool) -> bool:
        """Points `name` at `digest`; False when it did already. ConflictError for another digest without `move`."""
        before = self.check(name, digest, move=move)
        if before == digest:
            return False
        with self._journalled(Change(now(), _who(), op, str(name), before, digest, why), name):
            write_file(self._layout.ref(name), f"{digest}\n".encode(), self._layout.tmp)
        return True

    def check(self, name: Name, digest: str, *, move: bool) -> str | None:
        """What `name` means now; ConflictError where `set` would refuse."""
        try:
            before = self._refs.read(name)
        except StoreDamagedError:
            if not move:
                raise
            before = None  # moving a damaged ref is how it is mended
        if before not in (None, digest) and not move:
            raise ConflictError(
                f"The name {name} is taken by another adapter ({short(before)}).",
                why=f"The new one is {short(digest)}.",
                hint=f"Choose another name, or move this one with --move (the old one stays as @{short(before)}).",
            )
        self._refuse_case_twin(name)
        return before

    def delete(self, name: Name, *, op: str, why: str) -> str:
        """Removes a ref and returns the digest it had."""
        before = self._refs.require(name)
        path = self._layout.ref(name)
        with self._journalled(Change(now(), _who(), op, str(name), before, None, why), name):
            path.unlink()
            fsync_directory(path.parent)
            for empty in (path.parent, path.parent.parent):
                with suppress(OSError):
                    empty.rmdir()
        return before

    def _refuse_case_twin(self, name: Name) -> None:
        """Two names that differ in case only would be one file on macOS and Windows."""
        folder = self._layout.refs
        for part in (name.namespace or NO_NAMESPACE, name.name, name.tag):
            for path in folder.iterdir() if folder.is_dir() else []:
                other = path.name
                if other != part and other.lower() == part.lower():
                    raise ConflictError(
                        f"{name} has the part '{part}', which differs from the existing '{other}' in case only.",
                        why="On some file systems those are the same name.",
                        hint="Choose another name with --name.",
                    )
            folder /= part

    @contextmanager
    def _journalled(self, change: Change, name: Name) -> Iterator[None]:
        """Journals `change`, then lets the block make it. If that fails or is interrupted, both are taken back.

        A crash in between leaves the line; then the ref is right, and the journal still knows both digests.
        """
        end = self._append(change)
        try:
            yield
        except BaseException:
            with suppress(AdapterHubError, OSError):
                self._restore(name, change.before)
            with suppress(OSError):
                os.truncate(self._layout.journal, end)
            raise

    def _restore(self, name: Name, before: str | None) -> None:
        if self._refs.read(name) == before:
            return
        if before is None:
            self._layout.ref(name).unlink(missing_ok=True)
        else:
            write_file(self._layout.ref(name), f"{before}\n".encode(), self._layout.tmp)

    def _append(self, change: Change) -> int:
        """Adds a line and returns the length the journal had."""
        # Folder names on Linux may be any bytes; the journal is UTF-8.
        line = json.dumps(asdict(change), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        path = self._layout.journal
        with disk_errors(path), path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                torn = (
                    file.read(1) != b"\n"
                )  # a crash left half a line: close it, so that this one can be read
                line = b"\n" + line if torn else line
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    os.truncate(path, end)
                raise
        fsync_directory(path.parent)
        return end


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where it is gone (another process removed the last ref in it)."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def now(timespec: str = "seconds") -> str:
    """The time in UTC as ISO 8601: whole seconds in the journal, finer where an order depends on it."""
    return datetime.now(UTC).isoformat(timespec=timespec)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
