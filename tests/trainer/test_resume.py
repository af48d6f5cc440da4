"""A training that was killed goes on as if nothing had happened: the same losses, the same adapter, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import NotFoundError, StoreLockedError
from adapterhub.evaluate.scoring import Score
from adapterhub.runs import EVENTS, Run, running
from adapterhub.store import Store
from adapterhub.trainer.checkpoints import newest
from adapterhub.trainer.watch import Course, Scored, drop_lost
from tests.cli.calling import wait_until
from tests.trainer.conftest import events
from tests.trainer.test_interrupt import events_text

if TYPE_CHECKING:
    from tests.trainer.conftest import Training

PROGRAM = str(Path(sys.executable).with_name("adapterhub"))
KINDS: list[dict[str, Any]] = [
    {"dropout": 0.1, "packing": False, "batch_size": 2, "neftune_alpha": 5},
    {"method": "qlora", "dropout": 0.1, "scheduler": "cosine"},
    {"kind": "adalora"},
    {"init": "pissa", "loraplus_ratio": 4},
    {"kind": "dora", "optimizer": "adamw_8bit"},
]


def losses(told: list[dict[str, Any]]) -> dict[int, float]:
    """The loss of every step; of a step taken twice, the later one."""
    return {e["step"]: e["loss"] for e in told if e["event"] == "step"}


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_a_resumed_run_is_the_uninterrupted_one(
    changes: dict[str, Any], train_tiny: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.trainer.watch import Watch

    changes = {"save_every": 3, "eval": {"rows": 4, "every": 4}, **changes}
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    expected = train_tiny(to=whole, **changes)
    log = Watch.on_log

    def die(self: Watch, args: Any, state: Any, *rest: Any, **more: Any) -> Any:
        if state.global_step == 8:
            raise Killed
        return log(self, args, state, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "on_log", die)
        with pytest.raises(Killed):
            train_tiny(to=broken, **changes)
    (run,) = broken.runs_dir.iterdir()
    with (run / EVENTS).open("a") as file:  # killed in the middle of an event
        file.write('{"time": "20')
    resumed = train_tiny(to=broken, resume=True, **changes)
    told = events(broken)
    assert [e["step"] for e in told if e["event"] == "resumed"] == [6]
    assert losses(told) == losses(events(whole))
    assert resumed.digest == expected.digest
    assert (resumed.metrics, resumed.kept) == (expected.metrics, expected.kept)
    assert not list((broken.runs_dir).glob("*/scratch"))


@pytest.mark.slow
def test_a_run_killed_by_the_system_goes_on_by_the_command_it_was_begun_with(
    store: Store, write_recipe: Callable[..., Path], train_tiny: Training, tmp_path: Path
) -> None:
    changes = {"steps": 150, "save_every": 5, "eval": {"rows": 2, "every": 50}}
    command = [PROGRAM, "train", str(write_recipe(**changes))]
    environment = {**os.environ, "ADAPTERHUB_HOME": str(store.home), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert wait_until(lambda: events_text(store.home).count('"checkpoint"') > 4, seconds=200)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(
        [*command, "--resume", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told = events(store)
    (step,) = [e["step"] for e in told if e["event"] == "resumed"]
    assert step >= 20
    uninterrupted = train_tiny(to=Store(tmp_path / "other"), **changes)
    assert json.loads(done.stdout)["digest"] == uninterrupted.digest


def test_there_must_be_something_to_resume(train_tiny: Training, store: Store) -> None:
    with pytest.raises(NotFoundError, match="no unfinished run"):
        train_tiny(resume=True)
    assert not store.runs_dir.exists() or not list(store.runs_dir.iterdir())


def test_a_checkpoint_counts_only_when_it_is_complete(tmp_path: Path) -> None:
    from adapterhub.trainer.checkpoints import seal

    for step in (9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(bytes(100))
        if step < 11:  # killed before the seal
            seal(folder, step)
    assert newest(tmp_path) == (tmp_path / "checkpoint-10", 10)
    (tmp_path / "checkpoint-10" / "optimizer.pt").write_bytes(bytes(99))  # cut by a power loss
    assert newest(tmp_path) == (tmp_path / "checkpoint-9", 9)
    assert newest(tmp_path / "absent") is None


def test_a_run_is_worked_on_by_one_process(tmp_path: Path) -> None:
    with (
        running(tmp_path, "train", {}) as run,
        pytest.raises(StoreLockedError, match="another process"),
        running(tmp_path, "train", {}, again=Run(run.id, run.path)),
    ):
        pass


def test_a_run_that_had_ended_early_goes_straight_to_the_store(
    train_tiny: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.errors import OutOfSpaceError
    from adapterhub.trainer import finish

    changes: dict[str, Any] = {
        "steps": 60, "learning_rate": 0.1, "scheduler": "constant", "eval": {"rows": 6, "every": 4, "patience": 2},
    }  # fmt: skip
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    expected = train_tiny(to=whole, **changes)
    assert expected.steps < 60

    def full(*_: Any, **__: Any) -> None:
        raise OutOfSpaceError("The disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(finish, "_add", full)
        with pytest.raises(OutOfSpaceError):
            train_tiny(to=broken, **changes)
    resumed = train_tiny(to=broken, resume=True, **changes)
    assert (resumed.digest, resumed.steps, resumed.kept) == (
        expected.digest, expected.steps, expected.kept,
    )  # fmt: skip


def test_what_is_gone_from_the_runs_folder_is_not_trusted(tmp_path: Path) -> None:
    run = Run("r", tmp_path)
    for step in (2, 4, 6):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        if step != 2:
            (folder / "adapter_config.json").write_text("{}")
    course = Course(saved=[2, 4], evaluations=[Scored(s, Score(s, 1, 1)) for s in (0, 2, 4)])
    assert drop_lost(run, course) == [2]
    assert course.saved == [4]
    assert [e.step for e in course.evaluations] == [0, 4]
    assert not (tmp_path / "checkpoints" / "step-6").exists()  # it will be computed again
