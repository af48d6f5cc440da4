"""Collecting garbage: what no name, lease or recent change leads to goes into the trash.

Marking and sweeping happen under the store's exclusive lock, so nothing can come to be needed in between. What is
younger than the grace period is spared all the same: on a file system whose locks lie, that costs space and no data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX, is_digest
from adapterhub.errors import AdapterHubError, NotFoundError, StoreDamagedError, UnsupportedError
from adapterhub.fsio import remove
from adapterhub.manifest import Manifest
from adapterhub.settings import DAY
from adapterhub.store.journal import SWEEP
from adapterhub.store.store import Store
from adapterhub.store.trash import Trash
from adapterhub.words import counted, human_size, some

TEMPORARY_SECONDS = DAY
"""A temporary file older than this belongs to nobody, even where locks can't be trusted."""


@dataclass(frozen=True)
class Item:
    """Something in the store and why it goes or stays. `size` counts bytes that nothing else shares."""

    kind: str
    digest: str
    path: Path
    size: int
    why: str


@dataclass
class Plan:
    """What a collection takes (`garbage`), what it spares although no name leads there, and what it deletes for good."""

    garbage: list[Item] = field(default_factory=list)
    spared: list[Item] = field(default_factory=list)
    temporary: list[Item] = field(default_factory=list)
    expired: list[Item] = field(default_factory=list)

    @property
    def deleted(self) -> list[Item]:
        """What is gone for good afterwards."""
        return [*self.temporary, *self.expired]


@dataclass(frozen=True)
class Collected:
    """What a collection did. `trash` is the folder's id, None where there was no garbage."""

    plan: Plan
    trash: str | None


def collect(store: Store, *, grace: float, trash_grace: float) -> Collected:
    """Moves the garbage into a new trash folder, and deletes trash and temporary files whose time is over.

    Args:
        grace: seconds for which garbage is spared, and for which the journal protects what it names.
        trash_grace: seconds for which the trash keeps what it has.

    Raises StoreDamagedError where something can't be read that may lead to other things; nothing is touched then.
    """
    trash = Trash(store.layout)
    with store.alone():
        with (
            store.refs.changing()
        ):  # what a crash left half done is ended before anything is judged
            pass
        _bring_back(store, trash)
        plan = make_plan(store, grace=grace, trash_grace=trash_grace)
        name = None
        if plan.garbage:
            paths = [item.path for item in plan.garbage]
            name = trash.new(paths, time.time())
            with store.refs.changing() as change:
                size = human_size(sum(item.size for item in plan.garbage))
                why = f"gc of {counted(len(paths), 'object')}, {size}"
                change.commit([], op="gc", why=why, abouts=[f"{SWEEP} {name}"])
            trash.take(name, paths)
        for item in plan.temporary:
            remove(item.path)
        for item in plan.expired:
            trash.delete(item.digest)
    return Collected(plan, name)


def make_plan(store: Store, *, grace: float, trash_grace: float) -> Plan:
    """What `collect` would do now. Reads only."""
    now = time.time()
    manifests = _manifests(store)
    roots = {**_recent(store, now - grace), **reachable(store)}
    swept = _in_trash(store, roots.keys() - manifests.keys())
    plan = Plan()
    young = f"it is younger than {_period(grace)}"

    def judge(item: Item) -> bool:
        """Puts an item nobody needs where it belongs. False when it is spared for its youth."""
        old = now - _modified(item.path, now) >= grace
        if old:
            plan.garbage.append(item)
        else:
            plan.spared.append(replace(item, why=young))
        return old

    kept = set(roots)
    for digest, manifest in manifests.items():
        path = store.layout.manifest(digest)
        if digest not in roots:
            item = Item(
                "manifest", digest, path, _size(path), "no name, lease or recent change leads to it"
            )
            if not judge(item):
                kept.add(digest)
        elif roots[digest]:
            plan.spared.append(Item("adapter", digest, path, manifest.size, roots[digest]))
    leading = [*swept, *(manifests[digest] for digest in kept & manifests.keys())]
    needed = {entry.digest for manifest in leading for entry in manifest.files}
    owned = {entry.digest for manifest in manifests.values() for entry in manifest.files}
    for digest, path in shelved(store.layout.blobs):
        if digest not in needed:
            why = "only garbage has this file" if digest in owned else "no adapter has this file"
            judge(Item("blob", digest, path, _size(path), why))
    for path in attestation_files(store):
        subject = DIGEST_PREFIX + path.parent.name
        if subject not in kept:
            why = "its adapter is garbage" if subject in manifests else "its adapter is gone"
            judge(Item("attestation", subject, path, _size(path), why))
    for path in inside(store.layout.views):
        subject = DIGEST_PREFIX + path.name
        if subject not in kept and not path.name.startswith("."):
            judge(Item("view", subject, path, _size(path), "its adapter is garbage or gone"))
    for path in temporary_files(store):
        if now - _modified(path, now) > min(TEMPORARY_SECONDS, grace):
            why = "a process that was killed left it"
            plan.temporary.append(Item("temporary file", "", path, _size(path), why))
    trash = Trash(store.layout)
    why = f"in the trash for more than {_period(trash_grace)}"
    for name in trash.ids():
        if trash.age(name, now) >= trash_grace:
            plan.expired.append(
                Item("trash", name, store.layout.trash / name, trash.size(name), why)
            )
    return plan


