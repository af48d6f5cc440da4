"""What a disk holds after a power cut, worked out from what a run did and what it flushed.

A file holds what it held at its last fsync, or more, or rubbish behind that; a name is where it was at the last fsync of
its folder, or has already moved. Nothing else is promised: the order in which un-flushed changes reach the disk is free,
as long as a rename happens whole and nothing lies in a folder that isn't there.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.crash.events import Record

Fate = Literal["kept", "cut", "part", "zeros", "rubbish"]
"""What becomes of bytes that were written and not flushed: all there, none, some, or the length without the bytes."""
RUBBISH = b"\xa5"


@dataclass(frozen=True)
class Entry:
    """A file (`data`), a link (`target`) or a folder (neither)."""

    mode: int
    data: bytes | None = None
    target: str | None = None


State = dict[str, Entry]
"""Everything below a folder by relative path; a folder comes before what is in it."""


def read_state(root: Path, scratch: Sequence[str] = ()) -> State:
    """What lies below `root` now, without the scratch folders."""
    state: State = {}

    def walk(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            name = path.relative_to(root).as_posix()
            if name in scratch:
                continue
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink():
                state[name] = Entry(mode, target=str(path.readlink()))
            elif path.is_dir():
                state[name] = Entry(mode)
                walk(path)
            else:
                state[name] = Entry(mode, data=path.read_bytes())

    walk(root)
    return state


def write_state(root: Path, state: State) -> None:
    """Makes `state` below the empty folder `root`."""
    for name, entry in state.items():
        path = root / name
        if entry.data is not None:
            path.write_bytes(entry.data)
        elif entry.target is not None:
            path.symlink_to(entry.target)
            continue
        else:
            path.mkdir()
        path.chmod(entry.mode)


@dataclass(eq=False)
class _Inode:
    """A file, a link or a folder, whatever its names. `flushed` is None for a file that never was; `number` grows."""

    number: int
    mode: int
    flushed: bytes | None = None
    target: str | None = None
    is_folder: bool = False
    flushed_names: dict[str, _Inode] = field(default_factory=dict)
    names: dict[str, _Inode] = field(default_factory=dict)


@dataclass(eq=False)
class _Change:
    """Names set or removed (None) in folders, all or none. `first` is another without which this one can't happen."""

    edits: tuple[tuple[_Inode, str, _Inode | None, _Inode | None], ...]  # folder, name, new, old
    first: _Change | None = None
    flushed: bool = False

    @property
    def removed_folder(self) -> _Inode | None:
        """The folder that this removes, if it does nothing else."""
        *others, (_, _, new, old) = self.edits
        return old if not others and new is None and old is not None and old.is_folder else None


