"""Every reader of bytes that strangers made, or that a disk may have changed: one function each.

A reader gets any bytes. It may take them, or raise an AdapterHubError; anything else that comes out is a fault, and so
is a result that breaks what the reader promises (`assert`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.base import BaseRegistry, read_base
from adapterhub.canonical import canonical_bytes, parse_object
from adapterhub.cli.listing import COLUMNS
from adapterhub.data import examine, read_preferences, read_rows, split_rows
from adapterhub.errors import AdapterHubError, FormatError, NotFoundError
from adapterhub.formats.keys import parse_key
from adapterhub.formats.peft import WEIGHTS_NAME, read_facts, scan_values
from adapterhub.formats.peft_config import CONFIG_NAME, read_config
from adapterhub.formats.safetensors import TensorFile
from adapterhub.formats.single import read_single
from adapterhub.manifest import make_manifest, parse_attestation, parse_manifest
from adapterhub.names import DigestPointer, Name, is_name_part, parse_name, parse_pointer, slug
from adapterhub.remote.address import is_hub, parse_address
from adapterhub.settings import read_settings
from adapterhub.store import Store
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.checking import check
from adapterhub.store.garbage import make_plan
from adapterhub.store.history import plan_undo
from adapterhub.store.layout import check_format
from adapterhub.store.repair import repair
from adapterhub.store.trash import Trash
from adapterhub.tui.library.attested import sections
from tests.formats.raw import sound_file
from tests.fuzz.seeds import BINARY, SEEDS, SPLIT, TENSOR_FILES, TRASH, A
from tests.fuzz.using import FILES, MANIFEST, commands, put

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "q_proj")
_COLUMNS = ",".join(COLUMNS)


@dataclass(frozen=True)
class Target:
    """A reader and what it is first given. `text` says that it reads JSON or other text, so that mutations keep to that."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    text: bool = True


