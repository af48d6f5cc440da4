"""Merged factors on disk until the rank is decided: what is in memory is one module at a time."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
import torch

from adapterhub.fsio import disk_errors


class Spool:
    """Factors by module in one scratch file, float32, directions in falling order of their singular values."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self._lock = Lock()
        self._places: dict[str, tuple[int, tuple[int, int, int]]] = {}

    def put(self, module: str, b: torch.Tensor, a: torch.Tensor) -> None:
        """Keeps b (out, k) and a (k, in)."""
        data = [side.contiguous().cpu().numpy() for side in (b.T, a)]
        with self._lock, disk_errors(self._path):
            place = self._file.seek(0, 2)
            for side in data:
                self._file.write(side.data)
            self._places[module] = place, (b.shape[0], b.shape[1], a.shape[1])

    def get(self, module: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `rank` directions: b (out, rank), a (rank, in)."""
        place, (out, count, width) = self._places[module]
        rank = min(rank, count)
        with disk_errors(self._path):
            self._file.flush()
            b = np.fromfile(self._path, np.float32, rank * out, offset=place)
            a = np.fromfile(self._path, np.float32, rank * width, offset=place + 4 * count * out)
        return (
            torch.from_numpy(b).reshape(rank, out).T,
            torch.from_numpy(a).reshape(rank, width),
        )
