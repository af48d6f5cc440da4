"""What a row trains, read back as text."""

from __future__ import annotations

from typing import Any

from adapterhub.data import IGNORED, Encoded


def trained_texts(tokenizer: Any, row: Encoded) -> list[str]:
    """Each run of trained tokens, decoded with control tokens shown."""
    runs: list[list[int]] = [[]]
    for label in row.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]
