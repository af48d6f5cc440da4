"""A run's numbers for TensorBoard, where somebody asked for it and a writer is installed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from adapterhub.errors import MissingDependencyError

_SHOWN = {
    "step": ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory"),
    "evaluated": ("loss", "perplexity", "accuracy", "margin"),
}
_PREFIX = {"step": "train", "evaluated": "held_out"}


def writer_class() -> Any:
    """TensorBoard's own writer, or tensorboardX's; MissingDependencyError where there is neither."""
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        with suppress(ImportError):
            return import_module(module).SummaryWriter
    raise MissingDependencyError(
        "The recipe wants TensorBoard's files, and nothing here can write them.",
        hint="pip install tensorboard  (or leave out tensorboard: true)",
    )


class Board:
    """Writes the numbers of events into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._writer = writer_class()(str(folder))

    def take(self, event: Mapping[str, Any]) -> None:
        """The numbers of one event; other events are left out."""
        kind = str(event.get("event"))
        for key in _SHOWN.get(kind, ()):
            if isinstance(event.get(key), int | float):
                self._writer.add_scalar(f"{_PREFIX[kind]}/{key}", event[key], event["step"])
        for group, norm in event.get("grad_norms", {}).items():
            self._writer.add_scalar(f"grad_norm/{group}", norm, event["step"])
        if kind in _SHOWN:
            self._writer.flush()

    def close(self) -> None:
        """Waits until everything is written."""
        self._writer.close()
