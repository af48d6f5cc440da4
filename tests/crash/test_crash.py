"""A crash at every point of every command that writes: killed, or without power, or told to stop, or out of space.

Whatever the point: every name leads to a whole adapter, what was acknowledged is there, and what was not is there whole or
not at all. The next command ends what was begun, the same command again does what it should have done, and fsck agrees.
FACTS: a store of Ollama's protocol broke at 2-3 of 38 kill points; this protocol must break at none.

These take a sample; `make crash` takes every point.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.commands import COMMANDS, write_adapters

ROOT = Path(__file__).parents[2]
FEW = ("add", "rm of several", "gc", "undo of rm")
CRASHES = ("kill", "power", "power, zeros", "power, lost names", "power, some lost", "power later")
FAILURES = ("interrupt", "full")

Rows = list[dict[str, Any]]
Report = Callable[[str, object], None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapters that the commands add."""
    folder = tmp_path_factory.mktemp("adapters") / "adapters"
    write_adapters(folder)
    return folder


def sweep(folders: Path, *options: str) -> Rows:
    """Runs sweeps in a process of its own, which forks a child for every point; returns a row for each command and mode."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--json", "--folders", str(folders), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=280,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == int(any(row["violations"] for row in rows)), done.stderr
    return rows


def judge(rows: Rows, report: Report) -> None:
    """Tells how many points there were (the run's summary shows that), and fails with all that was wrong."""
    wrong = []
    for row in rows:
        report("crash points", f"{row['command']}, {row['mode']}: {row['events'] + row['lines']}")
        wrong += [f"{row['command']}, {row['mode']}: {what}" for what in row["violations"]]
    # A crash after the end is counted too: one more is the least that is before it.
    assert all(row["events"] > (row["mode"] in CRASHES) for row in rows)
    assert wrong == [], f"{len(wrong)} violations\n" + "\n".join(wrong)


def test_no_crash_harms_the_store(folders: Path, record_property: Report) -> None:
    options = [option for mode in CRASHES for option in ("--mode", mode)]
    rows = sweep(folders, *FEW, *options, "--events", "2", "--lines", "1")
    assert {(row["command"], row["mode"]) for row in rows} == {(c, m) for c in FEW for m in CRASHES}
    assert all(row["lines"] > 0 for row in rows)
    judge(rows, record_property)


def test_no_interrupt_and_no_full_disk_harms_the_store(
    folders: Path, record_property: Report
) -> None:
    rows = sweep(folders, *FEW, "--mode", "interrupt", "--mode", "full", "--events", "3")
    assert {(row["command"], row["mode"]) for row in rows} == {
        (c, m) for c in FEW for m in FAILURES
    }
    judge(rows, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_no_fault_at_more_points_harms_the_store(
    command: str, folders: Path, record_property: Report
) -> None:
    rows = sweep(folders, command, "--events", "5", "--lines", "3")
    assert {row["mode"] for row in rows} == {*CRASHES, *FAILURES}
    judge(rows, record_property)


@pytest.mark.parametrize(
    ("writer", "blind", "sees", "events", "what"),
    [
        ("no fsync of files", "kill", "power", 10, r"isn't what its name says"),
        ("no fsync of folders", "power", "power, lost names", 2, r"after the end: acknowledged, but"),
        ("ref before manifest", None, "kill", 16, r"ref _/new/latest leads to no manifest"),
        ("written in place", None, "kill", 16, r"isn't what its name says|ref _/new/latest says ''"),
    ],
)  # fmt: skip
def test_a_wrong_writer_is_seen_by_the_mode_that_should_see_it(
    writer: str,
    blind: str | None,
    sees: str,
    events: int,
    what: str,
    folders: Path,
    record_property: Report,
) -> None:
    modes = [option for mode in (blind, sees) if mode for option in ("--mode", mode)]
    rows = sweep(folders, "add", "--wrong", writer, *modes, "--events", str(events), "--lines", "0")
    found = {row["mode"]: row["violations"] for row in rows}
    record_property("crash points", f"{writer}, {sees}: {len(found[sees])} violations")
    assert any(re.search(what, violation) for violation in found[sees]), found[sees]
    if blind:
        assert found[blind] == []
