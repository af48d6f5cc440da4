"""lm-evaluation-harness is a guest: it prints nothing, fetches nothing, draws alike for every model, and its faults are told.

A task is a program, its own or anybody's. Whatever it raises is said to be that task's.
"""

from __future__ import annotations

import importlib
import logging
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from adapterhub.errors import AdapterHubError, FormatError, NotFoundError
from adapterhub.evaluate.models import quiet_libraries

SEED = 1234
"""Of what the harness draws: examples given beforehand, and samples where a task asks for them. Its own default."""
_BARS = ("api.model", "api.task", "models.huggingface")


def guest(module: str) -> Any:
    """A module of lm_eval, whose decorators hide its signatures from those who check types."""
    return importlib.import_module(f"lm_eval.{module}")


@contextmanager
def stumbling(name: str, entry: Any = None) -> Iterator[None]:
    """Whatever a task raises, told as that task's: a data set that isn't here, or a fault in it."""
    try:
        yield
    except AdapterHubError:
        raise
    except OSError as error:
        raise NotFoundError(
            f"The data of the task {name} are not on this machine.",
            why=f"{error}",
            hint=_how_to_fetch((entry.cfg if entry is not None else None) or {}),
        ) from error
    except Exception as error:
        raise FormatError(
            f"The task {name} can't be asked.", why=f"{type(error).__name__}: {error}"
        ) from error


def _how_to_fetch(settings: Mapping[str, Any]) -> str:
    """The line that brings a task's data set here."""
    path, name = settings.get("dataset_path"), settings.get("dataset_name")
    if isinstance(path, str) and "/" in path:
        wanted = ", ".join(repr(one) for one in (path, name) if isinstance(one, str))
        return (
            "With a connection:  HF_HUB_OFFLINE=0 python -c"
            f' "import datasets; datasets.load_dataset({wanted})"'
        )
    return "A file in data_files is looked for from the folder in which the command is run."


class _Bar:
    """Stands in for a tqdm bar: shows nothing, and tells what was done."""

    told: Callable[[int], None] = staticmethod(lambda done: None)

    def __init__(self, iterable: Iterable[Any] = (), **_: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def update(self, done: int = 1) -> None:
        self.told(done)

    def close(self) -> None:
        pass


@contextmanager
def in_peace(on_requests: Callable[[int], None] = lambda done: None) -> Iterator[None]:
    """Within it the harness prints nothing, shows no bars, fetches nothing; stdout stays ours."""
    from huggingface_hub import constants

    datasets: Any = importlib.import_module("datasets")
    shown = not datasets.are_progress_bars_disabled()
    remarks = logging.getLogger("lm_eval")
    level = remarks.level

    class Told(_Bar):
        told = staticmethod(on_requests)

    with ExitStack() as stack:
        stack.enter_context(_replaced(constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(_replaced(datasets.config, "HF_HUB_OFFLINE", True))
        for module in _BARS:
            stack.enter_context(_replaced(guest(module), "tqdm", Told))
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(quiet_libraries())
        datasets.disable_progress_bars()
        remarks.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            remarks.setLevel(level)
            if shown:
                datasets.enable_progress_bars()


@contextmanager
def _replaced(of: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(of, name)
    setattr(of, name, value)
    try:
        yield
    finally:
        setattr(of, name, before)


@contextmanager
def drawn_alike() -> Iterator[None]:
    """Within it everything by chance is as it was the time before; the random states are left as they were."""
    import numpy as np
    import torch

    ours, theirs = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that tasks draw from
    gpus = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(gpus):
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002
        torch.manual_seed(SEED)
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(theirs)  # noqa: NPY002
