"""A healthy server is found healthy, whatever the seed; each way to serve something else is found, named and explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterhub.errors import ConflictError, IncompatibleError
from adapterhub.serve.verify import COLUMNS, Report, Served, verify
from tests.serve.verify.standin import BASE, StandIn, merged
from tests.support.models import peft_adapter

NOISE = {"float32": 3e-6, "float16": 4e-3, "bfloat16": 3e-2}
"""Of every logit, with which 16-bit servers behave as measured ones do."""


async def asked(server: StandIn, base: Path, **options: Any) -> Report:
    async with server.client() as client:
        settings = {"dtype": "float32", "reference": "never", **options}
        return await verify(client, base, server.served, **settings)


def kinds(report: Report) -> set[tuple[str, str]]:
    return {(fault.who, fault.kind) for fault in report.faults}


def told(report: Report, who: str) -> str:
    return " ".join(str(fault) for fault in report.faults if fault.who == who)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dtype", NOISE)
async def test_a_healthy_server_is_found_healthy(
    server: StandIn, base: Path, dtype: str, seed: int
) -> None:
    server.noise = NOISE[dtype]
    server.random.manual_seed(seed)
    churned = 0

    async def churn() -> None:
        nonlocal churned
        churned += 1

    report = await asked(
        server, base, dtype=dtype, seed=seed, reference="always", churn=churn, rounds=1
    )
    assert report.ok, report.faults
    assert not report.remarks
    assert not report.untold
    assert churned == report.rounds == 1
    assert server.most_together > len(server.models)
    assert [row["verdict"] for row in report.rows()] == ["ok"] * 4
    assert set(report.rows()[0]) == set(COLUMNS)
    found = json.loads(json.dumps(report.document(), allow_nan=False))
    assert found["ok"]
    assert all(name["transformers"]["agrees"] for name in found["names"])
    assert all(name["effect"]["worst"] > 1 for name in found["names"] if not name["base"])


@pytest.mark.parametrize(
    ("dtype", "last"), [("float32", "tone"), ("float16", "poems"), ("bfloat16", "terms")]
)
async def test_a_base_whose_rows_take_the_last_slot(
    server: StandIn, base: Path, dtype: str, last: str
) -> None:
    server.last_slot, server.noise = last, NOISE[dtype]
    report = await asked(server, base, dtype=dtype, rounds=1)
    assert kinds(report) == {(BASE, "mixed")}
    said = told(report, BASE)
    assert f"answers as '{last}' does when others are asked" in said
    assert "#48421" in said
    assert "plugin" in said


async def test_a_base_that_only_decodes_in_the_last_slot(server: StandIn, base: Path) -> None:
    """Asked alone too: its own answers are scored by a prefill, which hasn't got the fault."""
    server.last_slot = "tone"
    server.folders = {BASE: None, "tone": server.folders["tone"]}
    report = await asked(server, base, rounds=0)
    assert kinds(report) == {(BASE, "mixed")}


async def test_an_adapter_that_takes_anothers_slot_while_both_are_asked(
    server: StandIn, base: Path
) -> None:
    server.takes["terms"] = "poems"
    report = await asked(server, base)
    assert kinds(report) == {("terms", "mixed")}
    assert "answers as 'poems' does" in told(report, "terms")


@pytest.mark.parametrize("reference", ["never", "always"])
async def test_an_adapter_served_as_the_plain_base(
    server: StandIn, base: Path, reference: str
) -> None:
    server.models["tone"] = server.models[BASE]
    report = await asked(server, base, reference=reference, rounds=1)
    assert kinds(report) == {("tone", "no effect")}
    assert "its keys match nothing there" in told(report, "tone")


