"""How fast a store of 10,000 adapters is found: `make bench-store`. No test: nothing here passes or fails.

Every number is the median of several runs and stands beside what it is compared with in the same minute, because the
machine has other things to do too. CPU seconds don't count what other processes did meanwhile.

The store is written in its own format, file by file, with few distinct blobs; the adapters differ in their manifests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub.base import BaseRegistry
from adapterhub.canonical import canonical_bytes
from adapterhub.manifest import FileEntry, make_attestation
from adapterhub.names import Name
from adapterhub.store import Store
from adapterhub.store.catalogue.cachefile import CacheFile
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.indexing import silently
from adapterhub.store.catalogue.search import Query, search
from adapterhub.store.catalogue.shapes import fill_shapes
from adapterhub.store.layout import FORMAT_VERSION, Layout
from tests.bench.timing import Timed, compare, inside, medians, process
from tests.support.adapters import AdapterMaker, llama_modules
from tests.support.models import ModelMaker

COLUMNS = ("kind", "label", "rank", "alpha", "targets", "size", "added", "note")
"""What `ls` shows."""
PROGRAM = Path(sys.executable).with_name("adapterhub")
TEAMS, CARDS, PARENTS_EVERY = 40, 50, 10
TARGETS = (("q_proj", "v_proj"), ("q_proj",), ("gate_proj", "up_proj"), ())
WORDS = [
    "support",
    "legal",
    "polite",
    "formal",
    "sql",
    "medical",
    "triage",
    "japanese",
    "french",
    "summary",
    "tools",
    "math",
    "code",
]


def write_store(home: Path, count: int) -> None:
    """A store of `count` adapters at `home`, as the product would have written it, but without waiting for the disk."""
    layout = Layout(home)
    blobs = [list(_blobs(layout, home.parent / "made", kind)) for kind in range(len(TARGETS) * 2)]
    cards = [_blob(layout, _card(number).encode()) for number in range(CARDS)]
    (layout.store / "tmp").mkdir(parents=True)
    layout.journal.parent.mkdir()
    layout.version.write_text(f"{FORMAT_VERSION}\n")
    (layout.store / "id").write_text(hashlib.sha256(str(home).encode()).hexdigest()[:32] + "\n")
    digests: list[str] = []
    with layout.journal.open("w") as journal, layout.attested.open("w") as attested:
        for number in range(count):
            digest, told = _adapter(layout, number, blobs, cards, digests)
            name = Name(f"team{number % TEAMS}", f"adapter-{number}")
            path = layout.ref(name)
            path.parent.mkdir(parents=True)
            path.write_text(f"{digest}\n")
            digests.append(digest)
            common = {"time": "2026-01-01T00:00:00+00:00", "who": "bench@here"}
            change = {
                "op": "add",
                "ref": str(name),
                "before": None,
                "after": digest,
                "why": "bench",
            }
            line = {**common, **change, "id": f"{number:012x}", "about": ""}
            done = {**common, "op": "done", "ref": "", "before": None, "after": None, "why": ""}
            end = {**done, "id": f"f{number:011x}", "about": f"{number:012x}"}
            journal.write(f"{json.dumps(line)}\n{json.dumps(end)}\n")
            said = {"time": common["time"], "subject": digest, "digest": told, "type": "provenance"}
            attested.write(json.dumps(said) + "\n")


def _adapter(
    layout: Layout,
    number: int,
    blobs: Sequence[Sequence[FileEntry]],
    cards: Sequence[FileEntry],
    before: Sequence[str],
) -> tuple[str, str]:
    """Writes manifest and provenance; returns the digests of both."""
    files = [*blobs[number % len(blobs)], cards[number % len(cards)]]
    rank, targets = 4 << (number % 5), TARGETS[number % len(TARGETS)] or ("all",)
    document = {
        "schema": "adapterhub.manifest/1",
        "kind": "lora",
        "base": {"repo": f"org/base-{number % 7}", "revision": None, "trained_on": None},
        "lora": {
            "rank": rank, "alpha": 2 * rank, "targets": list(targets), "modules": 4, "parameters": 1000 * rank,
            "dtype": "float32",
        },
        "files": [{"path": f.path, "digest": f.digest, "size": f.size} for f in files],
        "content": "sha256:" + hashlib.sha256(str(number).encode()).hexdigest(),
    }  # fmt: skip
    data = canonical_bytes(document)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    _write(layout.manifest(digest), data)
    body: dict[str, Any] = {"event": "imported", "claimed_base": document["base"], "notes": []}
    if number % PARENTS_EVERY == PARENTS_EVERY - 1:
        parents = [{"digest": one, "name": one[:12]} for one in before[-2:]]
        body = {"event": "merged", "recipe": {"method": "ties"}, "parents": parents}
    told = make_attestation(digest, "provenance", body, "2026-01-01T00:00:00.000000+00:00")
    _write(layout.attestations(digest) / told.digest.removeprefix("sha256:"), told.data)
    return digest, told.digest


def _blobs(layout: Layout, made: Path, kind: int) -> Iterator[FileEntry]:
    modules = llama_modules(*TARGETS[kind % len(TARGETS)])
    folder = AdapterMaker(made)(f"kind{kind}", modules=modules, rank=4, seed=kind)
    for path in sorted(folder.iterdir()):
        entry = _blob(layout, path.read_bytes())
        yield FileEntry(path.name, entry.digest, entry.size)


def _blob(layout: Layout, data: bytes) -> FileEntry:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    _write(layout.blob(digest), data)
    return FileEntry("README.md", digest, len(data))


def _card(number: int) -> str:
    words = " ".join(WORDS[(number * 7 + place) % len(WORDS)] for place in range(6))
    return (
        f"---\nlicense: apache-2.0\n---\n# Adapter for {words}\n"
        + "It was trained with care. " * 40
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)


def bench_processes(runs: int) -> None:
    """Whole processes, with a warm catalogue."""
    compare(
        medians(
            runs,
            lambda: process("python -c 'import typer'", [sys.executable, "-c", "import typer"]),
            lambda: process("adapterhub ls", [PROGRAM, "ls"]),
            lambda: process("adapterhub ls --json", [PROGRAM, "ls", "--json"]),
            lambda: process("adapterhub ls polite", [PROGRAM, "ls", "polite"]),
            lambda: process("adapterhub ls -q adapter-77", [PROGRAM, "ls", "-q", "adapter-77"]),
        )
    )


def bench_queries(home: Path, runs: int) -> None:
    """Queries inside a process: the time a person waits for beside start and printing."""
    catalogue = Catalogue(Layout(home))
    folder = ModelMaker(home.parent / "models").llama()
    base = BaseRegistry(home / "bases").open(str(folder))
    base.fingerprint  # noqa: B018 - part of opening the base
    filled = inside("reading the shapes, once", lambda: catalogue.ask(
        lambda db: fill_shapes(db, catalogue.layout, silently)
    ))  # fmt: skip

    def asked(what: str, query: Query) -> Callable[[], Timed]:
        return lambda: inside(
            what, lambda: catalogue.ask(lambda db: search(db, query, {}, COLUMNS))
        )

    timed = medians(
        runs,
        asked("everything", Query()),
        asked("text: polite legal", Query(text="polite legal")),
        asked("text: adapter-77", Query(text="adapter-77")),
        asked("fits a base", Query(fits=base)),
        asked("target q_proj, rank 8..32", Query(targets=("q_proj",), ranks=(8, 32))),
        asked("unused", Query(unused_since=time.time())),
    )
    compare([*timed, filled])


def bench_rebuild(home: Path, runs: int) -> None:
    """The catalogue from nothing, beside reading every manifest without one; and what one change costs."""
    layout, store = Layout(home), Store.open(home)

    def rebuild() -> Timed:
        CacheFile(layout).path.unlink(missing_ok=True)
        return inside("catalogue from nothing", lambda: Catalogue(layout).ask(lambda db: None))

    def change() -> Timed:
        resolved = store.resolve("team1/adapter-1")
        store.tag(resolved, Name("team1", "adapter-1", f"t{time.monotonic_ns()}"))
        return inside("catalogue after one change", lambda: Catalogue(layout).ask(lambda db: None))

    compare(
        medians(
            runs,
            lambda: inside("Store.entries(), without a catalogue", store.entries),
            rebuild,
            change,
            lambda: inside("nothing has changed", lambda: Catalogue(layout).ask(lambda db: None)),
        )
    )
    print(f"{CacheFile(layout).path.stat().st_size / 1e6:.1f} MB in the cache\n")


@contextmanager
def _place(kept: Path | None) -> Iterator[Path]:
    """Where the store is made: a temporary folder, or one that is kept for the next time."""
    folder = kept or Path(tempfile.mkdtemp(prefix="adapterhub-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["ADAPTERHUB_HOME"] = str(folder / "home")
    os.environ["ADAPTERHUB_CACHE"] = str(folder / "cache")
    try:
        yield folder
    finally:
        if kept is None:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--keep", type=Path, help="a folder for the store, reused when it is there")
    chosen = parser.parse_args()
    with _place(chosen.keep) as folder:
        home = folder / "home"
        if not (home / "store").exists():
            made = inside("", lambda: write_store(home, chosen.adapters))
            print(f"{chosen.adapters} adapters written in {made.wall:.1f} s\n")
        bench_rebuild(home, max(1, chosen.runs // 3))
        time.sleep(2.5)  # folders that changed a moment ago are listed again
        bench_queries(home, chosen.runs)
        bench_processes(chosen.runs)


if __name__ == "__main__":
    main()
