"""A Hub of this test's own, and the program that adds from it, with a Hugging Face cache of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapterhub.store import Store
from tests.cli.calling import Said, run
from tests.remote.hub_server import HubServer
from tests.support.adapters import AdapterMaker

TOKEN = "hf_thisTokenMustNeverBeSeen"


@dataclass(frozen=True)
class Machine:
    """A machine with an empty store and an empty cache, which knows one Hub and has a token for it."""

    hub: HubServer
    root: Path

    @property
    def settings(self) -> dict[str, str]:
        """The environment that makes it this machine."""
        return {
            "ADAPTERHUB_HOME": str(self.home),
            "HF_HOME": str(self.root / "hf"),
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": TOKEN,
            "OMP_NUM_THREADS": "1",
        }

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def cache(self) -> Path:
        return self.root / "hf" / "hub"

    def add(self, *arguments: str | Path, **environment: str) -> Said:
        """`adapterhub add ARGUMENTS`, as a program: huggingface_hub reads its settings when it is imported."""
        return run("add", *arguments, timeout=120, **{**self.settings, **environment})

    def added(self, *arguments: str | Path, **environment: str) -> dict[str, Any]:
        """As `add`, which has to succeed; what it said on stdout."""
        said = self.add(*arguments, "--json", **environment)
        assert said.code == 0, said.err
        found: dict[str, Any] = said.json
        return found

    def stored(self, name: str) -> dict[str, bytes]:
        """The files of an adapter in the store, read without the product's code."""
        ref = self.home / "store" / "refs" / f"{name}/latest"
        manifest = json.loads(self._at("manifests", ref.read_text().strip()).read_bytes())
        return {
            entry["path"]: self._at("blobs", entry["digest"]).read_bytes()
            for entry in manifest["files"]
        }

    def attested(self, digest: str, kind: str = "provenance") -> list[dict[str, Any]]:
        """The bodies of an adapter's attestations of one kind."""
        folder = self.home / "store" / "attestations" / digest.removeprefix("sha256:")
        documents = [json.loads(path.read_bytes()) for path in sorted(folder.iterdir())]
        return [document["body"] for document in documents if document["type"] == kind]

    def _at(self, shelf: str, digest: str) -> Path:
        digits = digest.removeprefix("sha256:")
        return self.home / "store" / shelf / "sha256" / digits[:2] / digits


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def machine(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for key in [key for key in os.environ if key.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(key)
    Store.open(tmp_path / "home").prepare()
    return Machine(hub, tmp_path)


@pytest.fixture
def adapter(make_adapter: AdapterMaker) -> dict[str, bytes]:
    """An adapter's two files, as a repository has them."""
    return files_of(make_adapter("pushed"))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
