"""fsck: does the store hold what it recorded?

The structure is checked always: every ref leads to an intact manifest, every manifest to files of the right size, every
document is what its name says. The bytes of the files are hashed again when asked for. Damage is what the store can't
explain; what killed processes leave behind is only remarked upon.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX, digest_of
from adapterhub.errors import AdapterHubError, StoreDamagedError, UnsupportedError
from adapterhub.manifest import Manifest, parse_attestation, parse_manifest
from adapterhub.names import Name
from adapterhub.store import views
from adapterhub.store.blobs import hash_file
from adapterhub.store.catalogue.record import parents_of
from adapterhub.store.catalogue.seen import mark_verified
from adapterhub.store.garbage import attestation_files, inside, misplaced, shelved, temporary_files
from adapterhub.store.leases import Lease
from adapterhub.store.store import Store
from adapterhub.store.trash import Trash
from adapterhub.words import counted, short, some


@dataclass(frozen=True)
class Damage:
    """Something that isn't as recorded. `digest` is what should be there; `adapters` are those that need it."""

    kind: str
    what: str
    path: Path
    digest: str | None = None
    adapters: tuple[str, ...] = ()
    name: Name | None = None


@dataclass(frozen=True)
class Remark:
    """Something left over, which harms nothing."""

    what: str
    size: int = 0


@dataclass(frozen=True)
class Touched:
    """What a damage reaches: names, adapters merged from the damaged ones, and running work that uses them."""

    names: tuple[str, ...]
    merges: tuple[str, ...]
    users: tuple[str, ...]


@dataclass
class Report:
    """What a check found."""

    damages: list[Damage] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    adapters: int = 0
    blobs: int = 0
    read: int = 0
    """Blobs whose bytes were hashed."""
    bytes_read: int = 0
    manifests: dict[str, Manifest] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    """The names of every adapter that has one."""
    children: dict[str, list[str]] = field(default_factory=dict)
    """For an adapter, those that were merged from it."""
    leases: list[Lease] = field(default_factory=list)

    def touched(self, damage: Damage) -> Touched:
        """Whom a damage concerns."""
        names = [
            name
            for digest in damage.adapters
            for name in self.names.get(digest, [f"@{short(digest)}"])
        ]
        names += [str(damage.name)] if damage.name and str(damage.name) not in names else []
        reached: dict[str, None] = {}
        open_ones = list(damage.adapters)
        while open_ones:
            for child in self.children.get(open_ones.pop(), []):
                if child not in reached and child not in damage.adapters:
                    reached[child] = None
                    open_ones.append(child)
        merges = [self.names.get(digest, [f"@{short(digest)}"])[0] for digest in reached]
        users = [
            f"{lease.kind} {lease.about} (process {lease.pid} on {lease.host})"
            for lease in self.leases
            if set(lease.digests) & set(damage.adapters)
        ]
        return Touched(tuple(names), tuple(merges), tuple(users))


Choose = Callable[[list[tuple[str, Path, int]]], Iterable[tuple[str, Path, int]]]
"""Picks the blobs to hash again, of (digest, path, size) of all that are there."""


def check(
    store: Store, choose: Choose | None = None, progress: Callable[[int], None] = lambda _: None
) -> Report:
    """Checks the store without changing it; works on a read-only one too, beside running writers.

    Args:
        choose: the blobs whose bytes are hashed again; None for none.
        progress: called with the bytes of each blob that was hashed.
    """
    report = Report()
    _manifests(store, report)
    _refs(store, report)
    report.adapters = len(report.manifests)
    _attestations(store, report)
    _blobs(store, report, choose, progress)
    _views(store, report, deep=choose is not None)
    _leases(store, report)
    _left_over(store, report)
    return report


def _manifests(store: Store, report: Report) -> None:
    for digest, path in shelved(store.layout.manifests):
        _read_manifest(report, digest, path)


