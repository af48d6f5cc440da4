"""What follows from removing names, said before it is done: what becomes unreachable, what a collection would free, who uses it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from adapterhub.errors import StoreDamagedError
from adapterhub.names import Name
from adapterhub.store.catalogue.kinship import names_of
from adapterhub.store.leases import Lease
from adapterhub.store.store import Store
from adapterhub.words import counted, human_size, short, some

_PORT = re.compile(r"https?://[^\s/]*?(:\d+)\b")


@dataclass(frozen=True)
class Use:
    """Somebody who works with an adapter right now."""

    kind: str
    where: str
    """`:8000` of a server; what the lease says of others."""

    @property
    def words(self) -> str:
        if self.kind == "serve":
            return f"the server on {self.where}" if self.where.startswith(":") else "a server"
        return f"{_article(self.kind)} {self.where}".strip()


@dataclass(frozen=True)
class Removal:
    """What removing names does."""

    names: tuple[str, ...]
    lost: tuple[str, ...]
    """Adapters (short digests) that no other name leads to then."""
    frees: int
    """Bytes that a collection can free when its grace period is over: files that no other adapter has, of these and of
    the names' earlier releases."""
    kept: int
    """How many of `lost` stay all the same, because a release history or somebody who works with them leads there."""
    uses: tuple[Use, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The consequences, a sentence each."""
        told = []
        if self.lost:
            whose = "its" if len(self.names) == 1 else "their"
            who = some([f"@{digest}" for digest in self.lost])
            told.append(
                f"{counted(len(self.lost), 'adapter')} {_verb(self.lost, 'loses', 'lose')} {whose} last name: {who}"
            )
            if self.frees:
                told.append(
                    f"gc frees {human_size(self.frees)} later; until then undo brings it back"
                )
            elif self.kept == len(self.lost):
                told.append("gc frees nothing: rollback or a running command still needs it")
            else:
                told.append("gc frees nothing: other adapters have the same files")
        else:
            told.append("no adapter is lost: each has another name")
        if self.uses:
            told.append("used by " + some(list(dict.fromkeys(use.words for use in self.uses)), 4))
        return tuple(told)


def uses(store: Store) -> dict[str, tuple[Use, ...]]:
    """Digest -> who works with it now. A lease that can't be read is left out: `fsck` tells of it."""
    found: dict[str, list[Use]] = {}
    for path in store.leases.paths():
        with suppress(StoreDamagedError, OSError):
            lease = store.leases.read(path)
            if lease.stale() is None:
                for digest in lease.digests:
                    found.setdefault(digest, []).append(_use(lease))
    return {digest: tuple(dict.fromkeys(those)) for digest, those in found.items()}


def of_removing(store: Store, db: sqlite3.Connection, names: Sequence[Name]) -> Removal:
    """What removing `names` would do, by the catalogue `db`. Reads only."""
    going = {str(name) for name in names}
    digests = dict.fromkeys(
        digest
        for name in names
        for (digest,) in db.execute(
            "SELECT digest FROM names WHERE label = ? AND digest NOTNULL", (str(name),)
        )
    )
    lost = [digest for digest in digests if going.issuperset(names_of(db, digest))]
    used = uses(store)
    staying, earlier = _releases(store, db, going)
    needed = used.keys() | staying
    nameless = [digest for digest in earlier if going.issuperset(names_of(db, digest))]
    free = {digest for digest in (*lost, *nameless) if digest not in needed}
    return Removal(
        tuple(map(str, names)),
        tuple(map(short, lost)),
        _own_bytes(db, free),
        sum(digest in needed for digest in lost),
        tuple(use for digest in digests for use in used.get(digest, ())),
    )


def _releases(
    store: Store, db: sqlite3.Connection, going: Collection[str]
) -> tuple[set[str], set[str]]:
    """Earlier releases that a collection keeps for `rollback`: of the names that stay, and of those that go."""
    keep = store.settings.store.keep_releases
    if not keep:
        return set(), set()
    names = {label for (label,) in db.execute("SELECT label FROM names")}
    staying: set[str] = set()
    earlier: set[str] = set()
    for name, row in store.refs.journal.releases().items():
        if name in names:
            (earlier if name in going else staying).update(row[:-1][-keep:])
    return staying, earlier


def _own_bytes(db: sqlite3.Connection, mine: set[str]) -> int:
    """The size of the files that only these adapters have, each file once."""
    sizes: dict[str, int] = {}
    for digest in mine:
        for blob, size in db.execute(
            "SELECT f.digest, f.size FROM files f JOIN adapters a ON a.id = f.adapter WHERE a.digest = ?",
            (digest,),
        ):
            owners = db.execute(
                "SELECT a.digest FROM files f JOIN adapters a ON a.id = f.adapter WHERE f.digest = ? AND a.listed",
                (blob,),
            )
            if mine.issuperset(owner for (owner,) in owners):
                sizes[blob] = size
    return sum(sizes.values())


def _use(lease: Lease) -> Use:
    port = _PORT.search(lease.about)
    return Use(lease.kind, port[1] if lease.kind == "serve" and port else lease.about)


def _article(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}" if kind else "somebody"


def _verb(things: Sequence[object], one: str, many: str) -> str:
    return one if len(things) == 1 else many