async def test_an_adapter_that_is_none_by_its_own_factors_is_no_fault(
    server: StandIn, base: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "zero", strength=0.0)
    server.folders["zero"], server.models["zero"] = folder, server.models[BASE]
    report = await asked(server, base, reference="always", rounds=1)
    assert report.ok, report.faults
    assert "zero changes nothing: its own factors are zero" in report.remarks
    assert [pair[:2] for pair in report.untold] == [(BASE, "zero")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_an_adapter_of_which_half_the_layers_are_missing(
    server: StandIn, base: Path, tmp_path: Path, dtype: str
) -> None:
    whole = server.folders["tone"]
    assert whole is not None
    half = shutil.copytree(whole, tmp_path / "half") / "adapter_model.safetensors"
    tensors = load_file(half)
    kept = {
        key: torch.zeros_like(value) if ".layers.1." in key else value
        for key, value in tensors.items()
    }
    save_file(kept, half)
    server.models["tone"], server.noise = merged(base, half.parent), NOISE[dtype]
    report = await asked(server, base, dtype=dtype, reference="always", rounds=1)
    assert kinds(report) == {("tone", "differs")}
    assert "of its effect arrives" in told(report, "tone")
    assert "modules or layers are missing" in told(report, "tone")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_two_adapters_whose_names_are_crossed(
    server: StandIn, base: Path, dtype: str
) -> None:
    models = server.models
    models["tone"], models["terms"] = models["terms"], models["tone"]
    server.noise = NOISE[dtype]
    report = await asked(server, base, dtype=dtype, reference="always", rounds=1)
    assert kinds(report) == {("tone", "differs"), ("terms", "differs")}
    assert "it answers as 'terms' does" in told(report, "tone")
    assert "it answers as 'tone' does" in told(report, "terms")


async def test_weights_of_no_adapter_here(server: StandIn, base: Path, tmp_path: Path) -> None:
    folder = peft_adapter(base, tmp_path / "other", seed=9, strength=0.15)
    server.models["tone"] = merged(base, folder)
    report = await asked(server, base, reference="always", rounds=1)
    assert kinds(report) == {("tone", "differs")}
    assert "as none of the adapters here" in told(report, "tone")


async def test_another_base_is_told_of_the_base_and_not_of_every_adapter(
    server: StandIn, base: Path, tiny: Any
) -> None:
    server.models[BASE] = merged(tiny.llama(seed=1), None)
    report = await asked(server, base, reference="always", rounds=1)
    assert kinds(report) == {(BASE, "differs")}


async def test_weights_exchanged_under_one_name_while_it_is_verified(
    server: StandIn, base: Path
) -> None:
    async def churn() -> None:
        server.models["tone"] = server.models["poems"]

    report = await asked(server, base, churn=churn, rounds=1)
    assert ("tone", "changed") in kinds(report)
    assert ("tone", "mixed") not in kinds(report)
    assert {who for who, _ in kinds(report)} == {"tone"}
    assert "under a name and path of its own" in told(report, "tone")


async def test_weights_exchanged_under_one_name_since_the_last_time(
    server: StandIn, base: Path
) -> None:
    """The prefix cache still has what the earlier weights made of the long prompt."""
    assert (await asked(server, base, rounds=1)).ok
    server.models["tone"] = server.models["poems"]
    report = await asked(server, base, rounds=1)
    assert kinds(report) == {("tone", "stale")}
    assert "from the prefix cache otherwise than when it computes it" in told(report, "tone")
    server.cache.clear()
    assert (await asked(server, base, rounds=1)).ok


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("strength", [0.1, 0.01, 0.001, 0.00001])
async def test_mixing_is_found_or_it_is_said_that_it_cannot_be(
    server: StandIn, base: Path, tmp_path: Path, strength: float, dtype: str
) -> None:
    """However small the effect: there is no strength at which a mixed base passes for an isolated one."""
    folder = peft_adapter(base, tmp_path / "small", seed=4, strength=strength)
    server.folders = {BASE: None, "small": folder}
    server.models["small"] = merged(base, folder)
    server.last_slot, server.noise = "small", NOISE[dtype]
    report = await asked(server, base, dtype=dtype, rounds=1)
    if report.untold:
        assert "nothing is known of their isolation" in " ".join(report.remarks)
    else:
        assert kinds(report) == {(BASE, "mixed")}
    if strength == 0.1:
        assert not report.ok
    if strength == 0.00001 and dtype == "bfloat16":
        assert report.untold


async def test_a_server_that_does_not_repeat_itself(server: StandIn, base: Path) -> None:
    server.noise = 0.05
    report = await asked(server, base, rounds=1)
    assert ("the server", "unrepeatable") in kinds(report)
    server.noise = 0.001  # too much for float32, far less than the adapters' effect
    report = await asked(server, base, rounds=1)
    assert report.ok, report.faults
    assert "more than is usual" in report.remarks[0]


async def test_what_is_refused_or_fails_is_a_fault_and_no_traceback(
    server: StandIn, base: Path
) -> None:
    async def churn() -> None:
        raise ConflictError("tone is being loaded already.")

    del server.models["terms"]
    report = await asked(server, base, churn=churn, rounds=1)
    assert kinds(report) == {("terms", "refused"), ("the server", "loading")}
    assert "HTTP 404: The model `terms` does not exist." in told(report, "terms")
    assert "tone is being loaded already" in told(report, "the server")
    server.models.clear()
    assert kinds(await asked(server, base)) >= {(BASE, "refused"), ("tone", "refused")}


async def test_nan_is_a_fault_of_who_says_it(server: StandIn, base: Path) -> None:
    server.models["tone"] = merged(base, server.folders["tone"])
    server.models["tone"].model.norm.weight.fill_(torch.nan)
    report = await asked(server, base, rounds=1)
    assert kinds(report) == {("tone", "refused")}
    assert "NaN" in told(report, "tone")


async def test_many_adapters_are_sampled_and_two_names_of_one_version_are_no_pair(
    server: StandIn, base: Path
) -> None:
    for number in range(20):
        server.folders[f"tone@{number}"] = server.folders["tone"]
        server.models[f"tone@{number}"] = server.models["tone"]
    report = await asked(server, base, rounds=0)
    assert report.ok, report.faults
    assert len(report.names) == 17
    assert len(report.left_out) == 7
    assert "16 of 23 adapters were looked at" in report.remarks[0]
    assert not report.untold


async def test_a_base_too_large_to_compute_is_not_compared_and_that_is_said(
    server: StandIn, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.serve.verify.reference.free_on_host", lambda: 1000)
    report = await asked(server, base, reference="auto", rounds=1)
    assert report.ok
    assert "not compared with transformers: it takes" in report.remarks[0]
    assert "1 kB are free" in report.rows()[1]["transformers"]


async def test_without_tokenizer_and_with_little_room(
    server: StandIn, base: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    server.limit = 20
    assert (await asked(server, bare, rounds=1)).ok
    server.last_slot = "tone"
    assert kinds(await asked(server, bare, rounds=1)) == {(BASE, "mixed")}
    server.limit = 5
    with pytest.raises(IncompatibleError, match="too few to verify"):
        await asked(server, bare)


async def test_what_time_does_not_allow_is_left_out_and_said(server: StandIn, base: Path) -> None:
    report = await asked(server, base, seconds=0.0)
    assert report.left_out == ["tone", "terms", "poems"]
    assert [one.name for one in report.names] == [BASE]


async def test_the_base_is_asked_for_by_the_name_it_is_given(base: Path) -> None:
    with pytest.raises(ValueError, match="the base"):
        async with StandIn(base, {}).client() as client:
            await verify(client, base, [Served("tone", base)], dtype="float32")
