"""What has changed in the store since the catalogue was last brought up to date. Cheap, and nothing is written.

The journals say what has changed since the mark; the time stamps of a few hundred folders say what came or went
without a line (a restored backup, a deleted file). A line may be ahead of its file, so its name stays `waiting`, to be
read again, until the journal says how the operation ended.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapterhub.canonical import DIGEST_PREFIX, is_digest
from adapterhub.errors import UsageError
from adapterhub.names import Name, parse_name
from adapterhub.store.catalogue.logs import Mark, News, read_news
from adapterhub.store.layout import NO_NAMESPACE, Layout

RACY_SECONDS = 2.0
"""A folder that changed more recently is listed again next time: another change may have left the same time stamp."""
FORGET_SECONDS = 86400.0
"""How long a line is waited for that nothing else will close."""
REFS, ATTESTED = "refs", "attestations"
RACY = -1
_CLOSING = ("done", "cancel")
_HEXADECIMAL = frozenset("0123456789abcdef")


class Changes:
    """What to read again. Marks and time stamps are taken before the files are, so what happens later is seen next time."""

    def __init__(self, db: sqlite3.Connection, layout: Layout) -> None:
        self._db = db
        self._layout = layout
        self._stamps: dict[str, int] = dict(db.execute("SELECT path, stamp FROM folders"))
        known = db.execute("SELECT log, what, operation, since FROM pending").fetchall()
        self.waiting: dict[tuple[str, str], tuple[str, float]] = {
            (log, what): (operation, since) for log, what, operation, since in known
        }
        """Lines that may be ahead of their files: (log, name or digest) -> (operation or subject, since)."""
        self.marks: dict[str, Mark] = {}
        self.stamps: dict[str, int | None] = {}
        """Folders whose recorded stamp is to change; None where the folder is gone."""
        self.names: set[Name] = set()
        """Whose refs are to be read."""
        self.subjects: set[str] = set()
        """Adapters of which something is to be read again."""
        self.came: set[str] = set()
        """Manifests that are on the shelves now, and weren't."""
        self.went: set[str] = set()
        self.touched: dict[str, str] = {}
        """When new lines of the journal spoke of an adapter, by its digest."""
        self.afresh = False
        """Whether the journal isn't the one the catalogue was made from: then every ref is read."""

        before = dict(self.waiting)
        self._look_at_journal()
        self._look_at_attested()
        self._look_at_refs()
        self._look_at_manifests()
        self.names |= self._known_names(
            "SELECT namespace, name, tag FROM names WHERE error NOTNULL"
        )
        self.subjects |= self.digests("SELECT digest FROM adapters WHERE again")
        self.waits_anew = self.waiting != before
        reading = self.names or self.subjects or self.came or self.went
        self.any = bool(self.marks or self.stamps or self.waits_anew or reading)

    def digests(self, query: str, *values: str) -> set[str]:
        """The first column of what `query` finds."""
        return {digest for (digest,) in self._db.execute(query, values)}

    # The journals

    def _look_at_journal(self) -> None:
        news = self._news(REFS, self._layout.journal)
        lines = news.lines if news is not None else []
        if news is not None and news.replaced:
            self.afresh = True
            self._forget(REFS)
        closed = {str(line.get("about")) for line in lines if line.get("op") in _CLOSING}
        now = time.time()
        moved = False
        for (log, what), (operation, since) in list(self.waiting.items()):
            if log != REFS:
                continue
            moved |= self._read(what) is None
            if operation in closed or (not operation and now - since > FORGET_SECONDS):
                del self.waiting[log, what]
        for line in lines:
            moved |= self._take_line(line, closed, now)
        if moved and not self.afresh:
            self._count_attestations()

    def _take_line(self, line: dict[str, Any], closed: set[str], now: float) -> bool:
        """Notes what a line speaks of. True where that is the trash."""
        for digest in (line.get("before"), line.get("after")):
            if is_digest(digest):
                self.touched[digest] = max(self.touched.get(digest, ""), str(line.get("time", "")))
        if line.get("op") in _CLOSING:
            return False
        name = self._read(line.get("ref"))
        what = str(line.get("about")) if name is None else str(name)
        operation = str(line.get("id") or "")
        if operation in closed or (
            not operation and name and self._says(name) == line.get("after")
        ):
            self.waiting.pop((REFS, what), None)
        else:
            self.waiting[REFS, what] = (operation, now)
        return name is None

    def _look_at_attested(self) -> None:
        news = self._news(ATTESTED, self._layout.attested)
        now = time.time()
        if news is not None and news.replaced:
            self._forget(ATTESTED)
            self.subjects |= self.digests("SELECT digest FROM adapters")
        for line in news.lines if news is not None else ():
            subject, digest = line.get("subject"), line.get("digest")
            if is_digest(subject) and is_digest(digest):
                self.waiting[ATTESTED, digest] = (subject, now)
        for (log, digest), (subject, since) in list(self.waiting.items()):
            if log != ATTESTED:
                continue
            path = self._layout.attestations(subject) / digest.removeprefix(DIGEST_PREFIX)
            there = path.exists()
            if there:
                self.subjects.add(subject)
            if there or now - since > FORGET_SECONDS:
                del self.waiting[log, digest]

    def _count_attestations(self) -> None:
        """After a collection or its undoing: has every adapter as many attestations as it had?"""
        for digest, told in self._db.execute("SELECT digest, told FROM adapters"):
            if len(_entries(self._layout.attestations(digest))) != told:
                self.subjects.add(digest)

    def _news(self, log: str, path: Path) -> News | None:
        row = self._db.execute("SELECT offset, tail FROM marks WHERE log = ?", (log,)).fetchone()
        news = read_news(path, Mark(*row) if row else None)
        if news is not None:
            self.marks[log] = news.mark
        return news

    def _forget(self, log: str) -> None:
        self.waiting = {key: value for key, value in self.waiting.items() if key[0] != log}

    def _read(self, text: object) -> Name | None:
        name = _name(text)
        if name is not None:
            self.names.add(name)
        return name

    def _says(self, name: Name) -> str | None:
        try:
            return self._layout.ref(name).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None

    # The folders, by their paths in the store

    def _look_at_refs(self) -> None:
        if self.afresh:
            from adapterhub.store.refs import Refs

            self.names |= set(Refs(self._layout).names())
            self.names |= self._known_names("SELECT namespace, name, tag FROM names")
        for folder in self._changed_in(self._layout.refs):
            if self.afresh:
                continue
            part = folder.rpartition("/")[2]
            namespace = "" if part == NO_NAMESPACE else part
            there = set(self._listed(folder))
            known = self._known_names(
                "SELECT namespace, name, tag FROM names WHERE namespace = ?", namespace
            )
            self.names |= {name for name in known if name.name not in there}
            for new in there - {name.name for name in known}:
                for tag in self._listed(f"{folder}/{new}"):
                    self._read(f"{namespace}/{new}:{tag}" if namespace else f"{new}:{tag}")

    def _look_at_manifests(self) -> None:
        for shelf in self._changed_in(self._layout.manifests):
            there = {DIGEST_PREFIX + entry for entry in self._listed(shelf) if _is_digest(entry)}
            first = DIGEST_PREFIX + shelf.rpartition("/")[2]
            known = self.digests(
                "SELECT digest FROM adapters WHERE listed AND digest >= ? AND digest < ?",
                first,
                first + "g",  # behind every digest that begins so
            )
            self.came |= there - known
            self.went |= known - there

    def _listed(self, folder: str) -> list[str]:
        return [path.name for path in _entries(self._layout.store / folder)]

    def _changed_in(self, root: Path) -> list[str]:
        """The folders in `root` that may not be as they were when they were last listed. Their new stamps are noted."""
        above = root.relative_to(self._layout.store).as_posix()
        known = {f: stamp for f, stamp in self._stamps.items() if f.rpartition("/")[0] == above}
        rested = (time.time() - RACY_SECONDS) * 1e9
        changed = []
        for name, stamp in _stamps_in(root):
            folder = f"{above}/{name}"
            before = known.pop(folder, None)
            if stamp == before:
                continue
            changed.append(folder)
            now = stamp if stamp < rested else RACY
            if now != before:
                self.stamps[folder] = now
        self.stamps |= dict.fromkeys(known)
        return [*changed, *known]

    def _known_names(self, query: str, *values: str) -> set[Name]:
        return {Name(*row) for row in self._db.execute(query, values)}


def _name(text: object) -> Name | None:
    """A name from a line or a folder; None for what is none."""
    if not isinstance(text, str) or not text:
        return None
    try:
        return parse_name(text)
    except UsageError:
        return None


def _is_digest(entry: str) -> bool:
    return len(entry) == 64 and set(entry) <= _HEXADECIMAL


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # gone, or no folder
        return []


def _stamps_in(root: Path) -> Iterator[tuple[str, int]]:
    """The folders in `root` and when each was last changed (in ns)."""
    with suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            with suppress(OSError):  # gone since
                if entry.name.isascii() and entry.is_dir():  # what we make is
                    yield entry.name, entry.stat().st_mtime_ns
