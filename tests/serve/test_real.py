"""vLLM itself, listening directly: what it answers is what transformers and PEFT answer, and it ends when told to.

In float32 greedy answers are equal token for token. Base and adapters are asked at the same time, so that they share
batches: the fault that the spare slot is there for would show in the base's answers.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from adapterhub.serve.vllm import OLDEST, find
from tests.serve.live import House, LiveServer, expected
from tests.support.models import ModelMaker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ADAPTERS = ("support/tone", "terms")
SMALL = "--dtype float32 --max-model-len 64"


@pytest.fixture
def house(tmp_path: Path, tiny: ModelMaker) -> House:
    """Two adapters with large effects, checked against the base."""
    house = House(tmp_path, tiny.llama())
    for name in ADAPTERS:
        house.add(name)
    return house


def test_directly_vllm_answers_as_transformers_and_peft_do_and_ctrl_c_ends_it(house: House) -> None:
    server = LiveServer(
        house, *ADAPTERS, "--base", str(house.base), "--direct", SMALL, "-- --max-num-seqs 16"
    )
    try:
        wanted = {name: house.expected(name) for name in ADAPTERS}
        record = server.wait_until_ready().record
        versions = [f"{name}@{house.store.resolve(name).digest[7:19]}" for name in ADAPTERS]
        assert sorted(record["names"]) == sorted([record["base"], *ADAPTERS, *versions])
        with server.client() as client:
            listed = client.get("/v1/models").json()["data"]
        assert sorted(model["id"] for model in listed) == sorted(record["names"])
        wanted |= {version: wanted[name] for version, name in zip(versions, ADAPTERS, strict=True)}
        wanted[record["base"]] = house.expected(None)
        answers = server.ask_all(record["names"])
        everything = server.family()
    finally:
        code = server.stop(signal.SIGINT)
    assert answers == wanted
    assert len({json.dumps(wanted[name]) for name in (record["base"], *ADAPTERS)}) == 3
    assert code == 130
    assert len(everything) >= 4  # adapterhub, guard, vLLM and at least its engine
    assert not [one for one in everything if one.is_running()]


def test_vllm_and_transformers_load_an_exported_model_and_it_answers_as_the_attached_one(
    house: House, tmp_path: Path
) -> None:
    name, out = "support/tone", tmp_path / "exported"
    said = house.run("export", name, "--base", house.base, "-o", out, "--no-verify")
    assert said.code == 0, said.err
    attached = house.expected(name)
    assert expected(out, None) == attached
    assert house.expected(None) != attached
    # As the base of others: to vLLM it is a model like any. They weren't trained on it, which is said and allowed.
    words = ["--base", str(out), "--allow-mismatch", SMALL]
    server = LiveServer(house, *ADAPTERS, *words, "-- --max-num-seqs 16")
    try:
        base = server.wait_until_ready().record["base"]
        answers = server.ask_all([base])
    finally:
        server.stop(signal.SIGINT)
    assert answers == {base: attached}


def test_vllm_killed_while_it_starts_is_code_1_and_leaves_no_engine_behind(house: House) -> None:
    server = LiveServer(house, *ADAPTERS, "--base", str(house.base), SMALL)
    try:
        everything = wait_for_engine(server)
        ours = [
            server.process.pid,
            *(one.pid for one in everything if one.ppid() == server.process.pid),
        ]
        vllm = next(one for one in everything if "serve" in one.cmdline() and one.pid not in ours)
        vllm.kill()
        server.process.wait(60)
    finally:
        code = server.stop()
    assert code == 1
    said = server.stderr.read_text()
    assert "it was ended by SIGKILL" in said
    assert "--max-model-len" in said  # memory is the usual reason
    assert not [one for one in everything if one.is_running()]


def test_the_vllm_of_this_environment_is_found_with_its_version() -> None:
    engine = find()
    assert engine.cpu
    assert engine.version is not None
    assert tuple(map(int, engine.version.split(".")[:2])) >= OLDEST


def wait_for_engine(server: LiveServer) -> list[psutil.Process]:
    """All processes, as soon as vLLM has started its engine."""
    while server.process.poll() is None:
        found = server.family()
        if any(one.name().startswith("VLLM::") for one in found):
            return found
        time.sleep(0.1)
    raise AssertionError(server.stderr.read_text())
