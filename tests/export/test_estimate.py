"""What is said before an export is what it then writes."""

from pathlib import Path

import pytest

from adapterhub.errors import ConflictError, IncompatibleError
from adapterhub.export.beside import beside
from adapterhub.export.estimate import estimate
from tests.export.conftest import Exporter
from tests.support.adapters import AdapterMaker
from tests.support.models import ModelMaker


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_size_is_that_of_the_model(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    tied: bool,
    head: bool,
    sharded: bool,
) -> None:
    base = tiny.llama(tied=tied, sharded=sharded)
    modules = {
        "model.layers.0.self_attn.q_proj": (64, 64),
        **({"lm_head": (160, 64)} if head else {}),
    }
    adapter = exporter.add(make_adapter("one", modules=modules))
    found = estimate(exporter.store, [adapter], exporter.root / "model", base=str(base))
    done = exporter([adapter], base, into=exporter.root / "model", verify="none")
    around = beside(found.base, [adapter], exporter.store.blobs.path, None).size
    assert found.exact
    assert found.size == done.size + around
    assert found.untied is done.untied is (tied and head)
    assert found.shards == len(list(done.folder.glob("*.safetensors")))


@pytest.mark.slow
def test_in_four_bits_it_is_about_that_of_the_model(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(inner=512)
    adapter = exporter.add(
        make_adapter("one", modules={"model.layers.0.self_attn.q_proj": (64, 64)})
    )
    found = estimate(exporter.store, [adapter], exporter.root / "m", base=str(base), quantize="nf4")
    done = exporter([adapter], base, into=exporter.root / "m", verify="none", quantize="nf4")
    around = beside(found.base, [adapter], exporter.store.blobs.path, None).size
    assert not found.exact
    assert found.size - around == pytest.approx(done.size, rel=0.05)


def test_no_room_is_told_not_raised(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = exporter.add(make_adapter("one"))
    assert estimate(exporter.store, [adapter], exporter.root / "m", base=str(tiny_llama)).fits
    monkeypatch.setattr("adapterhub.export.estimate.free_space", lambda _: 1000)
    found = estimate(exporter.store, [adapter], exporter.root / "m", base=str(tiny_llama))
    assert (found.fits, found.free) == (False, 1000)


def test_what_the_export_would_refuse_is_refused_now(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    adapter = exporter.add(make_adapter("one"))
    with pytest.raises(ConflictError, match="lies there"):
        estimate(exporter.store, [adapter], tiny_llama, base=str(tiny_llama))
    used = exporter.root / "used"
    used.mkdir(parents=True)
    (used / "file").touch()
    with pytest.raises(ConflictError, match="not empty"):
        estimate(exporter.store, [adapter], used, base=str(tiny_llama))
    other = exporter.add(make_adapter("big", modules={"model.layers.0.self_attn.q_proj": (32, 32)}))
    with pytest.raises(IncompatibleError):
        estimate(exporter.store, [other], exporter.root / "m", base=str(tiny_llama))
