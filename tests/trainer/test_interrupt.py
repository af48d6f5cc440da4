"""Ctrl-C in a training: the store is as it was, and the adapter so far is kept where the message says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import ExitCode
from tests.cli.calling import PROGRAM, wait_until

if TYPE_CHECKING:
    from adapterhub.store import Store

pytestmark = pytest.mark.slow  # each is a process of its own that imports the training libraries


def files(folder: Path) -> dict[str, int]:
    """Everything below `folder` with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def step_events(home: Path) -> int:
    return sum(
        path.read_text().count('"event": "step"') for path in home.glob("runs/*/events.jsonl")
    )


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
        lambda: step_events(store.home) > 0 or process.poll() is not None, seconds=200
    )
    process.send_signal(number)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (ExitCode.INTERRUPTED, ""), err
    assert files(store.home / "store") == before
    assert [entry.name.path for entry in store.entries()] == ["older"]
    (run,) = store.runs_dir.iterdir()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events[-2:]] == ["kept", "interrupted"]
    said = re.search(r"after step (\d+) of 100000 is kept in (\S+);", err)
    assert said is not None, err
    assert int(said[1]) == events[-2]["step"] >= 1
    assert store.add_folder(Path(said[2]), name="saved", base=str(base)).created
    assert files(nobody) == {}  # nothing is written to the home directory


def test_a_second_interrupt_stops_at_once(
    store: Store, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Accumulation makes one step last for ever: the first Ctrl-C waits for it, the second doesn't."""
    path = write_recipe(steps=2, gradient_accumulation=1_000_000, batch_size=1)
    with (tmp_path / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            [PROGRAM, "train", str(path)], env={**os.environ, "ADAPTERHUB_HOME": str(store.home)}, stderr=stderr
        )  # fmt: skip
        training = '"event": "training"'
        assert wait_until(
            lambda: any(training in p.read_text() for p in store.home.glob("runs/*/events.jsonl")),
            seconds=200,
        )
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert wait_until(lambda: "Ctrl-C again" in (tmp_path / "stderr").read_text())
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
    assert store.entries() == []
