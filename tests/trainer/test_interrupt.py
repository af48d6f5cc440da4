"""Ctrl-C in a training: the store is as it was, and the adapter so far is kept where the message says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import ExitCode
from tests.cli.calling import PROGRAM, wait_until
from tests.support.chat import chat_rows, write_rows

if TYPE_CHECKING:
    from adapterhub.store import Store

pytestmark = pytest.mark.slow  # each is a process of its own that imports the training libraries


def files(folder: Path) -> dict[str, int]:
    """Everything below `folder` with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def events_text(home: Path) -> str:
    """The events of all runs so far."""
    return "".join(path.read_text() for path in home.glob("runs/*/events.jsonl"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_keeps_its_adapter_and_leaves_the_store_alone(
    number: int,
    store: Store,
    write_recipe: Callable[..., Path],
    make_adapter: Callable[..., Path],
    base: Path,
    tmp_path: Path,
) -> None:
    store.add_folder(make_adapter("older"), name="older")
    before = files(store.home / "store")
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    caches = {
        key: value for key, value in os.environ.items() if key not in ("HF_HOME", "XDG_CACHE_HOME")
    }
    process = subprocess.Popen(
        [PROGRAM, "train", str(write_recipe(steps=100_000))],
        env={**caches, "ADAPTERHUB_HOME": str(store.home), "HOME": str(nobody)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_until(
        lambda: '"event": "step"' in events_text(store.home) or process.poll() is not None,
        seconds=200,
    )
    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (ExitCode.INTERRUPTED, ""), err
    assert files(store.home / "store") == before
    assert [entry.name.path for entry in store.entries()] == ["older"]
    (run,) = store.runs_dir.iterdir()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[-2:]] == ["kept", "interrupted"]
    said = re.search(r"after step (\d+) of 100000:  adapterhub train (\S+) --resume", err)
    assert said is not None, err
    assert (int(said[1]), said[2]) == (events[-2]["step"], str(tmp_path / "recipe.yaml"))
    kept = re.search(r"adapterhub add (\S+) --name", err)
    assert kept is not None, err
    assert store.add_folder(Path(kept[1]), name="saved", base=str(base)).created
    assert files(nobody) == {}  # nothing is written to the home directory


def test_a_second_interrupt_stops_at_once(
    store: Store, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """One step is a whole epoch here, about half a minute: the first Ctrl-C waits for it, the second doesn't."""
    path = write_recipe(gradient_accumulation=1_000_000, packing=False, steps=1, eval={"rows": 0})
    write_rows(tmp_path / "data.json", chat_rows(4000))
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [PROGRAM, "train", str(path)],
            env={**os.environ, "ADAPTERHUB_HOME": str(store.home)},
            stderr=stderr,
        )
    try:
        assert wait_until(lambda: '"event": "training"' in events_text(store.home), seconds=200)
        process.send_signal(signal.SIGINT)
        assert wait_until(lambda: "Ctrl-C again stops at once" in said.read_text())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    finally:
        process.kill()
        process.wait()
    assert '"event": "step"' not in events_text(store.home)
    assert store.entries() == []