class Readers:
    """The readers, with a store and a folder of their own below `root`. A read leaves nothing that the next would see."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "folder"
        self.folder.mkdir(parents=True)
        self.store = Store.open(root / "home")
        self.store.prepare()
        self.layout = self.store.layout
        for path in (self.layout.journal, self.layout.leases / "x", self.layout.bases / "x"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (self.layout.trash / TRASH).mkdir(parents=True)

    def targets(self) -> dict[str, Target]:
        """All of them, by name."""
        return {
            name: Target(getattr(self, name.replace(" ", "_")), seeds, name not in BINARY)
            for name, seeds in SEEDS.items()
        }

    # Documents

    def manifest(self, data: bytes) -> None:
        document = parse_object(data, "It")
        try:
            canonical_bytes(document)
        except FormatError as error:
            raise AssertionError("what was taken can't be written") from error
        found = parse_manifest(data)
        assert parse_manifest(found.data).digest == found.digest
        for entry in found.files:
            assert _stays_inside(self.folder, entry.path)

    def attestation(self, data: bytes) -> None:
        found = parse_attestation(data)
        assert parse_attestation(found.data).digest == found.digest

    def stored_manifest(self, data: bytes) -> None:
        put(self.layout, data)
        self._use(
            ("ls", "a", "--columns", _COLUMNS), ("ls", "--json", "--base", "org/base", "--sort", "size"),
            ("show", "tone"), ("show", "tone", "--json"), ("fit", "tone"), ("fsck",), ("gc", "--dry-run"),
        )  # fmt: skip

    def stored_attestation(self, data: bytes) -> None:
        put(self.layout, MANIFEST.data, data)
        with suppress(AdapterHubError):
            list(sections(self.store.attestations(MANIFEST.digest), {}))
        self._use(
            ("ls", "--columns", _COLUMNS), ("ls", "good", "--unused", "1d"), ("ls", "--json", "--base", "org/base"),
            ("show", "tone"), ("show", "tone", "--attestations"), ("show", "tone", "--json"), ("fit", "tone"),
            ("lineage", "tone"), ("affected-by", "org/base"), ("fsck",),
        )  # fmt: skip

    def ref(self, data: bytes) -> None:
        name = parse_name("tone")
        self._write(self.layout.ref(name), data)
        found = self.store.refs.read(name)
        assert found is None or data.strip() == found.encode()

    # The store's own records

    def journal(self, data: bytes) -> None:
        self._write(self.layout.journal, data)
        journal = self.store.refs.journal
        journal.unfinished()
        journal.damaged()
        self.store.log(parse_name("tone"))
        for work in (
            lambda: make_plan(self.store, grace=1e9, trash_grace=1e9),
            lambda: check(self.store),
            lambda: plan_undo(self.store, 2),
            self._write_something,
        ):
            with suppress(AdapterHubError):
                work()
        self._clear()

    def catalogue(self, data: bytes) -> None:
        self._write(self.layout.journal, data)
        self._write(self.layout.attested, data)
        Catalogue(self.layout).ask(lambda db: db.execute("SELECT * FROM names").fetchall())
        self._clear()

    def lease(self, data: bytes) -> None:
        path = self.layout.leases / "x.json"
        self._write(path, data)
        try:
            self.store.leases.live()
            make_plan(self.store, grace=0, trash_grace=1e9)
        finally:
            path.unlink()

    def settings(self, data: bytes) -> None:
        self._write(self.folder / "config.toml", data)
        read_settings(self.folder / "config.toml")

    def places(self, data: bytes) -> None:
        put(self.layout, MANIFEST.data)
        shutil.rmtree(self.layout.blobs)
        self._write(self.layout.places, data)
        repair(self.store, check(self.store))
        self._clear()

    def format_and_id(self, data: bytes) -> None:
        before = {path: path.read_bytes() for path in (self.layout.version, self.layout.id)}
        try:
            self._write(self.layout.id, data)
            assert _stays_inside(self.folder, CacheFile(self.layout).path.name)
            self._write(self.layout.version, data)
            check_format(self.layout)
        finally:
            for path, kept in before.items():
                path.write_bytes(kept)

    def file_name(self, data: bytes) -> None:
        name = os.fsdecode(data.replace(b"\0", b"").replace(b"/", b"")[:250])
        if not name or name.startswith("."):
            return
        layout = self.layout
        put(layout, MANIFEST.data)
        training = self.folder / "training"
        for file, content in {f"{name}.log": b"", **FILES}.items():
            self._write(training / file, content)
        folders = [layout.refs, layout.refs / "_", layout.told, layout.trash, layout.views]
        made = [
            *(folder / name / name for folder in folders if not (folder / name).exists()),
            *(shelves / name[:2] / name for shelves in (layout.manifests, layout.blobs)),
        ]
        try:
            for path in made:
                self._write(path, b"")
            self._use(
                ("add", str(training), "--name", "again"), ("ls",), ("show", "--", name),
                ("fsck", "--repair"), ("gc", "--dry-run"),
            )  # fmt: skip
        finally:
            for path in (*made, training / name):
                shutil.rmtree(path.parent, ignore_errors=True)

    def trash_contents(self, data: bytes) -> None:
        self._write(self.layout.trash / TRASH / "contents.json", data)
        trash = Trash(self.layout)
        paths = trash.contents(TRASH)
        assert all(
            _stays_inside(self.layout.store, os.path.relpath(p, self.layout.store)) for p in paths
        )
        trash.give_back(TRASH, [])

    # Adapters and bases

    def safetensors(self, data: bytes) -> None:
        path = self._write(self.folder / "x.safetensors", data)
        with TensorFile(path) as file:
            for name, info in file.infos.items():
                assert 8 <= info.start <= info.end <= len(data)
                assert len(file.raw(name)) == info.end - info.start
                file.scan(name)
                with suppress(AdapterHubError):
                    assert file.array(name).shape == info.shape

    def config(self, data: bytes) -> None:
        config, _ = read_config(self._write(self.folder / CONFIG_NAME, data))
        for module in MODULES if config.rank else ():
            config.module_scaling(module, config.module_rank(module))
        assert config.base.repo is None or config.base.repo == config.claimed_base

    def adapter(self, data: bytes) -> None:
        config, _, weights = data.partition(SPLIT)
        self._write(self.folder / WEIGHTS_NAME, weights)
        with TensorFile(self.folder / WEIGHTS_NAME) as file:
            facts = read_facts(self._write(self.folder / CONFIG_NAME, config), file)
            content, _ = scan_values(facts, file)
        made = make_manifest(
            kind=facts.kind, base=facts.config.base, lora=facts.lora(), files=[], content=content
        )
        assert parse_manifest(made.data).lora == made.lora
        facts.beyond_lora()

    def single_file(self, data: bytes) -> None:
        files, _ = read_single(self._write(self.folder / "lora.safetensors", data))
        config = files[CONFIG_NAME]
        assert isinstance(config, bytes)
        read_config(self._write(self.folder / "inside.json", config))

    def base(self, data: bytes) -> None:
        folder = self.folder / "base"
        self._write(folder / "model.safetensors", TENSOR_FILES[0])
        self._write(folder / "config.json", data)
        found = read_base(folder)
        BaseRegistry(self.folder / "bases").remember(found)
        found.is_conv1d("c_attn")

    def base_index(self, data: bytes) -> None:
        folder = self.folder / "sharded"
        self._write(
            folder / "model-1.safetensors", sound_file({"q.weight": ("F32", [1], bytes(4))})
        )
        self._write(folder / "config.json", b"{}")
        self._write(folder / "model.safetensors.index.json", data)
        assert read_base(folder).fingerprint

    def base_record(self, data: bytes) -> None:
        self._write(self.layout.bases / "x.json", data)
        try:
            self.store.bases.records()
            for text in (str(self.folder), "org/base"):
                with suppress(NotFoundError):
                    self.store.bases.open(text)
            commands(
                self.store.home, ("base", "ls"), ("ls", "--base", A), ("affected-by", "org/base")
            )
        finally:
            (self.layout.bases / "x.json").unlink()

    # Data

    def data_rows(self, data: bytes) -> None:
        for ending in (".json", ".jsonl", ".csv", ".txt"):
            with suppress(AdapterHubError):
                self._rows(self._write(self.folder / f"rows{ending}", data))
        self._rows(self.folder / "rows.json")

    def preferences(self, data: bytes) -> None:
        for pair in read_preferences(self._write(self.folder / "pairs.json", data)):
            assert pair.split_key == pair.sides[0].split_key
            assert pair.chosen != pair.rejected

    def parquet(self, data: bytes) -> None:
        self._rows(self._write(self.folder / "rows.parquet", data))

    def _rows(self, path: Path) -> None:
        rows = read_rows(path)
        assert all(row.where.startswith(path.name) and row.digest for row in rows)
        split = split_rows(rows, 0)
        assert len(split.train) == len(rows)
        examine(rows, split, control_tokens=["<|im_end|>"])

    # Words

    def argument(self, data: bytes) -> None:
        text = data.replace(b"\0", b"").decode("utf-8", "surrogateescape")  # as Python reads them
        put(self.layout, MANIFEST.data)
        self._use(
            ("ls", f"--target={text}", f"--method={text}", f"--kind={text}", "--", text),
            ("ls", f"--rank={text}"), ("ls", f"--unused={text}"), ("ls", f"--base={text}"), ("ls", f"--fits={text}"),
            ("show", "--", text), ("base", "add", "--", text), ("tag", "tone", "--", text), ("fsck", f"--read-data={text}"),
        )  # fmt: skip

    def tensor_name(self, data: bytes) -> None:
        key = parse_key(data.decode("utf-8", "replace"))
        assert parse_key(key.peft).canonical == key.canonical

    def name(self, data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        assert is_name_part(slug(text))
        assert parse_name(slug(text)).name == slug(text)
        found = parse_pointer(text)
        if isinstance(found, DigestPointer):
            assert 6 <= len(found.prefix) <= 64
            return
        assert isinstance(found, Name)
        assert parse_name(str(found)) == found
        assert _stays_inside(
            self.layout.refs, str(self.layout.ref(found).relative_to(self.layout.refs))
        )

    def address(self, data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        if is_hub(text):
            found = parse_address(text)
            assert parse_address(str(found)) == found
            assert str(parse_name(found.name)) == found.name
            assert not found.folder or _stays_inside(self.folder, found.folder)

    # Helpers

    def _write(self, path: Path, data: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def _write_something(self) -> None:
        """What every writer does first: it takes back what a killed one left."""
        with self.store.refs.changing():
            pass

    def _use(self, *calls: tuple[str, ...]) -> None:
        try:
            commands(self.store.home, *calls)
        finally:
            self._clear()

    def _clear(self) -> None:
        layout = self.layout
        for folder in (layout.refs, layout.manifests, layout.told, layout.blobs, layout.quarantine):
            shutil.rmtree(folder, ignore_errors=True)
        for path in (layout.journal, layout.attested, layout.places):
            path.unlink(missing_ok=True)


def _stays_inside(folder: Path, path: str) -> bool:
    return Path(os.path.normpath(folder / path)).is_relative_to(folder) and folder / path != folder
