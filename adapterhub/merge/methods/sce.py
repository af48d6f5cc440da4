"""SCE (Wan et al. 2024, FuseChat, arXiv:2408.07990): select, calculate, erase, module by module."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.lora.rows import Rows, blocks, buffer, squared_norm, tiles
from adapterhub.merge.methods.combining import Election
from adapterhub.merge.select import in_turn, kth_largest, share_of


class Sce:
    """Elements that vary most over the parents are kept; each parent counts by its energy there; a sign is elected."""

    def __init__(self, parts: Sequence[Rows], select: float, equal_below: float, tie: str) -> None:
        self._parts = parts
        self.shape, self.device = parts[0].shape, parts[0].device
        self._rooms = [buffer(part) for part in parts]
        self._mean, self._kept = buffer(parts[0]), buffer(parts[0])
        self._least = _least_variance(_Variance(self), select) if select < 1 else 0.0
        self._election = Election(len(parts), buffer(parts[0]), vote="unweighted", tie=tie, divisor="weights")  # fmt: skip
        self._weights = self._calculate(equal_below)

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self._election.hold(self._selected(first, last), self._weights, out)

    def variance(self, first: int, last: int, out: torch.Tensor) -> list[torch.Tensor]:
        """Writes the population variance over the parents; gives their tiles."""
        tiles = [room[: last - first] for room in self._rooms]
        for part, tile in zip(self._parts, tiles, strict=True):
            part.fill(first, last, tile)
        # From the first parent, so that values which are equal in all have a variance of exactly 0.
        apart = [tile - tiles[0] for tile in tiles]
        mean = self._mean[: last - first].zero_()
        for one in apart:
            mean.add_(one, alpha=1 / len(tiles))
        out.zero_()
        for one in apart:
            one.sub_(mean)
            out.addcmul_(one, one, value=1 / len(tiles))
        return tiles

    def _selected(self, first: int, last: int) -> list[torch.Tensor]:
        kept = self._kept[: last - first]
        tiles = self.variance(first, last, kept)
        if self._least > 0:
            mask = kept >= self._least
            for tile in tiles:
                tile.mul_(mask)
        return tiles

    def _calculate(self, equal_below: float) -> list[float]:
        """The parents' shares of the energy of what is kept."""
        energies = [0.0] * len(self._parts)
        out, width = self.shape
        for first, last in tiles(self.shape):
            for place, tile in enumerate(self._selected(first, last)):
                energies[place] += squared_norm(tile)
        total = sum(energies)
        if total == 0 or total / (out * width) < equal_below:
            return [1 / len(energies)] * len(energies)
        return [energy / total for energy in energies]


class _Variance:
    """The variances as rows."""

    def __init__(self, sce: Sce) -> None:
        self._sce = sce
        self.shape, self.device = sce.shape, sce.device

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self._sce.variance(first, last, out)


def _least_variance(variance: Rows, share: float) -> float:
    """The smallest variance that is selected; infinite where none is."""
    varying = sum(int(torch.count_nonzero(tile)) for _, tile in blocks(variance))
    count = share_of(share, varying, least=0)
    if count == 0:
        return float("inf")
    total = variance.shape[0] * variance.shape[1]
    return kth_largest([""], lambda _: variance, count, in_turn, total)
