"""Where a merge is computed. The processor is the default: it gives the same bits every time."""

from __future__ import annotations

import torch

from adapterhub.errors import UnsupportedError, UsageError

DEVICES = ("cpu", "cuda", "auto")


def find_device(name: str, *, heavy: bool = False) -> torch.device:
    """`auto` takes a GPU where there is one and the work is `heavy`. UnsupportedError for a GPU that isn't there."""
    if name not in DEVICES:
        raise UsageError(
            f"--device {name} is not allowed.", why=f"It must be {' or '.join(DEVICES)}."
        )
    if name == "auto":
        name = "cuda" if heavy and torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            "There is no GPU that torch can use.",
            why=f"torch {torch.__version__} sees none.",
            hint="Leave --device out: the processor gives the same result.",
        )
    return torch.device(name)