class Disk:
    """A disk that begins with `state`, all of it flushed, and takes in what runs did to it."""

    def __init__(self, state: State) -> None:
        self._root = _Inode(0, 0o755, is_folder=True)
        self._made = 0
        self._changes: list[_Change] = []
        for name, entry in state.items():
            folder, last = self._parent(name)
            inode = self._new(entry.mode, entry.data, entry.target, _is_folder(entry))
            folder.names[last] = folder.flushed_names[last] = inode

    def copy(self) -> Disk:
        """Another disk that holds the same, flushed and not."""
        return deepcopy(self)

    def take_in(self, log: Sequence[Record]) -> None:
        """Repeats what a run did."""
        for what, path, other in log:
            if what == "sync":
                self._at(path).flushed = other
            elif what == "syncdir":
                self._flush_names(self._at(path))
            elif what in ("create", "mkdir", "symlink"):
                folder, name = self._parent(path)
                new = self._new(0o644, None, other, what == "mkdir")
                self._change((folder, name, new, None))
            elif what in ("remove", "rmdir"):
                folder, name = self._parent(path)
                self._change((folder, name, None, folder.names[name]))
            elif what == "link":
                folder, name = self._parent(other)
                self._change((folder, name, self._at(path), None))
            elif what == "rename":
                self._rename(path, other)
            else:
                raise ValueError(what)

    def cut(
        self,
        now: State,
        *,
        lost: float,
        fates: Sequence[Fate],
        draw: random.Random,
    ) -> State:
        """What is there after a power cut.

        Args:
            now: what the disk seemed to hold right before.
            lost: the share, from 0 to 1, of un-flushed changes of names that didn't reach the disk.
            fates: what may become of a file's un-flushed bytes.
            draw: chooses which, and what.
        """
        seeming = dict(self._walk(self._root, lambda folder: folder.names))
        if seeming.keys() != now.keys():
            raise AssertionError(
                f"the log doesn't explain {sorted(seeming.keys() ^ now.keys())}: was it made past Python?"
            )
        written: dict[_Inode, Entry] = {seeming[path]: entry for path, entry in now.items()}
        names: dict[_Inode, dict[str, _Inode]] = {}

        def there(folder: _Inode) -> dict[str, _Inode]:
            return names.setdefault(folder, dict(folder.flushed_names))

        done: set[_Change] = set()
        for change in self._changes:
            if change.first is not None and change.first not in done:
                continue
            if not change.flushed and draw.random() < lost:
                continue
            if change.removed_folder is not None and there(change.removed_folder):
                continue  # a folder isn't removed while something is in it
            done.add(change)
            for folder, name, new, old in change.edits:
                if new is not None:
                    there(folder)[name] = new
                elif there(folder).get(name) is old:
                    del there(folder)[name]
        left = self._walk(self._root, there)
        # In the order in which they came to be: names of temporary files differ from run to run.
        bytes_of = {
            inode: _after(inode.flushed or b"", written.get(inode), fates, draw)
            for inode in sorted({inode for _, inode in left}, key=lambda inode: inode.number)
            if not inode.is_folder and inode.target is None
        }
        return {
            path: Entry(
                written[inode].mode if inode in written else inode.mode,
                bytes_of.get(inode),
                inode.target,
            )
            for path, inode in left
        }

    def _new(self, mode: int, data: bytes | None, target: str | None, is_folder: bool) -> _Inode:
        self._made += 1
        return _Inode(self._made, mode, data, target, is_folder)

    def _rename(self, path: str, to: str) -> None:
        source, old_name = self._parent(path)
        target, new_name = self._parent(to)
        inode = source.names[old_name]
        arrives = (target, new_name, inode, target.names.get(new_name))
        leaves = (source, old_name, None, inode)
        if source is target or inode.is_folder:
            self._change(arrives, leaves)
        else:  # two folders, two places on the disk; the file is never in neither
            self._change(leaves, first=self._change(arrives))

    def _change(
        self, *edits: tuple[_Inode, str, _Inode | None, _Inode | None], first: _Change | None = None
    ) -> _Change:
        for folder, name, new, _ in edits:
            if new is None:
                del folder.names[name]
            else:
                folder.names[name] = new
        change = _Change(edits, first)
        self._changes.append(change)
        return change

    def _flush_names(self, folder: _Inode) -> None:
        for change in self._changes:
            if any(edit[0] is folder for edit in change.edits):
                change.flushed = True
                if change.first is not None:
                    change.first.flushed = True

    def _at(self, path: str) -> _Inode:
        if path == ".":
            return self._root
        folder, name = self._parent(path)
        return folder.names[name]

    def _parent(self, path: str) -> tuple[_Inode, str]:
        *folders, name = path.split("/")
        inode = self._root
        for part in folders:
            inode = inode.names[part]
        return inode, name

    @staticmethod
    def _walk(
        folder: _Inode, names: Callable[[_Inode], dict[str, _Inode]], prefix: str = ""
    ) -> list[tuple[str, _Inode]]:
        found = []
        for name, inode in sorted(names(folder).items()):
            found.append((prefix + name, inode))
            if inode.is_folder:
                found += Disk._walk(inode, names, f"{prefix}{name}/")
        return found


def _is_folder(entry: Entry) -> bool:
    return entry.data is None and entry.target is None


def _after(
    flushed: bytes, written: Entry | None, fates: Sequence[Fate], draw: random.Random
) -> bytes:
    """What a file holds whose last bytes were not flushed, or that was removed before (`written` is None)."""
    if written is None or written.data is None or written.data == flushed:
        return flushed
    data, fate = written.data, draw.choice(fates)
    if fate == "kept":
        return data
    if fate == "cut":
        return flushed
    same = 0
    while same < min(len(flushed), len(data)) and flushed[same] == data[same]:
        same += 1
    if fate == "part":  # where a reader could be misled: right before and behind the end of a line
        ends = [at for at in range(same, len(data)) if data[at] == ord("\n")]
        return data[: draw.choice([draw.randint(same, len(data)), *ends, *(at + 1 for at in ends)])]
    return data[:same] + (b"\0" if fate == "zeros" else RUBBISH) * (len(data) - same)
