"""A store, what it was promised to be, and the adapters it is filled from: looked at together after every step."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant

from adapterhub.store import Store
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.checking import Report, check
from tests.formats.raw import pair, sound_file
from tests.store.promises import Promises, parts
from tests.store.watching import at, listing, problems, refs, sha256

SHELVES = ("blobs/", "manifests/", "attestations/", "views/")
ONE, TWO, THREE = (value.to_bytes(4, "little") for value in (0x3F800000, 0x40000000, 0x40400000))


@dataclass(frozen=True)
class Known:
    """An adapter as it is, whatever becomes of it in a store."""

    folder: Path
    digest: str
    manifest: bytes
    files: dict[str, bytes]

    @property
    def digits(self) -> str:
        return self.digest.removeprefix("sha256:")

    @property
    def blobs(self) -> dict[str, bytes]:
        return {sha256(data): data for data in self.files.values()}


@dataclass(frozen=True)
class Pool:
    """Five adapters of which some share weights, configurations or a README; one that is damaged; a store with all."""

    adapters: tuple[Known, ...]
    damaged: Path
    home: Path

    @classmethod
    def make(cls, root: Path) -> Pool:
        store, found = Store.open(root / "all"), []
        for number, (weights, alpha, card) in enumerate(
            [(ONE, 4, ""), (TWO, 4, ""), (ONE, 6, ""), (TWO, 6, "# One\n"), (THREE, 8, "# One\n")]
        ):
            folder = root / f"adapter{number}"
            files = {
                "adapter_config.json": _config(alpha),
                "adapter_model.safetensors": sound_file(pair("q_proj", rank=2, width=4, out=4, fill=weights)),
                **({"README.md": card.encode()} if card else {}),
            }  # fmt: skip
            folder.mkdir(parents=True)
            for path, data in files.items():
                (folder / path).write_bytes(data)
            digest = store.add_folder(folder, name=f"adapter{number}").digest
            manifest = at(root / "all" / "store" / "manifests", digest[7:]).read_bytes()
            assert sha256(manifest) == digest[7:]
            assert {(entry["path"], entry["digest"][7:]) for entry in json.loads(manifest)["files"]} == {
                (path, sha256(data)) for path, data in files.items()
            }  # fmt: skip
            found.append(Known(folder, digest, manifest, files))
        damaged = root / "damaged"
        shutil.copytree(found[0].folder, damaged)
        weights_file = damaged / "adapter_model.safetensors"
        weights_file.write_bytes(weights_file.read_bytes()[:-4])
        return cls(tuple(found), damaged, root / "all")


def _config(alpha: int) -> bytes:
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "target_modules": ["q_proj"]}
    return json.dumps({**fields, "base_model_name_or_path": "org/tiny"}).encode()


class Watched(RuleBasedStateMachine):
    """One store and its promises; what can happen to them is for a subclass to say."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.root = Path(tempfile.mkdtemp(prefix="machine-", dir=pool.home.parent))
        self.home = self.root / "home"
        self.by_digest = {known.digest: known for known in pool.adapters}
        self.promised = Promises()
        self.running: list[tuple[frozenset[str], ExitStack]] = []

    def teardown(self) -> None:
        for _, lease in self.running:
            lease.close()
        shutil.rmtree(self.root)

    # What it looks at

    @property
    def store(self) -> Store:
        return Store.open(self.home)

    def adapter(self, number: int) -> Known:
        return self.pool.adapters[number]

    def on_shelf(self, number: int) -> Known:
        """One of the adapters that are in the store."""
        there = sorted(self.promised.shelf)
        return self.by_digest[there[number % len(there)]]

    def a_name(self, number: int) -> str:
        """One of the names that are there."""
        return sorted(self.promised.refs)[number % len(self.promised.refs)]

    def shelves(self) -> dict[str, str]:
        """What lies on the shelves. Whatever is given back is the same to the bit."""
        return {path: what for path, what in listing(self.home).items() if path.startswith(SHELVES)}

    def old(self, grace: float) -> dict[str, bool]:
        """For every file on the shelves, whether it is older than the grace; a view is as old as its folder."""
        now, store = time.time(), self.home / "store"
        timed = {
            path: store / (Path(*Path(path).parts[:2]) if path.startswith("views/") else path)
            for path in self.shelves()
        }
        return {path: now - place.stat().st_mtime >= grace for path, place in timed.items()}

    def stamp(self, path: str) -> float:
        return (self.home / "store" / path).stat().st_mtime

    # What holds after every step

    @invariant()
    def promises_are_kept(self) -> None:
        self.the_names_mean_what_they_should()
        self.whatever_is_promised_is_there()
        self.fsck_finds_no_damage()
        self.the_catalogue_lists_the_same()
        self.the_journal_tells_the_same()

    def the_names_mean_what_they_should(self) -> None:
        said = {name: text.strip() for name, text in refs(self.home).items()}
        assert said == {ref_of(name): digest for name, digest in self.promised.refs.items()}
        assert problems(self.home) == []

    def whatever_is_promised_is_there(self) -> None:
        assert self.manifests_there() == self.promised.shelf
        store = self.home / "store"
        for digest in self.promised.shelf:
            known = self.by_digest[digest]
            assert at(store / "manifests", known.digits).read_bytes() == known.manifest
            for digits, data in known.blobs.items():
                assert at(store / "blobs", digits).read_bytes() == data
            said = {_statement(item.type, item.body) for item in self.store.attestations(digest)}
            assert self.promised.told.get(digest, set()) <= said
        for digest in {digest for trash in self.promised.trash for digest in self.in_trash(trash)}:
            known = self.by_digest[digest]  # readers that come too late find it in the trash
            assert self.store.manifest(digest).data == known.manifest
            for digits, data in known.blobs.items():
                assert self.store.blobs.path(f"sha256:{digits}").read_bytes() == data

    def fsck_finds_no_damage(self) -> None:
        assert self.checked().damages == []

    def the_catalogue_lists_the_same(self) -> None:
        found = Catalogue(self.store.layout).ask(
            lambda db: db.execute("SELECT label, digest, error FROM names").fetchall()
        )
        wanted = [(name, digest, None) for name, digest in self.promised.refs.items()]
        assert sorted(found) == sorted(wanted)

    def the_journal_tells_the_same(self) -> None:
        told = self.store.refs.journal.operations()
        if self.promised.cut_short:
            told.pop()
        assert [
            (line.op, [(change.ref, change.before, change.after) for change in line.refs])
            for line in told
        ] == [(done.op, list(done.moves)) for done in self.promised.done]

    # What its rules say and ask

    def tell(self, digest: str, kind: str, body: dict[str, Any]) -> None:
        """Something was attested, and the store said so."""
        self.promised.told.setdefault(digest, set()).add(_statement(kind, body))

    def checked(self) -> Report:
        """What fsck says after reading everything."""
        return check(self.store, lambda blobs: blobs)

    def take_back(self) -> None:
        """Lets a writer in, who does nothing but take back what a killed one left."""
        self.promised.settle()
        with self.store.writing(), self.store.refs.changing():
            pass

    def kept(self, grace: float) -> set[str]:
        """The adapters that a collection leaves: what is protected, and what is young."""
        old = self.old(grace)
        young = {
            f"sha256:{Path(path).name}"
            for path in old
            if path.startswith("manifests/") and not old[path]
        }
        return self.promised.protected(grace) | young

    def returning(self) -> dict[str, str]:
        """What a collection first gives back from the trash: names, rollbacks or running work need it (again)."""
        there, found = self.shelves(), {}
        needed = {digest for digest in self.promised.needed() if self.can_come_back({digest})}
        for path, what in listing(self.home).items():  # the newest last
            top, _, inner = path.partition("/")[2].partition("/")
            if path.startswith("trash/") and top and inner.startswith(SHELVES[:3]) and inner not in there:  # fmt: skip
                if self.is_needed(inner, needed):
                    found[inner] = what
        return found

    def is_needed(self, path: str, kept: set[str]) -> bool:
        """Whether something on the shelves belongs to one of these adapters."""
        shelf, *_, name = Path(path).parts
        mine = [self.by_digest[digest] for digest in kept]
        if shelf == "blobs":  # who has been deleted for good can't say what it had
            return any(name in known.blobs for known in mine if self.can_come_back({known.digest}))
        if shelf == "manifests":
            return any(name == known.digits for known in mine)
        return any(Path(path).parts[1] == known.digits for known in mine)

    def manifests_there(self) -> set[str]:
        """The adapters whose manifests are on the shelf."""
        return {f"sha256:{path.name}" for path in self.home.glob("store/manifests/sha256/*/*")}

    def in_trash(self, trash: str) -> set[str]:
        """The adapters whose manifests lie in a trash folder."""
        folder = self.home / "store" / "trash" / trash
        return {f"sha256:{path.name}" for path in folder.glob("manifests/sha256/*/*")}

    def contents(self, trash: str) -> set[str]:
        """The adapters that a collection had put there."""
        paths = json.loads((self.home / "store" / "trash" / trash / "contents.json").read_bytes())
        return {f"sha256:{Path(path).name}" for path in paths if path.startswith("manifests/")}

    def can_come_back(self, digests: set[str]) -> bool:
        """Whether all of these adapters are in the store or in its trash."""
        return digests <= self.promised.shelf.union(*map(self.in_trash, self.promised.trash))

    def forget_what_is_gone(self) -> None:
        """Nothing is promised about an adapter that was deleted for good."""
        for digest in list(self.promised.told):
            if not self.can_come_back({digest}):
                del self.promised.told[digest]


def ref_of(name: str) -> str:
    """Where a name's ref lies below refs/."""
    namespace, last, tag = parts(name)
    return f"{namespace or '_'}/{last}/{tag}"


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """Where two tables differ, and how."""
    return [
        f"{key}: {found.get(key)} instead of {wanted.get(key)}"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _statement(kind: str, body: Any) -> str:
    return json.dumps([kind, dict(body)], sort_keys=True)