def _read_manifest(report: Report, digest: str, path: Path) -> bool:
    """Notes a manifest, sound or damaged; False where there is none."""
    try:
        data = path.read_bytes()
        if digest_of(data) != digest:
            raise StoreDamagedError(f"its bytes hash to {short(digest_of(data))}")
        report.manifests[digest] = parse_manifest(data)
    except FileNotFoundError:
        return False
    except UnsupportedError as error:  # its bytes are right: a later version has written it
        report.remarks.append(Remark(f"{path}: {error.what}"))
    except AdapterHubError as error:
        what = f"the manifest of @{short(digest)} is damaged: {error.what}"
        report.damages.append(Damage("manifest", what, path, digest, (digest,)))
    return True


def _refs(store: Store, report: Report) -> None:
    names: dict[str, list[str]] = defaultdict(list)
    with store.refs.unchanging():
        last = store.refs.recorded()
        lost = store.refs.lost()
        found = {name: store.layout.ref(name) for name in store.refs.names()}
    unknown = []
    known_damage = {damage.digest for damage in report.damages}

    def require(digest: str, name: Name, *, recorded: bool = False) -> None:
        """The adapter that a ref leads to (or did, by the journal) must have a manifest."""
        path = store.layout.manifest(digest)
        if (
            digest in report.manifests
            or digest in known_damage
            or _read_manifest(report, digest, path)
        ):
            return
        if not recorded and store.refs.read(name) != digest:  # removed or moved meanwhile
            return
        known_damage.add(digest)
        what = f"the manifest of @{short(digest)} is missing{_in_trash(store, path)}"
        report.damages.append(Damage("manifest", what, path, digest, (digest,), name))

    for name, path in found.items():
        said = last.get(str(name))
        try:
            digest = store.refs.read(name)
        except StoreDamagedError as error:
            what = f"the ref {name} is damaged: {error.why}"
            report.damages.append(Damage("ref", what, path, said, (said,) if said else (), name))
            if said:
                require(said, name, recorded=True)
            continue
        if digest is None:  # removed just now
            continue
        names[digest].append(str(name))
        if str(name) not in last:
            unknown.append(str(name))
        elif said != digest:
            report.remarks.append(
                Remark(
                    f"{name} is @{short(digest)}, though its last recorded change"
                    f" {'made it @' + short(said) if said else 'removed it'}; the ref is right"
                )
            )
        require(digest, name)
    if unknown:
        report.remarks.append(
            Remark(f"the journal doesn't know how these names came about: {some(unknown)}")
        )
    for name, said in lost.items():
        what = f"the name {name} is gone, though its last recorded change made it @{short(said)}"
        report.damages.append(Damage("ref", what, store.layout.ref(name), said, (said,), name))
        require(said, name, recorded=True)
    for number in store.refs.journal.damaged():
        what = f"line {number} of the journal can't be read"
        report.damages.append(Damage("journal", what, store.layout.journal))
    report.names = dict(names)


def _attestations(store: Store, report: Report) -> None:
    children: dict[str, list[str]] = defaultdict(list)
    orphans = []
    for path in attestation_files(store):
        subject = DIGEST_PREFIX + path.parent.name
        try:
            data = path.read_bytes()
            if digest_of(data) != DIGEST_PREFIX + path.name:
                raise StoreDamagedError(f"its bytes hash to {short(digest_of(data))}")
            attestation = parse_attestation(data)
            if attestation.subject != subject:
                raise StoreDamagedError(f"it is about @{short(attestation.subject)}")
        except FileNotFoundError:
            continue
        except AdapterHubError as error:
            what = f"an attestation of @{short(subject)} is damaged: {error.what}"
            digest = DIGEST_PREFIX + path.name
            report.damages.append(Damage("attestation", what, path, digest, (subject,)))
            continue
        if subject not in report.manifests:
            orphans.append(path)
        for parent in parents_of(attestation):
            children[parent.digest].append(subject)
    report.children = dict(children)
    if orphans:
        report.remarks.append(
            Remark(
                f"{counted(len(orphans), 'attestation')} about adapters that aren't here",
                _sizes(orphans),
            )
        )


