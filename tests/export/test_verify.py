"""Verification passes what export writes, catches every way to be wrong, and tells what one rounding loses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.errors import VerificationError
from adapterhub.export import verify as verifying
from adapterhub.export.exact import deltas_of
from adapterhub.export.logits import compare
from adapterhub.export.plan import make_plan
from adapterhub.export.verify import Verified, verify
from adapterhub.lora.adapter import opened
from adapterhub.lora.memory import Memory
from adapterhub.merge.device import find_device
from adapterhub.merge.engine import Engine
from adapterhub.merge.parents import parent_stages
from adapterhub.merge.recipe import Recipe, make_recipe
from adapterhub.merge.weights import opened_base
from tests.export.conftest import Bar, Exporter
from tests.support.adapters import EMBEDDING, HEAD, QV, llama_modules
from tests.support.attached import tensors
from tests.support.dense import read_deltas, read_parts
from tests.support.dora import deltas_by_peft, dora_adapter
from tests.support.fourbit import DEMO_BASE

if TYPE_CHECKING:
    from adapterhub.store import Resolved
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


@dataclass
class Checker:
    """Exports without any check, and verifies afterwards."""

    exporter: Exporter

    def export(
        self,
        folders: Sequence[Path],
        base: Path,
        method: str = "linear",
        *,
        weights: Sequence[float] | None = None,
        **parameters: Any,
    ) -> tuple[Path, list[Resolved], Recipe]:
        parents = [self.exporter.add(folder) for folder in folders]
        done = self.exporter(parents, base, method, weights=weights, verify="none", **parameters)
        digests = [parent.digest for parent in parents]
        recipe = make_recipe(method, digests, weights=weights, parameters=parameters)
        return done.folder, parents, recipe

    def verify(
        self, out: Path, parents: list[Resolved], recipe: Recipe, base: Path, **settings: Any
    ) -> Verified:
        store, device = self.exporter.store, find_device("cpu")
        model = store.base_for(parents[0], str(base))
        with (
            opened(store, parents, "exported", plain=False) as adapters,
            opened_base(model, device) as weights,
        ):
            verdicts = {one.resolved.digest: store.fit(one.resolved, model) for one in adapters}
            plan = make_plan(adapters, model, verdicts, {}, allow_mismatch=False)
            dora = {
                a.resolved.digest: store.fit(a.resolved, model)
                for a in adapters
                if a.facts.kind == "dora"
            }
            stages = parent_stages(adapters, device, weights, dora=dora)
            result = Engine(recipe, stages, 1, Memory()).result()
            return verify(plan, deltas_of(recipe, adapters, result), out, workers=1, **settings)

    def __call__(
        self, folders: Sequence[Path], base: Path, *more: Any, **settings: Any
    ) -> Verified:
        return self.verify(*self.export(folders, base, *more, **settings), base)


@pytest.fixture
def check(exporter: Exporter) -> Checker:
    return Checker(exporter)


Adapters = Callable[[Path], list[Path]]
PATTERNS: dict[str, Any] = {
    "use_rslora": True,
    "rank_pattern": {"q_proj": 7},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "settings", [{}, PATTERNS, {"modules": {**HEAD, **QV}}, {"modules": EMBEDDING}], ids=str
)
@pytest.mark.parametrize("tied", [False, True])
def test_what_export_writes_is_right(
    check: Checker,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    dtype: str,
    settings: dict[str, Any],
    tied: bool,
) -> None:
    adapter = make_adapter(scale=0.3, **{"modules": llama_modules(), **settings})
    found = check([adapter], tiny.llama(dtype=dtype, tied=tied))
    assert found.independent
    assert [one.rows for one in found.changed] == [one.of_rows for one in found.changed]
    assert found.compared == found.of_bytes > 0
    assert max(one.error for one in found.changed) <= 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_peft_adapters_dora_and_conv1d_are_right(
    check: Checker,
    tiny: ModelMaker,
    make_peft_adapter: Callable[..., Path],
    kind: str,
    dora: bool,
    dtype: str,
) -> None:
    base = getattr(tiny, kind)(dtype=dtype)
    targets: Any = {"targets": "all-linear"}
    if kind == "gpt2":
        targets = {"targets": ("c_attn", "c_proj"), "fan_in_fan_out": True}
    if dora:
        adapter = dora_adapter(make_peft_adapter, base, "one", seed=3, r=5, **targets)
    else:
        adapter = make_peft_adapter(base, "one", r=5, strength=0.3, **targets)
    found = check([adapter], base)
    assert found.independent
    assert len(found.changed) == (14 if kind == "llama" else 6)


@pytest.mark.parametrize(
    ("method", "parameters", "independent"),
    [
        ("linear", {"weights": [0.8, -0.5, 1.2]}, True),
        ("linear", {"weights": [2.0, 1.0, 1.0], "normalize": True}, True),
        ("task_arithmetic", {"lambda": 0.4}, True),
        ("karcher", {}, False),
        ("ties", {"density": 0.4}, False),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merges_are_right_and_only_plain_sums_are_computed_again(
    check: Checker,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    make_peft_adapter: Callable[..., Path],
    method: str,
    parameters: dict[str, Any],
    independent: bool,
    dtype: str,
) -> None:
    base = tiny.llama(dtype=dtype, tied=True)
    adapters = [
        make_adapter(f"a{seed}", modules={**EMBEDDING, **QV}, seed=seed, scale=0.3)
        for seed in range(2)
    ]
    adapters.append(dora_adapter(make_peft_adapter, base, "dora", seed=5, r=3))
    found = check(adapters, base, method, **parameters)
    assert found.independent == independent
    assert len(found.changed) == 5


Tamper = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]], None]


def flip_the_last_bit(model: dict[str, torch.Tensor], *_: Any) -> None:
    model[Q].view(torch.int16)[5, 7] ^= 1


def double_the_delta(
    model: dict[str, torch.Tensor], base: dict[str, torch.Tensor], deltas: dict[str, torch.Tensor]
) -> None:
    for name, delta in deltas.items():
        model[name] = (base[name].double() + 2 * delta).bfloat16()


def transpose_the_delta(
    model: dict[str, torch.Tensor], base: dict[str, torch.Tensor], deltas: dict[str, torch.Tensor]
) -> None:
    model[Q] = (base[Q].double() + deltas[Q].T).bfloat16()


def leave_one_out(model: dict[str, torch.Tensor], base: dict[str, torch.Tensor], *_: Any) -> None:
    model[DOWN] = base[DOWN]


def round_towards_zero(
    model: dict[str, torch.Tensor], base: dict[str, torch.Tensor], deltas: dict[str, torch.Tensor]
) -> None:
    exact = (base[Q].double() + deltas[Q]).float()
    model[Q] = (exact.view(torch.int32) & -65536).view(torch.float32).bfloat16()


def hold_nan(model: dict[str, torch.Tensor], *_: Any) -> None:
    model[DOWN][0, 0] = torch.nan


def change_an_untouched_one(model: dict[str, torch.Tensor], *_: Any) -> None:
    model[NORM].view(torch.int16)[-1] ^= 1


def drop_one(model: dict[str, torch.Tensor], *_: Any) -> None:
    del model[NORM]


def add_one(model: dict[str, torch.Tensor], *_: Any) -> None:
    model["model.extra.weight"] = torch.zeros(1)


def widen_one(model: dict[str, torch.Tensor], *_: Any) -> None:
    model[Q] = model[Q].float()


TAMPERED: dict[str, tuple[Tamper, str]] = {
    "a flipped bit": (flip_the_last_bit, rf"1 of 14 .*\n{Q}: row 5, column 7 holds"),
    "twice the alpha": (double_the_delta, "14 of 14 changed"),
    "a transposed delta": (transpose_the_delta, f"1 of 14 .*\n{Q}"),
    "one left out": (leave_one_out, f"1 of 14 .*\n{DOWN}"),
    "rounded towards zero": (round_towards_zero, f"1 of 14 .*\n{Q}"),
    "NaN": (hold_nan, f"1 of 14 .*\n{DOWN}: row 0, column 0 holds nan"),
    "an untouched one": (change_an_untouched_one, f"1 tensor .* base's own, .*\n.*{NORM}"),
    "a missing one": (drop_one, f"{NORM} is missing"),
    "one too many": (add_one, "model.extra.weight is too many"),
    "another dtype": (widen_one, f"{Q} is of another shape or dtype"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_model_that_was_tampered_with_is_refused(
    check: Checker, tiny: ModelMaker, make_adapter: AdapterMaker, how: str
) -> None:
    base = tiny.llama(dtype="bfloat16")
    adapter = make_adapter(modules=llama_modules(), scale=0.2)
    out, parents, recipe = check.export([adapter], base)
    tamper, said = TAMPERED[how]
    model = load_file(out / "model.safetensors")
    deltas = {f"{m}.weight": torch.from_numpy(d) for m, d in read_deltas(adapter).items()}
    tamper(model, load_file(base / "model.safetensors"), deltas)
    save_file(model, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=said) as caught:
        check.verify(out, parents, recipe, base)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dora_adapter_baked_as_a_plain_one_is_refused(
    check: Checker, tiny: ModelMaker, make_peft_adapter: Callable[..., Path], dtype: str
) -> None:
    base = tiny.llama(dtype=dtype)
    adapter = dora_adapter(make_peft_adapter, base, "dora", seed=1, r=4, targets=["q_proj"])
    out, parents, recipe = check.export([adapter], base)
    model, before = (load_file(folder / "model.safetensors") for folder in (out, base))
    plain = torch.from_numpy(read_parts(adapter)[0][Q.removesuffix(".weight")])
    model[Q] = (before[Q].double() + plain).to(before[Q].dtype)
    save_file(model, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=f"1 of 2 .*\n{Q}"):
        check.verify(out, parents, recipe, base)


def test_a_flipped_last_bit_of_float32_is_caught_where_the_delta_is_small(
    check: Checker, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama()
    out, parents, recipe = check.export([make_adapter()], base)
    model = load_file(out / "model.safetensors")
    place = int(model[Q].abs().argmax())
    model[Q].view(torch.int32).view(-1)[place] ^= 1
    save_file(model, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=Q):
        check.verify(out, parents, recipe, base)


def test_a_model_made_of_another_base_is_refused(
    check: Checker, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    out, parents, recipe = check.export([make_adapter()], tiny.llama(seed=1))
    with pytest.raises(VerificationError):
        check.verify(out, parents, recipe, tiny.llama(seed=0))


def test_a_model_made_by_another_merge_is_refused(
    check: Checker, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    adapters = [make_adapter("a"), make_adapter("b", seed=1)]
    out, parents, _ = check.export(adapters, tiny.llama(), weights=[0.5, 0.5])
    other = make_recipe("linear", [p.digest for p in parents], weights=[0.5, 0.6], parameters={})
    with pytest.raises(VerificationError):
        check.verify(out, parents, other, tiny.llama())
    voted = make_recipe("ties", [p.digest for p in parents], weights=None, parameters={})
    with pytest.raises(VerificationError):
        check.verify(out, parents, voted, tiny.llama())


def test_a_head_that_would_be_tied_again_and_a_file_cut_short_are_refused(
    check: Checker, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(tied=True)
    out, parents, recipe = check.export([make_adapter(modules=HEAD)], base)
    shutil.copy(base / "config.json", out / "config.json")
    with pytest.raises(VerificationError, match="ties the head"):
        check.verify(out, parents, recipe, base)
    shard = out / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(VerificationError, match="can't be read"):
        check.verify(out, parents, recipe, base)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("dora", [False, True])
def test_the_bake_loss_is_what_rounding_takes_from_the_delta(
    check: Checker,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    make_peft_adapter: Callable[..., Path],
    dtype: str,
    dora: bool,
) -> None:
    base = tiny.llama(dtype=dtype)
    if dora:
        adapter = dora_adapter(make_peft_adapter, base, "dora", seed=1, r=4)
        deltas = deltas_by_peft(base, adapter)
    else:
        adapter = make_adapter(modules=llama_modules(), scale=0.004)
        deltas = read_deltas(adapter)
    found = check([adapter], base)
    before = tensors(base)
    lost, size = {}, {}
    for module, delta in deltas.items():
        exact = before[f"{module}.weight"].double() + torch.from_numpy(delta)
        rounded = exact.to(before[f"{module}.weight"].dtype).double()
        lost[f"{module}.weight"] = float((rounded - exact).square().sum())
        size[f"{module}.weight"] = float(np.square(delta).sum())
    assert found.bake_loss == pytest.approx((sum(lost.values()) / sum(size.values())) ** 0.5, 1e-4)
    for one in found.changed:
        assert one.bake_loss == pytest.approx((lost[one.name] / size[one.name]) ** 0.5, rel=1e-3)
    if not dora:
        assert found.bake_loss > 0.1, "a delta this small must lose something"


def test_a_sample_is_the_same_every_time_and_finds_what_is_wrong_everywhere(
    check: Checker, tiny: ModelMaker, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.llama(dtype="bfloat16")
    adapter = make_adapter(modules={**EMBEDDING, **llama_modules()}, scale=0.2)
    out, parents, recipe = check.export([adapter], base)
    whole = check.verify(out, parents, recipe, base)
    monkeypatch.setattr(verifying, "MOST_VALUES", 4000)
    monkeypatch.setattr(verifying, "MOST_BYTES", 4000)
    monkeypatch.setattr(verifying, "_BLOCK", 64)
    some = check.verify(out, parents, recipe, base)
    assert all(4 <= one.rows <= 0.2 * one.of_rows for one in some.changed)
    assert 0 < some.compared < 0.5 * some.of_bytes
    assert some == check.verify(out, parents, recipe, base)
    assert some.bake_loss == pytest.approx(whole.bake_loss, rel=0.3)
    everything = check.verify(out, parents, recipe, base, everything=True)
    assert everything.document() == whole.document()
    model = load_file(out / "model.safetensors")
    model[DOWN] = load_file(base / "model.safetensors")[DOWN]
    save_file(model, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VerificationError, match=DOWN):
        check.verify(out, parents, recipe, base)


def test_units_in_the_last_place() -> None:
    near = np.array([1.0, 1.5, 2.0, 3e-5, 0.0, 70.0])
    for dtype, kind in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        values = torch.from_numpy(near).to(kind)
        above = torch.nextafter(values.float(), torch.tensor(torch.inf)) if kind == torch.float32 else (
            (values.view(torch.int16) + 1).view(kind)
        )  # fmt: skip
        distances = (above.double() - values.double()).numpy()
        assert (verifying.units(values.double().numpy(), dtype) == distances).all(), dtype


@contextmanager
def spoiling(_: str, __: float | None) -> Iterator[Bar]:
    """Progress during which a bit of the model that is being built turns over, once all of it is there."""

    class Spoiler(Bar):
        def update(self, text: str) -> None:
            [shard] = Path.cwd().glob(".*.partial/model/model.safetensors")
            data = bytearray(shard.read_bytes())
            data[-3] ^= 0x10
            shard.write_bytes(data)

    yield Spoiler(lambda _: None)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_that_fails_gets_no_name_and_nothing_of_it_stays(
    exporter: Exporter,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    into = tmp_path / "out" / "model"
    into.parent.mkdir()
    if overwrite:
        into.mkdir()
        (into / "mine.txt").write_text("precious")
    with monkeypatch.context() as there:
        there.chdir(into.parent)
        with pytest.raises(VerificationError):
            exporter(
                [make_adapter()], tiny_llama, into=into, overwrite=overwrite, progress=spoiling
            )
    left = [path.relative_to(into.parent).as_posix() for path in into.parent.rglob("*")]
    assert sorted(left) == (["model", "model/mine.txt"] if overwrite else [])


def test_what_was_found_lies_beside_the_model_and_in_the_store(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(dtype="bfloat16")
    parent = exporter.add(make_adapter(modules=llama_modules(), scale=0.003))
    warnings: list[str] = []
    done = exporter([parent], base, warn=warnings.append)
    written = json.loads((done.folder / "adapterhub.json").read_text())["verified"]
    assert written == done.verified
    assert written["weights"]["rows"] == written["weights"]["of_rows"] > 0
    assert 0.5 < written["bake_loss"]["total"] < written["bake_loss"]["worst"]
    [said] = [text for text in warnings if "rounding to bfloat16 matters" in text]
    assert f"adapterhub serve {parent.label}" in said
    told = exporter.store.attestations(parent.digest)[-1]
    assert (told.type, told.body["event"]) == ("eval", "exported")
    assert told.body["result"]["bake_loss"]["total"] == written["bake_loss"]["total"]
    assert exporter([parent], base, verify="none").verified == {}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("dora", "float32"),
        ("dora", "bfloat16"),
        ("embedding", "float32"),
        ("embedding", "float16"),
        ("sum", "bfloat16"),
        ("gpt2", "bfloat16"),
    ],
)
def test_logits_are_pefts_with_the_adapters_attached(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    make_peft_adapter: Callable[..., Path],
    kind: str,
    dtype: str,
) -> None:
    base = tiny.gpt2(dtype=dtype) if kind == "gpt2" else tiny.llama(dtype=dtype, tied=True)
    weights = None
    if kind == "dora":
        adapters = [dora_adapter(make_peft_adapter, base, "dora", seed=1, r=4)]
    elif kind == "gpt2":
        targets = {"targets": ("c_attn", "c_proj"), "fan_in_fan_out": True}
        adapters = [make_peft_adapter(base, "conv1d", strength=0.2, **targets)]
    elif kind == "embedding":
        adapters = [make_adapter(modules={**EMBEDDING, **QV}, scale=0.3)]
    else:
        adapters = [
            make_adapter(f"a{seed}", modules=llama_modules(), seed=seed, rank=3 + seed, scale=0.2)
            for seed in range(2)
        ]
        weights = [0.7, -1.5]
    found = exporter(adapters, base, weights=weights, verify="sized").verified["logits"]
    assert found["tokens"] > 100
    assert found["base"]["worst"] > 0.05
    assert found["share_lost"] < (1e-4 if dtype == "float32" else 0.1)
    if dtype == "float32":
        assert found["exported"] == found["rounding"]
        assert found["attached"] == {"worst": 0.0, "rms": 0.0, "kl": 0.0, "same_argmax": 1.0}
    else:
        assert found["rounding"]["rms"] < found["attached"]["rms"]


def test_logits_say_why_they_were_not_compared(
    exporter: Exporter,
    tiny: ModelMaker,
    make_adapter: AdapterMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny.llama()
    parents = [exporter.add(make_adapter(f"a{seed}", seed=seed)) for seed in range(2)]

    def said(count: int, method: str = "linear", **settings: Any) -> str:
        found: str = exporter(parents[:count], base, method, **settings).verified["logits"][
            "skipped"
        ]
        return found

    assert said(1) == "not asked for"
    assert said(2, "ties", verify="all") == "PEFT can't attach a merge by ties"
    with monkeypatch.context() as small:
        small.setattr("adapterhub.export.checked.SMALL", 10)
        assert "--verify-all" in said(1, verify="sized")
        assert "tokens" in exporter(parents[:1], base, verify="all").verified["logits"]
    monkeypatch.setattr("adapterhub.export.logits.free_on_host", lambda: 1000)
    assert "of memory" in said(1, verify="sized")


def test_without_a_tokenizer_random_sequences_are_compared(
    exporter: Exporter, tiny_llama: Path, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    base = tmp_path / "bare"
    shutil.copytree(tiny_llama, base, ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    found = exporter([make_adapter()], base, verify="sized").verified["logits"]
    assert found["on"] == "random sequences"
    assert found["exported"]["worst"] < 1e-4 < found["base"]["worst"]


def test_a_model_that_peft_would_call_another_one_is_refused(
    exporter: Exporter, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    base = tiny.llama(dtype="bfloat16")
    parent = exporter.add(make_adapter(modules=llama_modules(), scale=0.2))
    done = exporter([parent], base)
    view = exporter.store.view(parent.digest)
    with opened(exporter.store, [parent], "exported") as [adapter]:
        assert compare(done.base, [(adapter, view, 1.0)], done.folder)["share_lost"] < 0.1
        with pytest.raises(VerificationError, match="doesn't speak as"):
            compare(done.base, [(adapter, view, 1.5)], done.folder)
        config = json.loads((done.folder / "config.json").read_text())
        config["num_hidden_layers"] = "two"
        (done.folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(VerificationError, match="can't be loaded"):
            compare(done.base, [(adapter, view, 1.0)], done.folder)


@pytest.mark.slow
@pytest.mark.skipif(not DEMO_BASE.is_dir(), reason="the demo's base isn't here: make demo")
def test_on_a_real_model_rounding_costs_less_than_bf16_arithmetic(
    exporter: Exporter, make_peft_adapter: Callable[..., Path]
) -> None:
    adapter = make_peft_adapter(DEMO_BASE, r=8, targets="all-linear", strength=0.02)
    done = exporter([adapter], DEMO_BASE, verify="sized")
    weights, logits = done.verified["weights"], done.verified["logits"]
    assert weights["rows"] < weights["of_rows"], (
        "106 million values are more than are all computed again"
    )
    assert 0.1 < done.verified["bake_loss"]["total"] < 0.9
    assert logits["on"] == "4 prompts"
    assert logits["rounding"]["rms"] < 0.5 * logits["attached"]["rms"]
    assert logits["rounding"]["kl"] < logits["attached"]["kl"] < logits["base"]["kl"]
