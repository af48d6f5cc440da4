"""Several deltas into one, tile by tile: their weighted sum, or the mean of those that carry the elected sign."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adapterhub.lora.rows import Rows, buffer


class WeightedSum:
    """Σ wᵢ·rowsᵢ."""

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float]) -> None:
        self._parts, self._weights = parts, weights
        self.shape, self.device = parts[0].shape, parts[0].device
        self._room = buffer(parts[0])

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        self._parts[0].fill(first, last, out)
        out.mul_(self._weights[0])
        room = self._room[: last - first]
        for part, weight in zip(self._parts[1:], self._weights[1:], strict=True):
            part.fill(first, last, room)
            out.add_(room, alpha=weight)


class Elected:
    """Per element a sign is elected; the values that carry it are summed with their weights, and divided.

    `vote`, `tie` and `divisor` are the parameters of that name (adapterhub.merge.builtin.parameters).
    """

    def __init__(
        self,
        parts: Sequence[Rows],
        weights: Sequence[float],
        *,
        vote: str,
        tie: str,
        divisor: str,
        scale: float = 1.0,
    ) -> None:
        self._parts, self._weights, self._scale = parts, weights, scale
        self.shape, self.device = parts[0].shape, parts[0].device
        self._election = Election(len(parts), buffer(parts[0]), vote=vote, tie=tie, divisor=divisor)
        self._rooms = [buffer(part) for part in parts]

    def fill(self, first: int, last: int, out: torch.Tensor) -> None:
        tiles = [room[: last - first] for room in self._rooms]
        for part, tile in zip(self._parts, tiles, strict=True):
            part.fill(first, last, tile)
        self._election.hold(tiles, self._weights, out)
        if self._scale != 1.0:
            out.mul_(self._scale)


class Election:
    """The vote over K tiles, in float operations on few buffers: comparisons into booleans cost five times as much."""

    def __init__(
        self, count: int, like: torch.Tensor, *, vote: str, tie: str, divisor: str
    ) -> None:
        self._vote, self._tie, self._divisor = vote, tie, divisor
        # Two float32 add up to zero only where they cancel. More of them could, by their order: float64 decides.
        exact = torch.float64 if count > 2 else torch.float32
        self._sum = torch.empty_like(like, dtype=exact)
        self._sign, self._part, self._shares = (torch.empty_like(like) for _ in range(3))

    def hold(
        self, tiles: Sequence[torch.Tensor], weights: Sequence[float], out: torch.Tensor
    ) -> None:
        """Writes the result into `out`; the tiles are overwritten."""
        height = out.shape[0]
        sign, part, shares = (room[:height] for room in (self._sign, self._part, self._shares))
        self._elect(tiles, weights, sign, part)
        out.zero_()
        shares.zero_()
        for tile, weight in zip(tiles, weights, strict=True):
            torch.mul(tile, sign, out=part)
            part.clamp_(min=0)  # the magnitudes of those that agree
            out.add_(part, alpha=1.0 if self._vote == "weighted" else weight)
            if self._divisor != "none":
                shares.add_(part.sign_(), alpha=weight if self._divisor == "weights" else 1.0)
        out.mul_(sign)
        if self._divisor == "count":
            out.div_(shares.clamp_(min=1))
        elif self._divisor == "weights":
            out.div_(shares.masked_fill_(shares == 0, 1.0))

    def _elect(
        self,
        tiles: Sequence[torch.Tensor],
        weights: Sequence[float],
        sign: torch.Tensor,
        part: torch.Tensor,
    ) -> None:
        """Writes the elected signs: 1, -1, or 0 where nothing is elected. A weighted vote weights the tiles."""
        total = self._sum[: sign.shape[0]].zero_()
        for tile, weight in zip(tiles, weights, strict=True):
            if self._vote == "weighted":
                tile.mul_(weight)
            total.add_(torch.sign(tile, out=part) if self._vote == "count" else tile)
        sign.copy_(total.sign_())
        if self._tie == "positive":
            sign.add_(0.5).sign_()
