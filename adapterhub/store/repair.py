"""fsck --repair: puts back what is damaged or missing, from any place that has those bytes; sets aside what can't be.

Every candidate is hashed while it is copied, so a place that has other bytes is no danger. Nothing is deleted: damaged
files go to quarantine/, and what could not be mended is named.
"""

from __future__ import annotations

import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import AdapterHubError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.fsio import (
    fsync_directory,
    is_folder,
    make_directory,
    publish,
    stage_copy,
    write_file,
)
from adapterhub.store import views
from adapterhub.store.adding import manifest_of
from adapterhub.store.checking import Damage, Report, check
from adapterhub.store.garbage import misplaced
from adapterhub.store.journal import now
from adapterhub.store.layout import Layout
from adapterhub.store.refs import Move
from adapterhub.store.store import Store
from adapterhub.words import short

Fetch = Callable[[Store, str, str], Path | None]
"""Fetches a file of an adapter from where it came: (store, adapter's digest, path in it) -> a local copy, or None."""


@dataclass(frozen=True)
class Mended:
    """What became of a damage: mended from somewhere, or set aside, or left."""

    damage: Damage
    mended: bool
    how: str


def repair(
    store: Store,
    report: Report,
    elsewhere: Sequence[Path] = (),
    fetch: Fetch = lambda _store, _adapter, _path: None,
) -> list[Mended]:
    """Mends what `report` found, under the store's exclusive lock, after looking again whether it is still so.

    Args:
        elsewhere: other stores' homes, or any folders, to look for lost files in.
        fetch: asks where the adapter came from, as a last resort.
    """
    suspects = {damage.digest for damage in report.damages if damage.kind == "blob"}

    def choose(blobs: list[tuple[str, Path, int]]) -> list[tuple[str, Path, int]]:
        return [blob for blob in blobs if blob[0] in suspects]

    with store.alone():
        repairer = _Repairer(store, elsewhere, fetch)
        done: list[Mended] = []
        while True:  # what is mended may lead to more: a manifest to files that are missing too
            found = check(store, choose)
            known = {(outcome.damage.kind, outcome.damage.path) for outcome in done}
            fresh = [each for each in found.damages if (each.kind, each.path) not in known]
            if not fresh:
                break
            done += repairer.run(found, fresh)
        repairer.clear_shelves()
    return done


