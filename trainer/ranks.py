"""The processes of one training: which one this is, and how they agree.

Process 0 leads: it alone writes events, checkpoints and the store, prints, and scores what is held out. What the others
must know it shares through a group of its own over gloo, so that waiting for it (an evaluation may take an hour) never runs
into the time limit of the gradients' group, and a process that is lost is noticed at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from adapterhub.errors import AdapterHubError, ExternalToolError
from adapterhub.runs import Run

FOLDER = "ADAPTERHUB_RANKS"
"""The environment variable that names the folder in which the processes of `adapterhub train --processes` leave word."""
_PATIENCE = timedelta(days=7)
_TAIL = 400
"""Characters of a lost process's last words that are passed on."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; alone unless told otherwise."""

    index: int = 0
    count: int = 1
    sharded: bool = False
    """Whether each process holds a part of the model (FSDP), so that every use of it needs all of them."""
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that leads."""
        return self.index == 0

    @property
    def computes(self) -> bool:
        """Whether this process takes part in what one model is enough for: scoring, answering, saving."""
        return self.first or self.sharded

    def share(self, value: T) -> T:
        """The first process's `value`; every process must call it, and any picklable value will do."""
        if self.count == 1:
            return value
        from torch import distributed

        box: list[Any] = [value if self.first else None]
        distributed.broadcast_object_list(box, src=0, group=self.group)
        shared: T = box[0]
        return shared

    def any(self, flag: bool) -> bool:
        """Whether any process says so. It waits for all of them."""
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all processes, in float64; every process must bring as many."""
        if self.count == 1:
            return values
        import torch
        from torch import distributed

        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total, group=self.group)
        return [float(value) for value in total]

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.sum([0.0])

    @contextmanager
    def told_of_losses(self) -> Iterator[None]:
        """An error that only says that another process is gone becomes one that says which, and why where that is known."""
        try:
            yield
        except AdapterHubError:
            raise
        except Exception as error:
            lost = self._lost()
            if lost is None:
                raise
            index, words = lost
            raise ExternalToolError(
                f"Process {index} of {self.count} ended, and the training with it.",
                why=words,
                hint="Go on from the newest checkpoint with --resume.",
            ) from error

    def _lost(self) -> tuple[int, str] | None:
        folder = os.environ.get(FOLDER)
        if folder is None or not self.first:
            return None
        for index in range(1, self.count):
            code = outcome(Path(folder), index)
            if code is None and not _alive(Path(folder), index):
                return index, "It was killed: was there enough memory?"
            if code:
                log = Path(folder) / f"{index}.log"
                return index, log.read_text(encoding="utf-8", errors="replace").strip()[-_TAIL:]
        return None


@dataclass(frozen=True)
class SilentRun(Run):
    """The run as every process but the first sees it: a folder, of which it tells nothing."""

    def event(self, what: str, /, **fields: object) -> None:
        """Nothing."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@cache
def here() -> Ranks:
    """This process among those that the launcher started; the first call joins them, and waits until all are there."""
    if not launched() or os.environ["WORLD_SIZE"] == "1":
        return Ranks()
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped,unused-ignore]
    from torch import distributed

    state = PartialState(cpu=not torch.cuda.is_available())
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Ranks(state.process_index, state.num_processes, sharded(), group)


def sharded() -> bool:
    """Whether the launcher asks for FSDP, which cuts the model over the processes and moves the weights itself."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def leave_word(folder: Path, index: int, code: int) -> None:
    """Says how process `index` ended; its exit status gets lost when the others are stopped because of it."""
    _put(folder / f"{index}.json", {"code": code})


def outcome(folder: Path, index: int) -> int | None:
    """The exit code that process `index` left word of."""
    return _get(folder / f"{index}.json", "code")


def announce(folder: Path, index: int) -> None:
    """Says which process of the system process `index` is."""
    _put(folder / f"{index}.pid", {"pid": os.getpid()})


def pid_of(folder: Path, index: int) -> int | None:
    """The process of the system that process `index` is, where it has announced itself."""
    return _get(folder / f"{index}.pid", "pid")


def _alive(folder: Path, index: int) -> bool:
    import psutil

    pid = pid_of(folder, index)
    try:
        return pid is None or psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _put(path: Path, word: dict[str, int]) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(word), encoding="utf-8")
    unfinished.rename(path)


def _get(path: Path, key: str) -> int | None:
    try:
        return int(json.loads(path.read_bytes())[key])
    except FileNotFoundError:
        return None
