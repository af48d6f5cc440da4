"""Several tenants before one real vLLM: who may ask for what, who is held back, and how a server says goodbye.

This vLLM is one of which nothing is known and which has no plugin of ours: the base is asked through an adapter of zeros.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapterhub.serve.vllm import find
from tests.serve.live import PROMPTS, House, LiveServer, question
from tests.support.models import ModelMaker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

WORDS = "--dtype float32 --max-model-len 128 --loaded 2 --batch 2 --no-verify -- --max-num-seqs 8"
ADAPTERS = {"acme": ["acme/*", "base"], "north": ["north/*"], "watch": []}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny: ModelMaker) -> House:
    house = House(tmp_path_factory.mktemp("tenants"), tiny.llama())
    for name in ("acme/tone", "north/tone"):
        house.add(name)
    return house


@pytest.fixture(scope="module")
def keys(house: House) -> dict[str, str]:
    """Tenants' keys, made by the command that makes them; acme may have four answers at once and ten a second."""
    made, lines = {}, []
    for tenant, adapters in ADAPTERS.items():
        words = [word for pattern in adapters for word in ("--adapters", pattern)]
        said = house.run("server", "key", tenant, *words, "--json").json
        made[tenant] = said["key"]
        lines.append(said["entry"])
    entries = [json.loads(line.removeprefix("- ")) for line in lines]
    entries[0] |= {"concurrent": 4, "rate": "600/min"}
    entries[2]["metrics"] = True
    file = house.folder / "keys.yaml"
    file.write_text(json.dumps(entries))
    file.chmod(0o600)
    return made


@pytest.fixture(scope="module")
def server(house: House, keys: dict[str, str]) -> Iterator[LiveServer]:
    running = LiveServer(
        house,
        *("acme/tone", "north/tone"),
        *("--base", str(house.base), "--keys", str(house.folder / "keys.yaml")),
        WORDS,
        ADAPTERHUB_VLLM=str(somewhere(house.folder)),
        ADAPTERHUB_VLLM_MASK="0",
    )
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def somewhere(folder: Path) -> Path:
    """A `vllm` that runs the real one, from where nobody can tell which it is."""
    wrapper = folder / "bin" / "vllm"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {find().executable} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def test_with_every_slot_taken_the_base_answers_as_itself_through_zeros(
    server: LiveServer, house: House, keys: dict[str, str]
) -> None:
    base = server.record["base"]
    who = {base: "acme", "acme/tone": "acme", "north/tone": "north"}
    wanted = {name: house.expected(None if name == base else name) for name in who}
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            asked = {
                name: [
                    pool.submit(server.ask, name, prompt, keys[tenant]) for prompt in PROMPTS[:2]
                ]
                for name, tenant in who.items()
            }
            for name, answers in asked.items():
                assert [answer.result() for answer in answers] == wanted[name][:2], name
    command = json.loads((house.store.runs_dir / server.record["run"] / "recipe.json").read_text())
    assert command["max_loras"] == 3


def test_each_key_sees_and_reaches_its_own_adapters_alone(
    server: LiveServer, house: House, keys: dict[str, str]
) -> None:
    base = server.record["base"]
    with server.client() as nobody, server.client("ah-wrong") as stranger:
        assert nobody.get("/v1/models").status_code == 401
        assert stranger.post("/v1/completions", json=question("x", [1])).status_code == 401
        assert nobody.get("/metrics").status_code == 401
        assert nobody.get("/health").status_code == 200
    with server.client(keys["acme"]) as acme:
        listed = {model["id"].partition("@")[0] for model in acme.get("/v1/models").json()["data"]}
        other = acme.post("/v1/completions", json=question("north/tone", PROMPTS[0]))
        invented = acme.post("/v1/completions", json=question("north/none", PROMPTS[0]))
    assert listed == {base, "acme/tone"}
    assert (other.status_code, invented.status_code) == (403, 403)
    for tenant, name in (("acme", "acme/tone"), ("north", "north/tone"), ("acme", base)):
        answers = [server.ask(name, prompt, keys[tenant]) for prompt in PROMPTS]
        assert answers == house.expected(None if name == base else name)


def test_a_flood_from_one_key_is_held_back_and_another_keeps_its_answers(
    server: LiveServer, house: House, keys: dict[str, str]
) -> None:
    wanted = house.expected("north/tone")
    running: list[int] = []
    over = threading.Event()
    statuses: Counter[int] = Counter()
    waits: list[str] = []

    def flood() -> None:
        with server.client(keys["acme"]) as client:
            while not over.is_set():
                answer = client.post("/v1/completions", json=question("acme/tone", PROMPTS[1], 64))
                statuses[answer.status_code] += 1
                if answer.status_code == 429:
                    waits.append(answer.headers["retry-after"])

    people = [threading.Thread(target=flood) for _ in range(8)]
    for person in people:
        person.start()
    try:
        time.sleep(1)
        digest = house.store.resolve("acme/tone").digest
        for prompt in PROMPTS * 2:
            assert server.ask("north/tone", prompt, keys["north"]) == wanted[PROMPTS.index(prompt)]
            running.append(server.status()["versions"][digest]["requests"])
    finally:
        over.set()
        for person in people:
            person.join()
    assert statuses[200] > 0
    assert statuses[429] > statuses[200]
    assert set(statuses) == {200, 429}
    assert all(int(wait) >= 1 for wait in waits)
    assert (
        1 <= max(running) <= 4
    )  # of the eight that ask: no more of them ever share a batch with the others


def test_metrics_tell_adapters_tenants_and_refusals_and_no_invented_names(
    server: LiveServer, keys: dict[str, str]
) -> None:
    with server.client(keys["watch"]) as watch:
        text = watch.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("adapterhub_")]
    assert any('adapter="north/tone"' in line and 'status="200"' in line for line in lines)
    assert any('tenant="acme"' in line and 'status="429"' in line for line in lines)
    assert not [line for line in lines if "north/none" in line]
    assert any(line.startswith("adapterhub_adapter_loads_total") for line in lines)
    assert any(line.startswith("vllm:") for line in text.splitlines())
    with server.client(keys["acme"]) as acme:
        assert acme.get("/metrics").status_code == 403


def test_told_to_stop_it_lets_a_running_answer_end_and_takes_no_new_one(
    server: LiveServer, keys: dict[str, str]
) -> None:
    body = {**question("north/tone", PROMPTS[0], 120), "stream": True}
    with (
        server.client(keys["north"]) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        server.process.terminate()
        time.sleep(0.3)
        text = [line for line in lines if line]
    assert text[-1] == "data: [DONE]"
    assert sum(len(json.loads(line[6:])["choices"]) for line in text[:-1]) > 50
    assert server.stop() == 130
    assert server.house.run("server", "ls", "--json").json == []