def _blobs(
    store: Store, report: Report, choose: Choose | None, progress: Callable[[int], None]
) -> None:
    wanted: dict[str, tuple[int, list[str]]] = {}
    for digest, manifest in report.manifests.items():
        for entry in manifest.files:
            wanted.setdefault(entry.digest, (entry.size, []))[1].append(digest)
    there = dict(shelved(store.layout.blobs))
    report.blobs = len(there)
    sound = []
    for digest, (size, adapters) in wanted.items():
        path = store.layout.blob(digest)
        kept = "" if digest in there else _in_trash(store, path)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            if not any((store.layout.manifest(adapter)).exists() for adapter in adapters):
                continue  # collected just now
            what = f"the bytes {short(digest)} are missing{kept}"
            report.damages.append(Damage("blob", what, path, digest, tuple(adapters)))
            continue
        if found != size:
            what = f"the bytes {short(digest)} have another size: {found} instead of {size}"
            report.damages.append(Damage("blob", what, path, digest, tuple(adapters)))
        else:
            sound.append((digest, path, size))
    orphans = [path for digest, path in there.items() if digest not in wanted]
    if orphans:
        report.remarks.append(
            Remark(
                f"{counted(len(orphans), 'file')} of no adapter; gc takes them in time",
                _sizes(orphans),
            )
        )
    for digest, path, size in choose(sound) if choose else ():
        began = time.time()
        try:
            found_digest = hash_file(path)
        except FileNotFoundError:  # collected while others were read; else the next check says so
            continue
        except OSError as error:  # a dying disk
            what = f"the bytes {short(digest)} can't be read: {error.strerror}"
            report.damages.append(Damage("blob", what, path, digest, tuple(wanted[digest][1])))
            continue
        report.read += 1
        report.bytes_read += size
        if found_digest != digest:
            what = f"the bytes {short(digest)} have changed: they hash to {short(found_digest)}"
            report.damages.append(Damage("blob", what, path, digest, tuple(wanted[digest][1])))
        else:
            mark_verified(store.cache, path, digest, began=began)
        progress(size)


def _in_trash(store: Store, path: Path) -> str:
    return ", but they are in the trash" if store.layout.in_trash(path) else ""


def _views(store: Store, report: Report, *, deep: bool) -> None:
    damaged = {damage.digest for damage in report.damages if damage.digest is not None}
    for folder in inside(store.layout.views):
        digest = DIGEST_PREFIX + folder.name
        manifest = report.manifests.get(digest)
        if manifest is None:
            continue
        wrong = views.wrong_files(folder, manifest, store.blobs, deep=deep, damaged=damaged)
        if wrong and folder.is_dir():  # else it was collected just now
            what = f"the folder served for @{short(digest)} is damaged: {some(wrong)}"
            report.damages.append(Damage("view", what, folder, digest, (digest,)))


def _leases(store: Store, report: Report) -> None:
    for path in store.leases.paths():
        try:
            lease = store.leases.read(path)
        except StoreDamagedError as error:
            report.damages.append(Damage("lease", f"{error.what} {error.why}", path))
            continue
        except FileNotFoundError:
            continue
        stale = lease.stale()
        if stale:
            report.remarks.append(
                Remark(f"a lease of {lease.kind} {lease.about} is stale: {stale}")
            )
        else:
            report.leases.append(lease)


def _left_over(store: Store, report: Report) -> None:
    for path in misplaced(store):
        report.remarks.append(Remark(f"{path} is on the wrong shelf, where nobody looks for it"))
    temporary = temporary_files(store)
    if temporary:
        report.remarks.append(
            Remark(
                f"{counted(len(temporary), 'temporary file')} left over by killed processes",
                _sizes(temporary),
            )
        )
    trash = Trash(store.layout)
    if ids := trash.ids():
        report.remarks.append(
            Remark(f"{counted(len(ids), 'folder')} in the trash", sum(map(trash.size, ids)))
        )
    aside = inside(store.layout.quarantine)
    if aside:
        report.remarks.append(
            Remark(f"{counted(len(aside), 'folder')} in {store.layout.quarantine}", _sizes(aside))
        )
    if store.layout.version.exists() and not store.layout.id.exists():
        report.remarks.append(Remark("the store has no id; the next repair gives it one"))


def _sizes(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        files = path.rglob("*") if path.is_dir() else [path]
        total += sum(file.stat().st_size for file in files if file.is_file())
    return total
