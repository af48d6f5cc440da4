"""A fault at every file-system event of add, tag and rm: killed, interrupted, or the disk full.

Whatever the point: every name leads to a whole adapter, what was acknowledged is there, and the same command again does
what it should have done. After an interrupt or a full disk the store is as before and no temporary file is left.
FACTS: a store of Ollama's protocol broke at 2-3 of 38 kill points; this protocol must break at none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.support.adapters import AdapterMaker

ROOT = Path(__file__).parents[2]
FAULTS = ("kill", "interrupt", "full")
FAST_POINTS = 9
"""Points a sweep takes in the fast run; the slow run takes all."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """In memory where the system has that: thousands of fsyncs on a disk would take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="adapterhub-faults-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def folders(place: Path) -> dict[str, Path]:
    make = AdapterMaker(place / "adapters")
    return {name: make(name, seed=seed) for seed, name in enumerate(("old", "new", "other"))}


@pytest.fixture(scope="module")
def template(place: Path, folders: dict[str, Path]) -> Path:
    """A store that has seen some life: two adapters, a second tag, a name that moved."""
    store = Store.open(place / "template")
    store.add_folder(folders["other"], name="old")
    store.add_folder(folders["old"], name="old", move=True)
    store.tag(store.resolve("old"), parse_name("old:prod"))
    return place / "template"


def sweep(place: Path, template: Path, **order: Any) -> tuple[int, list[dict[str, Any]]]:
    work = Path(tempfile.mkdtemp(dir=place))
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.faults", str(template), str(work)],
        input=json.dumps({"first": 0, "same": True, **order}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=280,
    )
    shutil.rmtree(work)
    assert done.returncode == 0, done.stderr
    first, *points = map(json.loads, done.stdout.splitlines())
    return first["events"], points


def command(name: str, folders: dict[str, Path]) -> tuple[list[str], list[list[str]]]:
    """A command, and what must work after a fault in it: usually the same again."""
    new = ["add", str(folders["new"]), "--name"]
    return {
        "add": ([*new, "new"], [["ls"], [*new, "new"]]),
        "add in a namespace": ([*new, "a/new:v1"], [["ls"], [*new, "a/new:v1"]]),
        "add --move": ([*new, "old", "--move"], [["log"], [*new, "old", "--move"]]),
        "add again": (["add", str(folders["old"]), "--name", "old"], [["ls"]]),
        "add under another name": (["add", str(folders["old"]), "--name", "more"], [["add", str(folders["old"]), "--name", "more"]]),
        "tag": (["tag", "old", "kept"], [["ls"], ["tag", "old", "kept"]]),
        "tag --move": (["tag", f"old@{folders['digest of other']}", "old:prod", "--move"], [["ls"]]),
        "rm": (["rm", "old:prod", "--yes"], [["ls"], ["show", "old"]]),
    }[name]


COMMANDS = ("add", "add in a namespace", "add --move", "add again", "add under another name", "tag", "tag --move", "rm")


def check(name: str, fault: str, place: Path, template: Path, folders: dict[str, Path], points: int | None) -> None:
    digest = Store.open(template).log()[0].after or ""
    words, after = command(name, {**folders, "digest of other": Path(digest[7:19])})
    events, _ = sweep(place, template, fault=fault, command=words, after=[], stride=10**6)
    stride = max(1, round(events / points)) if points else 1
    # Not the multiples of the stride alone: each fault has its own first point.
    found = sweep(
        place, template, fault=fault, command=words, after=after, stride=stride, first=FAULTS.index(fault) % stride,
        same=words in after,
    )[1]  # fmt: skip
    sys.stdout.write(f"{name}, {fault}: {len(found)} of {events} points\n")
    assert found
    wrong = [f"{point['at']} ({point['event']}): {problem}" for point in found for problem in point["wrong"]]
    assert not wrong, f"at {len(wrong)} of {len(found)} points:\n" + "\n".join(wrong)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["add", "tag --move", "rm"])
def test_no_fault_harms_the_store(name: str, fault: str, place: Path, template: Path, folders: dict[str, Path]) -> None:
    check(name, fault, place, template, folders, FAST_POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_fault_at_any_point_harms_the_store(
    name: str, fault: str, place: Path, template: Path, folders: dict[str, Path]
) -> None:
    check(name, fault, place, template, folders, None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_harms_the_making_of_a_store(fault: str, place: Path, folders: dict[str, Path]) -> None:
    empty = place / f"empty-{fault}"
    empty.mkdir()
    words = ["add", str(folders["new"]), "--name", "new"]
    events, found = sweep(place, empty, fault=fault, command=words, after=[["ls"], words], stride=1)
    sys.stdout.write(f"first add, {fault}: {len(found)} of {events} points\n")
    wrong = [f"{point['at']} ({point['event']}): {problem}" for point in found for problem in point["wrong"]]
    assert not wrong, f"at {len(wrong)} of {len(found)} points:\n" + "\n".join(wrong)