class _Repairer:
    """Mends damages, while nobody else is writing."""

    def __init__(self, store: Store, elsewhere: Sequence[Path], fetch: Fetch) -> None:
        self._store = store
        self._layout = store.layout
        self._report = Report()
        self._elsewhere = [Layout(place) for place in elsewhere]
        self._fetch = fetch
        self._quarantine = (
            self._layout.quarantine / f"{now()[:19].replace(':', '')}-{secrets.token_hex(3)}"
        )

    def run(self, report: Report, damages: Sequence[Damage]) -> list[Mended]:
        """Mends what can be mended; manifests before blobs, and refs last, so that what they lead to is there."""
        self._report = report
        order = ("lease", "journal", "manifest", "attestation", "blob", "view", "ref")
        damages = sorted(damages, key=lambda damage: order.index(damage.kind))
        if any(damage.kind == "journal" for damage in damages):
            damages = [damage for damage in damages if damage.kind != "journal"]
            damages.insert(0, self._journal_damage())
        done = []
        for damage in damages:
            how = getattr(self, f"_{damage.kind}")(damage)
            done.append(Mended(damage, how is not None, how or self._set_aside(damage)))
        return done

    def clear_shelves(self) -> None:
        """Sets aside what lies where nobody looks for it; it has been copied to its place if that was empty."""
        for path in misplaced(self._store):
            self._aside(path)

    def _manifest(self, damage: Damage) -> str | None:
        assert damage.digest is not None
        for place, path in self._documents(self._layout.manifest(damage.digest)):
            if self._copied(path, damage.path, damage.digest):
                return f"copied from {place}"
        for folder in self._folders((damage.digest,)):
            try:
                manifest = manifest_of(folder)
            except (AdapterHubError, OSError):
                continue
            if manifest.digest == damage.digest:
                self._aside(damage.path)
                self._store.blobs.write_document(damage.path, manifest.data)
                return f"made again from {folder}"
        return None

    def _attestation(self, damage: Damage) -> str | None:
        assert damage.digest is not None
        for place, path in self._documents(damage.path):
            if self._copied(path, damage.path, damage.digest):
                return f"copied from {place}"
        return None

    def _blob(self, damage: Damage) -> str | None:
        assert damage.digest is not None
        for place, path in self._candidates(damage):
            if self._copied(path, damage.path, damage.digest):
                return f"copied from {place}"
        return None

    def _view(self, damage: Damage) -> str | None:
        assert damage.digest is not None
        self._aside(damage.path)
        manifest = self._report.manifests[damage.digest]
        try:
            views.make(damage.path, manifest, self._store.blobs)
        except AdapterHubError as error:
            return f"set aside; it will be made again once its files are mended ({error.what})"
        return "made again from the blobs"

    def _ref(self, damage: Damage) -> str | None:
        name, digest = damage.name, damage.digest
        assert name is not None
        if damage.path.exists():
            self._aside(damage.path)
        with self._store.refs.changing() as change:
            if digest is not None and self._layout.manifest(digest).is_file():
                change.set(name, digest, op="repair", why="fsck --repair", move=True, gated=False)
                return f"set to @{short(digest)}, as the journal says"
            change.commit(
                [Move(name, digest, None)], op="repair", why="fsck --repair: what it meant is lost"
            )
        return None

    def _lease(self, damage: Damage) -> str | None:
        self._aside(damage.path)
        return "set aside"

    def _journal_damage(self) -> Damage:
        lines = [damage for damage in self._report.damages if damage.kind == "journal"]
        return Damage("journal", "; ".join(line.what for line in lines), self._layout.journal)

    def _journal(self, damage: Damage) -> str | None:
        """Keeps the lines that can be read; the whole journal as it was is set aside."""
        numbers = set(self._store.refs.journal.damaged())
        data = self._layout.journal.read_bytes()
        target = self._kept(self._layout.journal)
        write_file(target, data, self._layout.tmp)
        lines = data.split(b"\n")
        kept = [line for number, line in enumerate(lines, 1) if number not in numbers]
        mode = stat.S_IMODE(self._layout.journal.stat().st_mode)
        write_file(self._layout.journal, b"\n".join(kept), self._layout.tmp, mode)
        return f"the lines that can be read were kept; the journal as it was is {target}"

    def _candidates(self, damage: Damage) -> Iterator[tuple[str, Path]]:
        """Files that may hold a blob's bytes: the trash, other stores, folders, views, the Hugging Face cache, the Hub."""
        assert damage.digest is not None
        yield from self._documents(self._layout.blob(damage.digest))
        for adapter in damage.adapters:
            manifest = self._report.manifests.get(adapter)
            paths = (
                [entry.path for entry in manifest.files if entry.digest == damage.digest]
                if manifest
                else []
            )
            for path in paths:
                view = self._layout.view(adapter) / path
                yield f"the folder made for servers, {view}", view
                for folder in self._folders((adapter,)):
                    yield from _inside(folder, path)
        for layout in self._elsewhere:  # any folder: whatever has the right size
            size = self._size(damage)
            for file in layout.home.rglob("*") if not layout.store.is_dir() else ():
                if file.is_file() and file.stat().st_size == size:
                    yield str(file), file
        for file in _hub_cache().glob(f"*/blobs/{damage.digest.removeprefix(DIGEST_PREFIX)}"):
            yield f"the Hugging Face cache, {file}", file
        for adapter in damage.adapters:
            manifest = self._report.manifests.get(adapter)
            for entry in manifest.files if manifest else ():
                if entry.digest == damage.digest:
                    fetched = self._fetch(self._store, adapter, entry.path)
                    if fetched is not None:
                        yield "the Hub", fetched

    def _documents(self, path: Path) -> Iterator[tuple[str, Path]]:
        """The same file on a wrong shelf, in the trash and in other stores."""
        for misled in misplaced(self._store):
            if misled.name == path.name:
                yield f"the wrong shelf, {misled}", misled
        kept = self._layout.in_trash(path)
        if kept is not None:
            yield f"the trash, {kept}", kept
        for layout in self._elsewhere:
            other = layout.store / path.relative_to(self._layout.store)
            yield f"the store at {layout.home}", other

    def _folders(self, adapters: Sequence[str]) -> Iterator[Path]:
        for adapter in adapters:
            for text in self._store.places.of(adapter):
                yield Path(text)
        for layout in self._elsewhere:
            yield layout.home

    def _size(self, damage: Damage) -> int | None:
        for adapter in damage.adapters:
            manifest = self._report.manifests.get(adapter)
            for entry in manifest.files if manifest else ():
                if entry.digest == damage.digest:
                    return entry.size
        return None

    def _copied(self, source: Path, target: Path, digest: str) -> bool:
        """Puts a copy of `source` at `target` if it has the right bytes."""
        try:
            if not source.is_file() or (target.exists() and source.samefile(target)):
                return False
            staged = stage_copy(source, self._layout.tmp)
        except OSError:
            return False
        try:
            if staged.digest != digest:
                return False
            self._aside(target)
            publish(staged.path, target)
            return True
        finally:
            staged.path.unlink(missing_ok=True)

    def _set_aside(self, damage: Damage) -> str:
        if damage.path.exists():
            return f"no other copy was found; it was set aside: {self._aside(damage.path)}"
        return "no other copy was found"

    def _aside(self, path: Path) -> Path:
        """Moves a damaged file or folder into quarantine, if it is there; where it is now."""
        if not path.exists():
            return path
        target = self._kept(path)
        path.rename(target)
        fsync_directory(target.parent)
        fsync_directory(path.parent)
        return target

    def _kept(self, path: Path) -> Path:
        target = self._quarantine / path.relative_to(self._layout.store)
        while target.exists():  # set aside twice in one repair
            target = target.with_name(f"{target.name}.again")
        make_directory(target.parent)
        return target


def _inside(place: Path, path: str) -> Iterator[tuple[str, Path]]:
    """The adapter's file `path` in a folder it was seen in, or in the single file it was added from."""
    if is_folder(place):
        yield str(place / path), place / path
    elif path == WEIGHTS_NAME:
        yield str(place), place


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
