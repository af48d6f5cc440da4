"""Deltas by rows: every element comes once, whatever the tiles, and together they are the matrix."""

from __future__ import annotations

import pytest
import torch

from adapterhub.lora import rows
from adapterhub.lora.rows import Held, blocks, buffer, tiles, whole
from tests.lora.matrices import exact, kinds


@pytest.mark.parametrize("tile", [1, 50, 777, 10_000])
def test_tiles_cover_every_row_once_and_fit_into_their_buffer(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "TILE_VALUES", tile)
    for out, width in ((23, 10), (1, 900), (60, 1), (7, 50)):
        found = list(tiles((out, width)))
        assert [row for first, last in found for row in range(first, last)] == list(range(out))
        heights = [last - first for first, last in found]
        assert set(heights[:-1]) <= {max(heights)}, "a product's last bits depend on its shape"
        assert buffer(Held(torch.zeros(out, width))).shape == (max(heights), width)
        assert max(heights) == 1 or max(heights) * width <= tile


@pytest.mark.parametrize("tile", [1, 50, 10_000])
def test_blocks_and_whole_give_the_matrix(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TILE_VALUES", tile)
    for delta in kinds(23, 10, 3, 0):
        seen = [(first, block.clone()) for first, block in blocks(delta)]
        assert [first for first, _ in seen] == [first for first, _ in tiles(delta.shape)]
        assert torch.equal(torch.cat([block for _, block in seen]), whole(delta))
        assert torch.allclose(whole(delta).double(), exact(delta), rtol=0, atol=1e-5)


def test_any_rows_can_be_had_by_themselves() -> None:
    for delta in kinds(19, 8, 3, 1):
        room = torch.full((5, 8), 7.0)
        delta.fill(11, 16, room)
        assert torch.allclose(room.double(), exact(delta)[11:16], rtol=0, atol=1e-5)
