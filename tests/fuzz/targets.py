"""Every reader of bytes that strangers made, or that a disk may have changed: one function each, and bytes to begin with.

A reader gets any bytes. It may take them, or raise an AdapterHubError; anything else that comes out is a fault, and so
is a result that breaks what the reader promises (`assert`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.base import BaseRegistry, read_base
from adapterhub.errors import AdapterHubError, NotFoundError
from adapterhub.formats.keys import parse_key
from adapterhub.formats.peft import WEIGHTS_NAME, read_facts, scan_values
from adapterhub.formats.peft_config import CONFIG_NAME, read_config
from adapterhub.formats.safetensors import TensorFile
from adapterhub.formats.single import METADATA_KEY, read_single
from adapterhub.manifest import (
    BaseClaim,
    FileEntry,
    LoraFacts,
    make_attestation,
    make_manifest,
    parse_attestation,
    parse_manifest,
)
from adapterhub.names import DigestPointer, Name, is_name_part, parse_name, parse_pointer, slug
from adapterhub.remote.address import is_hub, parse_address
from adapterhub.settings import read_settings
from adapterhub.store import Store
from adapterhub.store.adding import manifest_of
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.checking import check
from adapterhub.store.garbage import make_plan
from adapterhub.store.history import plan_undo
from adapterhub.store.trash import Trash
from tests.formats.raw import file_of, pair, sound_file, table_of

SPLIT = b"\n-- weights --\n"
"""Between the two files of the target `adapter`."""
A, B = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
DEEP = b"[" * 700 + b"]" * 700
"""Deep enough for a parser in C to be content with it, and for a function that calls itself not."""
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "q_proj")
TRASH = "20260101-000000-abcdef"


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
        found = parse_manifest(data)
        assert parse_manifest(found.data).digest == found.digest
        for entry in found.files:
            assert _stays_inside(self.folder, entry.path)

    def attestation(self, data: bytes) -> None:
        found = parse_attestation(data)
        assert parse_attestation(found.data).digest == found.digest

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
        self._write(self.layout.places, data)
        for folder in self.store.places.of(A):
            with suppress(AdapterHubError, OSError):  # as a repair looks at it
                manifest_of(Path(folder))

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
        self._write(folder / "model.safetensors", _TENSOR_FILES[0])
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
        finally:
            (self.layout.bases / "x.json").unlink()

    # Words

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

    def _clear(self) -> None:
        shutil.rmtree(self.layout.refs, ignore_errors=True)
        for path in (self.layout.journal, self.layout.attested):
            path.unlink(missing_ok=True)


def _stays_inside(folder: Path, path: str) -> bool:
    return Path(os.path.normpath(folder / path)).is_relative_to(folder) and folder / path != folder


def _with(document: bytes, key: str, value: bytes) -> bytes:
    """A JSON object with one more field."""
    return document.rstrip()[:-1] + b', "' + key.encode() + b'": ' + value + b"}"


def _config(**fields: object) -> bytes:
    plain = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 4, "lora_alpha": 8}
    return json.dumps({**plain, "target_modules": ["q_proj"], **fields}).encode()


_MANIFEST = make_manifest(
    kind="lora",
    base=BaseClaim("org/base", "0123456789" * 4, {"repo": "org/base-4bit"}),
    lora=LoraFacts(4, 8.0, ["q_proj"], 1, 512, "float32", {"v": 2}, {"v": 4.5}),
    files=[FileEntry("a/b.txt", A, 3), FileEntry(WEIGHTS_NAME, B, 2048)],
    content=A,
).data
_ATTESTATION = make_attestation(A, "provenance", {"event": "merged", "parents": [{"digest": B, "name": "tone"}]}, "2026-01-01T00:00:00.000001+00:00").data  # fmt: skip


def _line(**fields: object) -> bytes:
    plain = {
        "time": "2026-01-01T00:00:00+00:00",
        "who": "a@b",
        "op": "add",
        "ref": "tone",
        "before": None,
        "after": A,
    }
    return json.dumps({**plain, "why": "add tone", "id": "0123", "about": "", **fields}).encode() + b"\n"  # fmt: skip


_JOURNAL = b"".join((
    _line(), _line(op="done", ref="", after=None, id="1", about="0123"),
    _line(op="tag", ref="a/legal:v1", id="2"), _line(op="tag", ref="tone", before=A, after=B, id="2"),
    _line(op="cancel", ref="", after=None, id="3", about="2"),
    _line(op="gc", ref="", after=None, id="4", about=f"sweep {TRASH}"), _line(op="done", ref="", after=None, id="5", about="4"),
    _line(op="rm", before=A, after=None, id="6"),
))  # fmt: skip
_ATTESTED = json.dumps({"time": "2026-01-01T00:00:00+00:00", "subject": A, "digest": B, "type": "note"}).encode() + b"\n"  # fmt: skip
_LEASE = json.dumps({
    "kind": "serve", "digests": [A, B], "about": "a server", "created": "2026-01-01T00:00:00+00:00", "pid": 12,
    "host": os.uname().nodename, "boot": "x", "space": "pid:[1]", "started": 3, "id": "serve-1",
}).encode()  # fmt: skip
_SETTINGS = b'[store]\ngrace = "14d"\ntrash = "2.5w"\nkeep_releases = 3\n'
_PLACES = b"".join(json.dumps({"digest": A, "folder": folder}).encode() + b"\n" for folder in ("/nowhere/tone", "rel", "~", "a\0b"))  # fmt: skip
_CONTENTS = json.dumps([f"manifests/sha256/ab/{A[7:]}", f"blobs/sha256/cd/{B[7:]}", f"views/{A[7:]}"]).encode()  # fmt: skip
_RECORD = json.dumps({"repo": "org/base", "revision": None, "path": "/nowhere", "fingerprint": A, "parameters": 3, "architecture": None}).encode()  # fmt: skip
_SMALL = pair("q_proj", rank=4, width=4, out=4, fill=b"\0\0\x80?")
_TENSOR_FILES = (
    sound_file(_SMALL, padding=5),
    sound_file({"a": ("BF16", [2, 1], b"\1\2\3\4"), "b": ("F8_E4M3", [3], b"abc"), "c": ("I64", [0], b""), "d": ("C64", [], bytes(8))}),
    file_of({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
    file_of({"__metadata__": {"format": "pt"}}, length=2**63),
    file_of(b'{"a":' + DEEP + b"}"),
    sound_file({"a" * 5000: ("F32", [1], bytes(4))}),
)  # fmt: skip
_SINGLE_FILES = tuple(
    file_of({"__metadata__": {METADATA_KEY: metadata}, **table_of(tensors)}, b"".join(data for _, _, data in tensors.values()))
    for metadata, tensors in (
        (_config().decode(), _SMALL),
        (json.dumps({"transformer.r": 4, "transformer.peft_type": "LORA"}), {f"transformer.{k}": v for k, v in _SMALL.items()}),
        ("\ud800", _SMALL),
    )
)  # fmt: skip
_CONFIGS = (
    _config(),
    _config(rank_pattern={r"^model\.layers\.[0-9]+\.mlp$": 2}, alpha_pattern={"(q|k)_proj": 1.5}, use_rslora=True),
    _config(rank_pattern={"(a+)+$": 2, "(.*.*.*.*)*x": 1}, modules_to_save=["head"], revision="0123456789" * 4),
    _config(rank_pattern={r"(?:q_proj){e<=3}": 2, "[[:alpha:]]+": 1, "(?i)Q": 3, "x{99999}": 1, "(x{1000}){1000}": 1}),
    _config(lora_alpha=1e308, use_dora=True, init_lora_weights="pissa", base_model_name_or_path="/a/path"),
    _with(_config(), "other", DEEP),
    b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}",
)  # fmt: skip

SEEDS: Mapping[str, tuple[bytes, ...]] = {
    "manifest": (_MANIFEST, _with(_MANIFEST, "other", DEEP)),
    "attestation": (_ATTESTATION, _with(_ATTESTATION, "other", DEEP)),
    "ref": (f"{A}\n".encode(), b"sha256:", b""),
    "journal": (_JOURNAL, _JOURNAL[:-20], _with(_line(), "other", DEEP) + b"\n"),
    "catalogue": (_JOURNAL, _ATTESTED, _with(_ATTESTED, "other", DEEP) + b"\n"),
    "lease": (_LEASE, _with(_LEASE, "other", DEEP)),
    "settings": (_SETTINGS, b"a=" + b"[" * 5000, b"a=" + b"9" * 5000),
    "places": (_PLACES, _with(_PLACES.partition(b"\n")[0], "other", DEEP)),
    "trash contents": (_CONTENTS, b'["../../x"]', b'["/etc/passwd"]', b'[""]', b"[[]]", DEEP),
    "safetensors": _TENSOR_FILES,
    "config": _CONFIGS,
    "adapter": (_config() + SPLIT + _TENSOR_FILES[0],),
    "single file": _SINGLE_FILES,
    "base": (b'{"model_type": "gpt2", "tie_word_embeddings": true}', b'{"a":' + DEEP + b"}"),
    "base index": (b'{"weight_map": {"q.weight": "model-1.safetensors"}}',),
    "base record": (_RECORD, b"{}"),
    "tensor name": (
        b"base_model.model.q.lora_A.default.weight",
        b"a.modules_to_save.b.modules_to_save.c.weight",
        b"a" + b".modules_to_save" * 2000 + b".x",
    ),
    "name": (b"support/tone:v2", b"tone@sha256:1f2e3d", b"a\x00b", b"con.x"),
    "address": (
        b"hf://org/repo@main/folder",
        b"hf://gpt2@refs%2Fpr%2F1/a/b",
        b"hf://models/a/b",
        b"hf://models/models/a@v1/b",
    ),
}
"""The readers' names (methods of `Readers`), and what each is first given: something sound, then what was a fault once."""
NAMES = tuple(SEEDS)
BINARY = frozenset({"safetensors", "adapter", "single file"})
