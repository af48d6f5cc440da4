"""Where every byte of a written shard comes from, told before any is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.base import HEAD_NAME, BaseModel, read_base
from adapterhub.errors import FormatError
from adapterhub.export.layout import (
    DISK_BLOCK,
    Shard,
    Stored,
    Summed,
    Tensor,
    lay_out,
    layouts,
    require_true_index,
    weight_map,
)
from adapterhub.export.plan import ExportPlan, Target
from adapterhub.export.stream import Budget, write_shards
from adapterhub.formats.safetensors import TensorFile
from adapterhub.lora.rows import Held, Rows

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.models import ModelMaker

Q = "model.layers.1.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def plan_of(base: BaseModel, *names: str, untied: bool = False) -> ExportPlan:
    targets = {name: Target(name.removesuffix(".weight"), name, transposed=False) for name in names}
    return ExportPlan(base, targets, untied, ())


def require_whole(shard: Shard) -> None:
    """Every byte behind the header is in one piece."""
    position = len(shard.header)
    for piece in shard.pieces:
        assert piece.start == position
        position += piece.size
    assert position == shard.size


def write(shard: Shard, folder: Path, delta: Rows | None = None) -> Path:
    def delta_of(_: str) -> Rows:
        assert delta is not None
        return delta

    folder.mkdir()
    write_shards(
        [shard],
        folder,
        delta_of,
        budget=Budget(2**20, 1),
        finished=lambda *_: None,
        advance=lambda _: None,
    )
    return folder / shard.name


def test_one_changed_tensor_lies_between_two_runs_of_stored_bytes(tiny_llama: Path) -> None:
    base = read_base(tiny_llama)
    (shard,) = layouts(plan_of(base, Q))
    require_whole(shard)
    kinds = [type(piece.origin) for piece in shard.pieces]
    assert kinds == [Stored, Summed, Stored]
    info = base.tensors[Q]
    assert (shard.pieces[1].start, shard.pieces[1].size) == (info.start, info.end - info.start)
    file = tiny_llama / "model.safetensors"
    assert shard.header == file.read_bytes()[: len(shard.header)]
    assert shard.size == file.stat().st_size


def test_every_shard_is_laid_out_and_the_index_follows(tiny: ModelMaker) -> None:
    base = read_base(tiny.llama(sharded=True))
    shards = layouts(plan_of(base, Q))
    for shard in shards:
        require_whole(shard)
    changed = [shard for shard in shards if any(p.name == Q for p in shard.pieces)]
    assert len(changed) == 1
    assert all(len(shard.pieces) == 1 for shard in shards if shard not in changed)
    index = json.loads((base.path / "model.safetensors.index.json").read_text())
    assert weight_map(shards) == index["weight_map"]


def test_an_added_head_keeps_the_rest_where_blocks_can_be_shared(tiny: ModelMaker) -> None:
    base = read_base(tiny.llama(tied=True))
    (shard,) = layouts(plan_of(base, HEAD_NAME, untied=True))
    require_whole(shard)
    (file,) = base.shards
    with TensorFile(file) as before:
        first = min(info.start for info in before.infos.values())
    assert (len(shard.header) - first) % DISK_BLOCK == 0
    assert weight_map([shard]).keys() == base.tensors.keys() | {HEAD_NAME}
    head = next(piece for piece in shard.pieces if piece.name == HEAD_NAME)
    assert isinstance(head.origin, Summed)
    assert head.origin.info.start == base.tensors[EMBEDDING].start


def test_a_tensor_may_be_made_of_rows_from_several_files_in_several_dtypes(
    tiny: ModelMaker, tmp_path: Path
) -> None:
    base = read_base(tiny.llama(dtype="bfloat16"))
    (file,) = base.shards
    more = torch.randn(3, 64)
    save_file({"new": more}, tmp_path / "new.safetensors")
    info = base.tensors[EMBEDDING]
    with TensorFile(file) as like, TensorFile(tmp_path / "new.safetensors") as extra:
        rows = (Stored(file, info.start, info.end - info.start), Summed(extra.infos["new"], None))
        taller = Tensor(EMBEDDING, "BF16", (info.shape[0] + 3, 64), rows)
        shard = lay_out(file.name, [taller], like)
        with pytest.raises(ValueError, match="add up"):
            lay_out(file.name, [Tensor(EMBEDDING, "BF16", info.shape, rows)], like)
    require_whole(shard)
    after = load_file(write(shard, tmp_path / "out"))[EMBEDDING]
    before = load_file(file)[EMBEDDING]
    assert torch.equal(after, torch.cat([before, more.bfloat16()]))


def test_a_wider_dtype_than_the_bases_is_a_layout_too(tiny: ModelMaker, tmp_path: Path) -> None:
    base = read_base(tiny.llama(dtype="bfloat16"))
    (file,) = base.shards
    delta = torch.randn(64, 64)
    with TensorFile(file) as like:
        part = Summed(base.tensors[Q], "q")
        shard = lay_out(file.name, [Tensor(Q, "F32", (64, 64), (part,))], like)
    after = load_file(write(shard, tmp_path / "out", Held(delta)))[Q]
    assert torch.equal(after, load_file(file)[Q].float() + delta)


def test_an_index_that_looks_in_the_wrong_shard_is_refused(tiny: ModelMaker) -> None:
    base = read_base(tiny.llama(sharded=True))
    plan = plan_of(base, Q)
    index = weight_map(layouts(plan))
    require_true_index(index, plan)
    wrong = {**index, Q: next(name for name in index.values() if name != index[Q])}
    with pytest.raises(FormatError, match=r"q_proj.*; the tensor is in"):
        require_true_index(wrong, plan)
