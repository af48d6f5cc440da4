"""Matrices of known character, and one that is had by rows only, as most deltas are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from adapterhub.lora.rows import Factored, Held, Rows


@dataclass
class Streamed:
    """Rows of a matrix that is not held as far as the product knows; `passes` counts how often it was gone through."""

    values: torch.Tensor
    _rows: int = field(default=0, init=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def passes(self) -> float:
        return self._rows / self.shape[0]

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        assert out.is_contiguous()
        assert out.shape == (last - first, self.shape[1])
        self._rows += last - first
        out.copy_(self.values[first:last])


def normal(out: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def decaying(out: int, width: int, rate: float) -> torch.Tensor:
    """Singular values rate^0, rate^1, ..."""
    side = min(out, width)
    values = torch.tensor(rate, dtype=torch.float64).pow(torch.arange(side))
    product: torch.Tensor = (_orthonormal(out, side, 1) * values) @ _orthonormal(width, side, 2).T
    return product.float()


def flat(out: int, width: int) -> torch.Tensor:
    """All singular values 1."""
    side = min(out, width)
    product: torch.Tensor = _orthonormal(out, side, 1) @ _orthonormal(width, side, 2).T
    return product.float()


def sparse(out: int, width: int, seed: int = 3) -> torch.Tensor:
    """As a trim leaves it: the largest fifth of a low-rank product's elements."""
    low = normal(out, 12, seed) @ normal(12, width, seed + 1)
    threshold = low.abs().flatten().kthvalue(int(0.8 * low.numel())).values
    return torch.where(low.abs() >= threshold, low, 0.0)


def _orthonormal(length: int, count: int, seed: int) -> torch.Tensor:
    found: torch.Tensor = torch.linalg.qr(normal(length, count, seed).double())[0]
    return found


def factored(out: int, width: int, rank: int, seed: int = 0) -> Factored:
    return Factored(normal(out, rank, seed), normal(rank, width, seed + 1))


def exact(delta: Rows) -> torch.Tensor:
    """Without the product's own products."""
    if isinstance(delta, Factored):
        return delta.b.double() @ delta.a.double()
    return (delta.whole if isinstance(delta, Held) else delta.values).double()  # type: ignore[attr-defined]


def size(delta: Rows) -> float:
    """A norm that what cancels within factors counts in: that of the factors."""
    if isinstance(delta, Factored):
        return float(delta.b.double().norm() * delta.a.double().norm())
    return float(exact(delta).norm())


def kinds(out: int, width: int, rank: int, seed: int) -> list[Rows]:
    """One of each kind of rows."""
    return [
        factored(out, width, rank, seed),
        Held(normal(out, width, seed + 2)),
        Streamed(normal(out, width, seed + 3)),
    ]
