"""Refs: which name means which digest, and the one way to change that.

A change is journalled first and the refs are written last, all durable. An operation on several names is done for all
of them or for none.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.canonical import is_digest
from adapterhub.errors import AdapterHubError, ConflictError, NotFoundError, StoreDamagedError
from adapterhub.fsio import flush_names, fsync_directory, make_directory, write_file
from adapterhub.names import Name, is_name_part, parse_name
from adapterhub.store.journal import CANCEL, DONE, Change, Journal, Operation, new_id, now
from adapterhub.store.layout import NO_NAMESPACE, Layout
from adapterhub.store.locks import locked
from adapterhub.words import did_you_mean, short


@dataclass(frozen=True)
class Move:
    """A name, what it means, and what it shall mean; None is no such name."""

    name: Name
    before: str | None
    after: str | None


class Refs:
    """Reads and changes the refs of one store."""

    def __init__(self, layout: Layout, gate: Callable[[Name, str], None] = lambda *_: None) -> None:
        """`gate(name, digest)` is called before `name` may mean another adapter; it raises where it may not."""
        self._layout = layout
        self.gate = gate
        self.journal = Journal(layout)

    def read(self, name: Name) -> str | None:
        """The digest `name` means, or None. StoreDamagedError when the file isn't one digest."""
        path = self._layout.ref(name)
        try:
            text = path.read_text("ascii").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (UnicodeDecodeError, IsADirectoryError):
            text = ""
        if not is_digest(text):
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
            names = self.names()
            known = list(map(str, names))
            same_last = [str(other) for other in names if other.name == name.name]
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
            transaction = Transaction(self, self._layout, self.journal)
            transaction.take_back_unfinished()
            yield transaction

    def now(self, name: Name) -> str | None:
        """As `read`, but "damaged" where that can't be read: it is none of the digests it may be compared with."""
        try:
            return self.read(name)
        except StoreDamagedError:
            return "damaged"

    def half_done(self) -> Operation | None:
        """The operation that the next writer will take back: it has no end, and not all of its refs have changed."""
        operation = self.journal.unfinished()
        if operation is None or all(
            self.now(parse_name(change.ref)) == change.after for change in operation.refs
        ):
            return None
        return operation

    def recorded(self) -> dict[str, str | None]:
        """What each ref should be by the journal; what it is, for those of an operation that was cut short."""
        unfinished = self.journal.unfinished()
        said: dict[str, str | None] = {}
        for operation in self.journal.operations():
            for change in operation.refs:
                said[change.ref] = change.after
        for change in unfinished.refs if unfinished else ():
            with suppress(StoreDamagedError):  # told as such, with what it was to become
                said[change.ref] = self.read(parse_name(change.ref))
        return said

    def lost(self) -> dict[Name, str]:
        """The names that should be there by the journal and aren't, with what they meant."""
        there = {str(name) for name in self.names()}
        return {
            parse_name(ref): said
            for ref, said in self.recorded().items()
            if said is not None and ref not in there
        }

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Journal and refs agree while the block runs, as far as they ever do: nobody is between the two."""
        with (
            locked(self._layout.journal, exclusive=False)
            if self._layout.journal.exists()
            else nullcontext()
        ):
            yield


class Transaction:
    """The right to change refs, for one process at a time. Every change is one operation of the journal."""

    def __init__(self, refs: Refs, layout: Layout, journal: Journal) -> None:
        self._refs = refs
        self._layout = layout
        self._journal = journal

    def set(
        self, name: Name, digest: str, *, op: str, why: str, move: bool, gated: bool = True
    ) -> bool:
        """Points `name` at `digest`; False when it did already.

        ConflictError for another digest without `move`, GateError where the name asks for more than is known of it.
        """
        before = self.check(name, digest, move=move, gated=gated)
        if before == digest:
            return False
        self.commit([Move(name, before, digest)], op=op, why=why)
        return True

    def check(self, name: Name, digest: str, *, move: bool, gated: bool = True) -> str | None:
        """What `name` means now; raises where `set` would."""
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
        if gated and before != digest:
            self._refs.gate(name, digest)
        return before

    def commit(
        self, moves: Sequence[Move], *, op: str, why: str, abouts: Sequence[str] = ()
    ) -> None:
        """Makes all the moves, or none. If one fails or is interrupted, what was done of them is taken back.

        A crash in between leaves lines without `done`, by which the next writer sees it and takes it back too.

        Args:
            abouts: what else the operation does, a line each: "sweep ID", "restore ID".
        """
        if not moves and not abouts:
            abouts = ("",)  # an undo that finds nothing to change can be undone all the same
        stamp, who, operation = now(), _who(), new_id()
        lines = [
            Change(stamp, who, op, str(move.name), move.before, move.after, why, operation)
            for move in moves
        ]
        lines += [Change(stamp, who, op, "", None, None, why, operation, about) for about in abouts]
        end = self._journal.append(lines)
        try:
            for move in moves:
                self._put(move.name, move.after)
            self._close(DONE, operation)
        except BaseException:
            with suppress(AdapterHubError, OSError):
                for move in moves:
                    self._put(move.name, move.before)
                self._journal.truncate(end)
            raise

    def take_back_unfinished(self) -> None:
        """Ends an operation that a crash cut short: it is done if all its refs have changed, else nothing of it is."""
        operation = self._journal.unfinished()
        if operation is None:
            return
        moves = [
            Move(parse_name(change.ref), change.before, change.after) for change in operation.refs
        ]
        half_done = self._refs.half_done() is not None
        for move in moves if half_done else ():
            if self._refs.now(move.name) == move.after:
                self._put(move.name, move.before)
        self._flush(moves)
        self._close(CANCEL if half_done else DONE, operation.id)

    def _flush(self, moves: Sequence[Move]) -> None:
        """Makes durable what the refs say now: whoever wrote them may have died before."""
        for move in moves:
            folder = self._layout.ref(move.name).parent
            while not folder.is_dir():
                folder = folder.parent
            flush_names(folder, self._layout.store)

    def _close(self, op: str, operation: str) -> None:
        """Says how an operation ended. Losing this line loses nothing: the next writer comes to the same end."""
        self._journal.append(
            [Change(now(), _who(), op, "", None, None, "", new_id(), operation)], durable=False
        )

    def _put(self, name: Name, digest: str | None) -> None:
        """Makes the ref say `digest`, or removes it."""
        path = self._layout.ref(name)
        if self._refs.now(name) == digest:
            return
        if digest is not None:
            write_file(path, f"{digest}\n".encode(), self._layout.tmp)
            return
        path.unlink(missing_ok=True)
        fsync_directory(path.parent)
        for empty in (path.parent, path.parent.parent):
            try:
                empty.rmdir()
            except OSError:  # other names are in it
                break
            fsync_directory(empty.parent)

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
                        hint="Choose another name.",
                    )
            folder /= part


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where it is gone (another process removed the last ref in it)."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
