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
FAST_POINTS = 6
"""Points a sweep takes in the fast run, of each fault; the slow run takes all."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """In memory where the system has that: thousands of fsyncs on a disk would take minutes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="adapterhub-faults-", dir=memory if memory.is_dir() else None
    ) as folder:
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


def sweep(place: Path, template: Path, **order: Any) -> None:
    """Runs the sweep in a process of its own, says how many points it took, and fails with all that was wrong."""
    work = Path(tempfile.mkdtemp(dir=place))
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.faults", str(template), str(work)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=280,
    )
    shutil.rmtree(work)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    points = [line for line in lines if "at" in line]
    for fault in order["faults"]:
        mine = [line for line in lines if line["fault"] == fault]
        sys.stdout.write(
            f"{' '.join(order['command'])}: {fault} at {len(mine) - 1} of {mine[0]['of']} points\n"
        )
        assert len(mine) > 1 or mine[0]["of"] == 0
    wrong = [
        f"{p['fault']} at {p['at']} ({p['event']}): {problem}"
        for p in points
        for problem in p["wrong"]
    ]
    assert not wrong, f"{len(wrong)} things wrong at {len(points)} points:\n" + "\n".join(wrong)


def command(name: str, folders: dict[str, Path]) -> tuple[list[str], list[list[str]]]:
    """A command, and what must work after a fault in it: usually the same again."""
    new = ["add", str(folders["new"]), "--name"]
    return {
        "add": ([*new, "new"], [["ls"], [*new, "new"]]),
        "add in a namespace": ([*new, "a/new:v1"], [["ls"], [*new, "a/new:v1"]]),
        "add --move": ([*new, "old", "--move"], [["log"], [*new, "old", "--move"]]),
        "add again": (["add", str(folders["old"]), "--name", "old"], [["ls"]]),
        "add under another name": (
            ["add", str(folders["old"]), "--name", "more"],
            [["add", str(folders["old"]), "--name", "more"]],
        ),
        "tag": (["tag", "old", "kept"], [["ls"], ["tag", "old", "kept"]]),
        "tag --move": (
            ["tag", f"old@{folders['digest of other']}", "old:prod", "--move"],
            [["ls"]],
        ),
        "rm": (["rm", "old:prod", "--yes"], [["ls"], ["show", "old"]]),
    }[name]


COMMANDS = (
    "add",
    "add in a namespace",
    "add --move",
    "add again",
    "add under another name",
    "tag",
    "tag --move",
    "rm",
)


def order(name: str, template: Path, folders: dict[str, Path]) -> dict[str, Any]:
    digest = Store.open(template).log()[0].after or ""
    words, after = command(name, {**folders, "digest of other": Path(digest[7:19])})
    return {"command": words, "after": after}


@pytest.mark.parametrize("name", ["add", "tag --move", "rm"])
def test_no_fault_harms_the_store(
    name: str, place: Path, template: Path, folders: dict[str, Path]
) -> None:
    sweep(place, template, **order(name, template, folders), faults=FAULTS, points=FAST_POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_no_fault_at_any_point_harms_the_store(
    name: str, fault: str, place: Path, template: Path, folders: dict[str, Path]
) -> None:
    sweep(place, template, **order(name, template, folders), faults=[fault], points=None)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_harms_the_making_of_a_store(
    fault: str, place: Path, folders: dict[str, Path]
) -> None:
    empty = place / f"empty-{fault}"
    empty.mkdir()
    words = ["add", str(folders["new"]), "--name", "new"]
    sweep(place, empty, command=words, after=[["ls"], words], faults=[fault], points=None)
