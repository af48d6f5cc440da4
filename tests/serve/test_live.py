"""vLLM itself behind our door, changed while it answers: more adapters than places, moved names, deaths and floods.

In float32 greedy answers are equal token for token, so every answer is either right or wrong.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import wait_until
from tests.serve.live import LENGTH, PROMPTS, Crowd, House, LiveServer, question
from tests.support.models import ModelMaker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

NAMES = ["support/tone", "support/terms", "legal", "plain", "extra"]
WORDS = "--dtype float32 --max-model-len 128 --loaded 3 --batch 2 --no-verify -- --max-num-seqs 16"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny: ModelMaker) -> House:
    house = House(tmp_path_factory.mktemp("live"), tiny.llama())
    for name in NAMES:
        house.add(name)
    return house


@pytest.fixture(scope="module")
def server(house: House) -> Iterator[LiveServer]:
    """Five adapters, of which vLLM holds three and batches two."""
    running = LiveServer(house, "--all", "--base", str(house.base), WORDS)
    try:
        yield running.wait_until_ready()
    finally:
        everyone = running.family()
        code = running.stop()
    assert code == 130, running.stderr.read_text()
    assert not [one for one in everyone if one.is_running()]


def test_more_adapters_than_places_and_the_base_all_at_once_are_answered_as_by_transformers(
    server: LiveServer, house: House
) -> None:
    base = server.record["base"]
    versions = [f"{name}@{house.store.resolve(name).digest[7:19]}" for name in NAMES]
    with server.client() as client:
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert sorted(listed) == sorted([base, *NAMES, *versions]) == sorted(server.record["names"])
    wanted = {name: house.expected(name) for name in NAMES}
    wanted |= {version: wanted[name] for version, name in zip(versions, NAMES, strict=True)}
    wanted[base] = house.expected(None)
    assert server.ask_all([base, *NAMES, *versions]) == wanted
    assert server.ask_all([*reversed(NAMES), base]) == {
        name: wanted[name] for name in [*NAMES, base]
    }
    assert len({str(wanted[name]) for name in (base, *NAMES)}) == len(NAMES) + 1
    status = server.status()
    assert status["loaded"] <= status["capacity"] == 3
    assert not any(version["requests"] for version in status["versions"].values())


def test_an_update_under_load_fails_nobody_and_mixes_no_versions(
    server: LiveServer, house: House
) -> None:
    before = house.expected("support/tone")
    old = house.store.resolve("support/tone").digest
    with Crowd(server, "support/tone") as crowd:
        assert wait_until(lambda: len(crowd.answers) > 8)
        new = house.add("support/tone", move=True)
        said = house.run("server", "update", "support/tone", "--json")
        assert said.code == 0, said.err
        count = len(crowd.answers)
        after = house.expected("support/tone")
        asked = server.ask("support/tone", PROMPTS[0])
        assert wait_until(lambda: len(crowd.answers) > count + 16)
        back = house.run("server", "rollback", "support/tone", "--json")
        assert back.code == 0, back.err
        again = server.ask("support/tone", PROMPTS[0])
    assert crowd.failures == []
    assert (asked, again) == (after[0], before[0])
    assert before != after
    for place, *tokens in crowd.answers:
        assert tokens in (before[place], after[place])
    assert any(tokens == after[place] for place, *tokens in crowd.answers[count:])
    assert server.ask(f"support/tone@{new[7:19]}", PROMPTS[1]) == after[1]
    assert server.ask(f"support/tone@{old[7:19]}", PROMPTS[1]) == before[1]
    house.run("rollback", "support/tone")


def test_a_split_name_is_answered_by_one_of_its_versions_the_same_for_the_same_user(
    server: LiveServer, house: House
) -> None:
    said = house.run("server", "update", "plain", "--to", "plain=3", "--to", "legal=1", "--json")
    assert said.code == 0, said.err
    ours, theirs = house.expected("plain")[0], house.expected("legal")[0]
    got = []
    with server.client() as client:
        for user in range(24):
            body = {**question("plain", PROMPTS[0]), "user": str(user)}
            twice = [
                client.post("/v1/completions", json=body).json()["choices"][0]["token_ids"]
                for _ in range(2)
            ]
            assert twice[0] == twice[1]
            got.append(twice[0])
    said = house.run("server", "verify", "plain", "--json", timeout=200)
    assert said.code == 0, said.err + said.out
    assert len(said.json["names"]) == 3  # both of its versions, and the base
    assert ours in got
    assert theirs in got
    assert all(tokens in (ours, theirs) for tokens in got)
    assert house.run("server", "rollback", "plain").code == 0


def test_adapters_come_and_go_while_the_server_runs(server: LiveServer, house: House) -> None:
    house.add("late")
    assert house.run("server", "add", "late").code == 0
    assert server.ask("late", PROMPTS[2]) == house.expected("late")[2]
    assert house.run("server", "add", "late").code == 1  # it is there
    assert house.run("server", "rm", "late").code == 0
    with server.client() as client:
        answer = client.post("/v1/completions", json=question("late", PROMPTS[0]))
        near = client.post("/v1/completions", json=question("suport/tone", PROMPTS[0]))
    assert answer.status_code == near.status_code == 404
    assert "support/tone" in near.json()["error"]["message"]


def test_what_does_not_fit_is_refused_and_nothing_changes(
    server: LiveServer, house: House, tiny: ModelMaker, tmp_path: Path
) -> None:
    from tests.support.models import peft_adapter

    wrong = peft_adapter(tiny.llama(), tmp_path / "wrong")
    house.store.add_folder(wrong, name="wrong")
    said = house.run("server", "add", "wrong")
    assert said.code == 5, said.err
    assert "doesn't fit the base" in said.err
    large = peft_adapter(house.base, tmp_path / "large", r=64)
    house.store.add_folder(large, name="large", base=str(house.base))
    said = house.run("server", "add", "large")
    assert said.code == 5
    assert "--max-rank 64" in said.err
    assert {alias["name"] for alias in server.status()["aliases"]} == set(NAMES)


def test_what_a_server_holds_survives_its_name_and_a_collection(
    server: LiveServer, house: House
) -> None:
    tokens = house.expected("legal")[0]
    assert house.run("rm", "legal", "--yes").code == 0
    assert house.run("gc", "--yes", "--keep", "0").code in (0, 2)
    assert server.ask("legal", PROMPTS[0]) == tokens
    assert house.run("undo").code == 0


def test_a_client_that_leaves_in_the_middle_of_a_stream_holds_nothing(
    server: LiveServer, house: House
) -> None:
    body = {**question("plain", PROMPTS[0], 100), "stream": True}
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        next(answer.iter_lines())
    assert wait_until(
        lambda: not any(v["requests"] for v in server.status()["versions"].values()), seconds=10
    )
    assert server.ask("plain", PROMPTS[0]) == house.expected("plain")[0]


def test_the_door_has_no_route_to_what_only_the_server_may_do(server: LiveServer) -> None:
    with server.client() as client:
        body = {"lora_name": "x", "lora_path": "/etc"}
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 404
        assert client.post("/v1/unload_lora_adapter", json=body).status_code == 404
        assert client.get("/control/status").status_code == 404
        assert client.get("/docs").status_code == 404
        json = {"Content-Type": "application/json"}
        assert client.post("/v1/completions", content=b"{", headers=json).status_code == 400
        huge = b'{"prompt": "' + b"a" * (9 * 2**20) + b'"}'
        assert client.post("/v1/completions", content=huge, headers=json).status_code == 413


def test_verify_finds_a_running_server_well_and_chat_and_logs_reach_it(server: LiveServer) -> None:
    house = server.house
    said = house.run("server", "verify", "--json", timeout=200)
    assert said.code == 0, said.err + said.out
    assert said.json["ok"]
    said = house.run("server", "chat", "plain", "--prompt", "Hello", "--max-tokens", "8")
    assert said.code == 0, said.err
    assert house.run("server", "logs", "-n", "5").out.count("\n") == 5
    said = house.run("server", "chat", "nobody", "--prompt", "Hello")
    assert said.code == 4


def test_a_folder_deleted_by_force_and_an_engine_killed_are_survived(
    server: LiveServer, house: House
) -> None:
    for name in ("support/terms", "legal", "plain"):
        server.ask(name, PROMPTS[0])  # the last three are loaded
    shutil.rmtree(house.store.view(house.store.resolve("extra").digest), ignore_errors=False)
    assert server.ask("extra", PROMPTS[0]) == house.expected("extra")[0]

    engine = next(one for one in server.family() if "VLLM::" in one.name())
    engine.send_signal(signal.SIGKILL)
    started = time.monotonic()
    assert wait_until(lambda: _status(server, "plain") == 503, seconds=30)
    assert wait_until(lambda: _status(server, "plain") == 200, seconds=150)
    assert server.status()["restarts"] == 1
    assert time.monotonic() - started < 200
    base = server.record["base"]
    wanted = {name: house.expected(name) for name in NAMES} | {base: house.expected(None)}
    assert server.ask_all([base, *NAMES]) == wanted


def _status(server: LiveServer, model: str) -> int:
    with server.client() as client:
        return client.post("/v1/completions", json=question(model, PROMPTS[0], LENGTH)).status_code