def still_garbage(store: Store, paths: Sequence[Path]) -> list[Path]:
    """Those of `paths` that nothing leads to, however young, nor belong to a manifest that isn't among them.

    Raises StoreDamagedError as `collect` does.
    """
    plan = make_plan(store, grace=0, trash_grace=math.inf)
    going = {item.path for item in plan.garbage}.intersection(paths)
    for digest, path in shelved(store.layout.manifests):
        if path not in going:
            going -= {store.layout.blob(entry.digest) for entry in store.manifest(digest).files}
            going -= {store.layout.view(digest), *inside(store.layout.attestations(digest))}
    return [path for path in paths if path in going]


def reachable(store: Store) -> dict[str, str]:
    """Every digest that a name, a live lease or the release history leads to, and why it is kept; "" for names.

    Raises StoreDamagedError where one of those can't be read.
    """
    names = store.refs.all()
    keep = store.settings.store.keep_releases
    rows = store.refs.journal.releases()
    found = {
        digest: f"an earlier release of {name}, for rollback"
        for name, _ in names
        for digest in rows.get(str(name), [])[:-1][-keep or None :]
        if keep
    }
    for lease in store.leases.live():
        found.update(dict.fromkeys(lease.digests, f"in use: {lease.about}"))
    found.update({digest: "" for _, digest in names})
    return found


def _recent(store: Store, since: float) -> dict[str, str]:
    """What the journal names since then, which `undo` needs, and what an operation that a crash cut short goes back to."""
    journal = store.refs.journal
    recent = [
        operation
        for operation in journal.operations()
        if datetime.fromisoformat(operation.time).timestamp() >= since
    ]
    unfinished = journal.unfinished()
    return {
        digest: f"undo may need it ({operation.op} {change.ref})"
        for operation in [*([unfinished] if unfinished else []), *recent]
        for change in operation.refs
        for digest in (change.before, change.after)
        if digest is not None
    }


def _manifests(store: Store) -> dict[str, Manifest]:
    """Every manifest. StoreDamagedError where anything that leads to other things can't be read: then nothing is garbage."""
    found, wrong = {}, []
    for digest, path in shelved(store.layout.manifests):
        try:
            found[digest] = store.manifest(digest)
        except UnsupportedError:  # of a later version, which says by itself what to do
            raise
        except AdapterHubError as error:
            wrong.append(f"{path}: {error.what}")
    lines = store.refs.journal.damaged()
    if lines:
        wrong.append(f"{store.layout.journal}: line {some([str(line) for line in lines])}")
    for name in store.refs.names():
        try:
            meant = store.refs.read(name)
            if meant is not None and meant not in found:
                store.manifest(meant)
        except AdapterHubError as error:
            wrong.append(f"{name}: {error.what} {error.why}")
    lost = store.refs.lost()
    if lost:  # beside a writer, a dry run may have come between the journal and a ref
        again = store.refs.lost()
        lost = {name: digest for name, digest in lost.items() if again.get(name) == digest}
    wrong += [f"the name {name} is gone, and nobody removed it" for name in lost]
    for path in store.leases.paths():
        try:
            store.leases.read(path)
        except StoreDamagedError as error:
            wrong.append(f"{path}: {error.what}")
        except FileNotFoundError:  # it has just ended
            continue
    if wrong:
        raise StoreDamagedError(
            "Nothing was collected, because what leads to other things can't be read.",
            why=some(list(dict.fromkeys(wrong)), 5) + ".",
            hint="Mend it, or set it aside: adapterhub fsck --repair",
        )
    return found


def _bring_back(store: Store, trash: Trash) -> None:
    """Gives back what is needed again. Where locks lie, a name may have been given to it while it was swept."""
    if trash.ids():
        for digest in reachable(store):
            with suppress(NotFoundError):  # for a check to find
                trash.restore(digest)


def _in_trash(store: Store, digests: Iterable[str]) -> list[Manifest]:
    """The manifests of those of these adapters that lie in the trash; a collection gives them back first."""
    found = []
    for digest in digests:
        with suppress(StoreDamagedError):
            found.append(store.manifest(digest))
    return found


def shelved(root: Path) -> Iterator[tuple[str, Path]]:
    """The digest and path of everything on the shelves below `root`. What lies on a wrong shelf is nowhere."""
    for shelf in inside(root):
        for path in inside(shelf):
            digest = DIGEST_PREFIX + path.name
            if is_digest(digest) and path.name[:2] == shelf.name:
                yield digest, path


def misplaced(store: Store) -> list[Path]:
    """Blobs and manifests that lie on a shelf where their digests don't begin so."""
    return [
        path
        for root in (store.layout.blobs, store.layout.manifests)
        for shelf in inside(root)
        for path in inside(shelf)
        if len(path.name) == 64 and path.name[:2] != shelf.name
    ]


def attestation_files(store: Store) -> list[Path]:
    """All attestations."""
    return [path for subject in inside(store.layout.told) for path in inside(subject)]


def temporary_files(store: Store) -> list[Path]:
    """What writers leave behind when they are killed."""
    unfinished = [path for path in inside(store.layout.views) if path.name.startswith(".")]
    return [*inside(store.layout.tmp), *unfinished]


def inside(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where there is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _modified(path: Path, now: float) -> float:
    """When it was last written or used; now where it has just gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return now


def _size(path: Path) -> int:
    """Bytes that nothing else shares: a view's hard links to blobs cost none."""
    try:
        if path.is_dir():
            files = [file.stat() for file in path.rglob("*") if file.is_file()]
            return sum(file.st_size for file in files if file.st_nlink == 1)
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _period(seconds: float) -> str:
    if seconds >= DAY:
        return f"{seconds / DAY:g} days"
    return f"{seconds / 3600:g} hours" if seconds >= 3600 else f"{seconds:g} seconds"
