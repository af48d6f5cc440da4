"""How the Jobs and History places and what opens from them look, as SVG, in two sizes, dark and light.

After an intended change: pytest tests/tui/test_snapshots_work.py --snapshot-update, then look at the pictures.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.support.sample import NOON
from tests.support.screen import open_app, settled

LOOKS = [
    pytest.param((size, theme), id=f"{size[0]}x{size[1]}-{theme.removeprefix('textual-')}")
    for size in ((80, 24), (140, 45))
    for theme in ("textual-dark", "textual-light")
]
Look = tuple[tuple[int, int], str]
Looks = Callable[..., bool]


def _run(store: Store, kind: str, minute: int, *events: dict[str, Any]) -> Path:
    """A run of noon, with an event every two minutes."""
    folder = store.runs_dir / f"{kind}-20260101-12{minute:02}00-abcde{minute % 10}"
    folder.mkdir(parents=True)
    lines = [{"event": "started", "kind": kind, **events[0]}, *events[1:]]
    with (folder / "events.jsonl").open("w") as file:
        for at, line in enumerate(lines):
            when = datetime.fromtimestamp(NOON + 60 * minute + 120 * at, UTC)
            file.write(json.dumps({"time": when.isoformat(timespec="milliseconds"), **line}) + "\n")
    return folder


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The sample store with work in it, all of it long ago and by somebody else."""
    both = store.resolve("desk/both").digest
    merged = ["merge", "support/tone", "legal/terms", "--method", "ties", "--name", "desk/both"]
    merge = _run(
        store, "merge", 1, {"title": "Merge support/tone and legal/terms (ties)", "command": merged},
        {"event": "stored", "name": "desk/both", "digest": both, "energy_kept": 0.993106},
        {"event": "done"},
    )  # fmt: skip
    (merge / "output").write_text("Preparing …\nMerging (ties) …\n")
    _run(
        store, "export", 2, {"title": "Export desk/both to model", "command": ["export", "desk/both", "-o", "model"]},
        {"event": "progress", "what": "Writing model", "done": 200e6, "total": 538e6, "unit": "bytes"},
        {"event": "failed", "what": "There is no space left for model.", "why": "No name was changed, and the temporary files are gone.",
         "hint": "Make room (df -h), then run the same command again."},
    )  # fmt: skip
    _run(store, "train", 3, {"title": "train legal/terms"}, {"event": "interrupted"})
    running = _run(
        store, "train", 4, {"title": "train support/tone"},
        {"event": "progress", "what": "training support/tone", "done": 31, "total": 50, "unit": ""},
    )  # fmt: skip
    _run(store, "serve", 5, {"title": "serve support/tone"})
    later = datetime.fromtimestamp(NOON + 3600, UTC)
    monkeypatch.setattr("adapterhub.tui.running.look.now", lambda: later)
    _same_journal(store.layout.journal)
    lock = os.open(running, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield store
    os.close(lock)


def _same_journal(journal: Path) -> None:
    """What was done, at the same times and by the same somebody whenever this runs."""
    places: dict[str, str] = {}
    lines = []
    for line in journal.read_text().splitlines():
        change = json.loads(line)
        change["id"] = places.setdefault(change["id"], f"{len(places):012}")
        change["about"] = places.get(change["about"], change["about"])
        if change["op"] == "add":  # it says from which folder
            change["why"] = f"add {change['ref'].replace('/', '-')}-lora"
        lines.append(
            json.dumps({**change, "time": "2026-01-01T12:00:00+00:00", "who": "user@desk"})
        )
    journal.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def looks(snap_compare: Callable[..., bool]) -> Looks:
    """Whether the application looks as it did, after `keys`."""

    def compare(store: Store, look: Look, *keys: str) -> bool:
        async def press(pilot: Pilot[Any]) -> None:
            for key in keys:
                await pilot.press(key)
                await settled(pilot)

        app = open_app(store)
        app.theme = look[1]
        return snap_compare(app, terminal_size=look[0], run_before=press)

    return compare


@pytest.mark.parametrize("look", LOOKS)
def test_jobs(store: Store, looks: Looks, look: Look) -> None:
    assert looks(store, look, "4", "j")


@pytest.mark.parametrize("look", LOOKS)
def test_a_run_that_failed(store: Store, looks: Looks, look: Look) -> None:
    assert looks(store, look, "4", "j", "j", "j", "enter")


def test_a_run_that_is_done(store: Store, looks: Looks) -> None:
    assert looks(store, ((140, 45), "textual-dark"), "4", "G", "enter")


@pytest.mark.parametrize("look", LOOKS)
def test_history(store: Store, looks: Looks, look: Look) -> None:
    assert looks(store, look, "5", "j")


@pytest.mark.parametrize("look", LOOKS)
def test_what_a_collection_would_take(store: Store, looks: Looks, look: Look) -> None:
    (store.home / "config.toml").write_text('[store]\ngrace = "0s"\nkeep_releases = 0\n')
    store.remove([parse_name("odd/stranger"), parse_name("tools/calls")])
    assert looks(Store.open(store.home), look, "5", "c")


def test_a_check_that_found_nothing(store: Store, looks: Looks) -> None:
    assert looks(store, ((80, 24), "textual-light"), "5", "f")
