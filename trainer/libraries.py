"""What the training libraries say, kept out of the way: no word on stdout, no telemetry, everything in the run's log."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

from adapterhub.errors import MissingDependencyError
from adapterhub.evaluate.models import hush_optional_kernels

_LOGGERS = ("accelerate", "bitsandbytes", "datasets", "peft", "py.warnings", "transformers", "trl")


def require_libraries(*, several: bool = False) -> None:
    """MissingDependencyError, with what to install, when one of the trainer's libraries is missing.

    `several`: this process will start those that train, each on a GPU of its own.
    """
    hush_optional_kernels()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not several and "WORLD_SIZE" not in os.environ:
        # Without a launcher one process trains on one GPU; several visible ones would be used badly (DataParallel).
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets"):
        if find_spec(name) is None:
            raise MissingDependencyError(
                f"Training needs {name}, which isn't installed.",
                hint='pip install "adapterhub[train]"',
            )


@contextmanager
def logged_to(path: Path | None) -> Iterator[None]:
    """While the block runs, library logs and warnings go to the file `path` (None: nowhere), prints to stderr."""
    import datasets  # type: ignore[import-untyped]
    from transformers.utils import logging as transformers_logging

    handler = (
        logging.FileHandler(path, encoding="utf-8", delay=True) if path else logging.NullHandler()
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.propagate = False
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            logging.captureWarnings(True)
            yield
    finally:
        logging.captureWarnings(False)
        handler.close()
        for logger, handlers, propagate in before:
            logger.handlers[:] = handlers
            logger.propagate = propagate
        if bars:
            transformers_logging.enable_progress_bar()
