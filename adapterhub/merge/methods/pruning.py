"""Deltas of which some elements are set to zero: by magnitude, at random, or at random by magnitude."""

from __future__ import annotations

import numpy as np
import torch

from adapterhub.lora.rows import Rows, blocks, buffer
from adapterhub.merge.methods.masks import RandomStream, limit

_NO_NORM = 1e-7
"""Below this an L1 norm is not matched (mergekit's bound)."""


class _Wrapped:
    """Rows made from other rows of the same shape."""

    def __init__(self, inner: Rows) -> None:
        self.inner = inner

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    @property
    def device(self) -> torch.device:
        return self.inner.device


class Trimmed(_Wrapped):
    """Magnitudes of at least `threshold` stay."""

    def __init__(self, inner: Rows, threshold: float) -> None:
        super().__init__(inner)
        self._below = _just_below(threshold)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self.inner.fill(first, last, out)
        if self._below is not None:
            torch.ops.aten.hardshrink.out(out, self._below, out=out)


class Banded(_Wrapped):
    """Magnitudes from `low` to `high` stay, both included."""

    def __init__(self, inner: Rows, low: float, high: float) -> None:
        super().__init__(inner)
        self._below, self._high = _just_below(low), high
        self._outliers = buffer(inner)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self.inner.fill(first, last, out)
        outliers = self._outliers[: last - first]
        torch.ops.aten.hardshrink.out(out, self._high, out=outliers)  # what is above
        out.sub_(outliers)
        if self._below is not None:
            torch.ops.aten.hardshrink.out(out, self._below, out=out)


class Dropped(_Wrapped):
    """Each element stays with the chance `density` (DARE); what stays is rescaled."""

    def __init__(self, inner: Rows, density: float, stream: RandomStream, rescale: str) -> None:
        super().__init__(inner)
        self._stream = stream
        self._limit = int(limit(density))
        self._factor = 1.0
        if rescale == "inverse":
            self._factor = 1.0 / density
        elif rescale == "l1":
            self._factor = _l1_factor(inner, self)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self.inner.fill(first, last, out)
        width = self.shape[1]
        numbers = self._stream.numbers(first * width, (last - first) * width)
        kept = torch.from_numpy(numbers < self._limit).to(self.device).reshape(out.shape)
        out.mul_(kept)
        if self._factor != 1.0:
            out.mul_(self._factor)


class RankDropped(_Wrapped):
    """MagPrune (Deep et al. 2024): within each row, the chance to stay rises with the rank of the magnitude."""

    def __init__(
        self, inner: Rows, density: float, epsilon: float, stream: RandomStream, rescale: str
    ) -> None:
        super().__init__(inner)
        width = inner.shape[1]
        place = np.arange(width) / max(1, width - 1)  # 0 for the smallest, 1 for the largest
        chance = np.full(width, density) if width == 1 else density - epsilon + 2 * epsilon * place
        self._stream = stream
        self._limits = limit(chance)
        self._factors = (1.0 / chance if rescale == "inverse" else np.ones(width)).astype(
            np.float32
        )
        self._factor = 1.0
        if rescale == "l1":
            self._factor = _l1_factor(inner, self)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self.inner.fill(first, last, out)
        values = out.cpu().numpy()
        numbers = self._stream.numbers(first * self.shape[1], values.size).reshape(values.shape)
        order = np.argsort(np.abs(values), axis=1, kind="stable")  # columns, smallest first
        stays = np.take_along_axis(numbers, order, axis=1) < self._limits
        scales = np.empty_like(values)
        np.put_along_axis(scales, order, stays * self._factors, axis=1)
        out.mul_(torch.from_numpy(scales).to(self.device))
        if self._factor != 1.0:
            out.mul_(self._factor)


def _just_below(threshold: float) -> float | None:
    """The largest float32 that is less, since hardshrink drops what equals its bound; None drops nothing."""
    if threshold <= 0:
        return None
    return float(np.nextafter(np.float32(threshold), np.float32(0)))


def _l1_factor(whole: Rows, masked: Rows) -> float:
    """What makes the masked delta's L1 norm that of the whole one."""
    before, after = _l1(whole), _l1(masked)
    return 1.0 if before < _NO_NORM or after < _NO_NORM else before / after


def _l1(rows: Rows) -> float:
    return sum(
        float(torch.linalg.vector_norm(tile, ord=1, dtype=torch.float64))
        for _, tile in blocks(rows)
    )
