"""One server from start to end, on a stand-in for vLLM: changed while it runs, engine killed, keys, and every way to stop it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from adapterhub.errors import ExternalToolError
from adapterhub.serve.client import Running, servers
from adapterhub.store import Store
from tests.cli.calling import PROGRAM, call, first_record, wait_until

Add = Callable[..., str]


class Served:
    """`adapterhub serve` on the stand-in."""

    def __init__(
        self, folder: Path, port: int, words: list[str], variables: dict[str, str]
    ) -> None:
        self.said = folder / "stderr"
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", "--json", "--no-verify", "--port", str(port), *words],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **variables},
            )
        self.port = port

    def wait(self) -> dict[str, Any]:
        """What it prints when it is ready."""
        assert self.process.stdout is not None
        try:
            return first_record(self.process.stdout)
        except EOFError as error:
            raise AssertionError(self.said.read_text()) from error

    def ask(self, model: str, key: str = "", **fields: object) -> httpx.Response:
        """One completion; the stand-in's text is the name it was asked under."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json={"model": model, "prompt": "x", **fields},
            headers=headers,
            trust_env=False,
        )

    def text(self, model: str) -> str:
        """The engine's name for who answered."""
        return str(self.ask(model).json()["choices"][0]["text"])

    def engine(self) -> psutil.Process:
        """The stand-in's own process."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return next(
            one
            for one in family
            if "--served-model-name" in one.cmdline() and "-I" not in one.cmdline()
        )


Serve = Callable[..., Served]


@pytest.fixture
def serve(stand_in: Path, port: int, tmp_path: Path, add: Add) -> Iterator[Serve]:
    """serve(*words, VARIABLE=...): a server of tone and terms that ends with the test."""
    for seed, name in enumerate(("tone", "terms")):
        add(name, seed=seed)
    running: list[Served] = []

    def start(*words: str, **variables: str) -> Served:
        names = [] if "tone" in words else ["tone", "terms"]
        running.append(Served(tmp_path, port, [*names, "--vllm", str(stand_in), *words], variables))
        return running[-1]

    yield start
    for server in running:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(30)
        assert server.process.stdout is not None
        server.process.stdout.close()


def test_names_become_digests_inside_and_come_back_outside(serve: Serve, store: Store) -> None:
    server = serve()
    record = server.wait()
    digest = store.resolve("tone").digest.removeprefix("sha256:")
    assert server.text("tone") == digest == server.text(f"tone@{digest[:12]}")
    assert server.ask("tone").json()["model"] == "tone"
    assert server.text(record["base"]) == record["base"]
    assert server.ask(record["base"]).json()["model"] == record["base"]
    assert server.ask("tome").status_code == 404


def test_a_server_is_changed_by_commands_and_says_what_it_did(
    serve: Serve, store: Store, add: Add
) -> None:
    server = serve()
    run = server.wait()["run"]
    new = add("newer", seed=7)
    first = store.resolve("tone").digest
    assert call("server", "add", "newer", "-q").out == "newer\n"
    assert call("tag", "newer", "tone", "--move").code == 0
    assert call("server", "update", "tone").code == 0
    assert server.text("tone") == new.removeprefix("sha256:")
    assert call("server", "rollback", "tone").code == 0
    assert server.text("tone") == first.removeprefix("sha256:")
    (document,) = call("server", "ls", "--json").json
    assert [alias["name"] for alias in document["aliases"]] == ["tone", "terms", "newer"]
    assert document["versions"][new]["loaded"]
    assert call("server", "rm", "newer", "terms").code == 0
    assert server.ask("newer").status_code == 404
    events = told(store, run)
    assert [event["event"] for event in events[-6:]] == [
        "open", "added", "updated", "rolled_back", "removed", "removed",
    ]  # fmt: skip
    leased = {d for lease in store.leases.live() if lease.kind == "serve" for d in lease.digests}
    assert {first, new} <= leased


WRONG: list[tuple[tuple[str, ...], int, str]] = [
    (("update", "nobody"), 4, "adapterhub ls"),
    (("update", "tone", "--to", "terms=0"), 2, "share"),
    (("rollback", "tone"), 1, "nothing earlier"),
    (("rollback", "tome"), 4, "Did you mean tone"),
    (("add", "tone"), 1, "server update"),
    (("rm", "nobody"), 4, "doesn't serve 'nobody'"),
    (("ls", "--server", "9"), 4, "No server is meant by '9'"),
    (("chat", "tome", "--prompt", "x"), 4, "tone"),
    (("verify", "nobody"), 4, "server ls"),
]


def test_a_wrong_change_is_refused_and_changes_nothing(serve: Serve) -> None:
    serve().wait()
    before = call("server", "ls", "--json").json[0]["aliases"]
    for words, code, said in WRONG:
        done = call("server", *words)
        assert (done.code, "Traceback" in done.err) == (code, False), words
        assert said in done.err, words
    assert call("server", "ls", "--json").json[0]["aliases"] == before


def test_without_a_server_every_command_says_how_to_start_one(store: Store) -> None:
    for words in (("add", "x"), ("update", "x"), ("rm", "x"), ("logs",), ("stop",), ("verify",)):
        done = call("server", *words)
        assert done.code == 4, words
        assert "adapterhub serve" in done.err
    assert call("server", "ls", "--json").json == []


def test_an_engine_that_dies_is_started_again_and_asks_to_be_asked_again_meanwhile(
    serve: Serve,
) -> None:
    server = serve()
    server.wait()
    server.engine().kill()
    assert wait_until(lambda: server.ask("tone").status_code == 503)
    assert int(server.ask("tone").headers["retry-after"]) >= 1
    assert wait_until(lambda: server.ask("tone").status_code == 200)
    assert call("server", "ls", "--json").json[0]["restarts"] == 1
    assert server.text("terms")


@pytest.mark.slow
def test_an_engine_that_dies_and_can_not_start_again_ends_the_server_with_its_reason(
    serve: Serve, stand_in: Path, store: Store
) -> None:
    server = serve()
    run = server.wait()["run"]
    text = stand_in.read_text()
    stand_in.write_text(text.replace('if seed == "1"', "if True"))
    server.engine().kill()
    assert server.process.wait(120) == 1
    assert "LoRA rank 64 is greater than 16" in server.said.read_text()
    events = told(store, run)
    assert [event["event"] for event in events][-2:] == ["given_up", "failed"]
    assert [event["event"] for event in events].count("launched") == 6


def test_an_adapter_the_engine_will_not_load_keeps_the_door_shut(serve: Serve) -> None:
    server = serve("--", "--seed", "5")
    assert server.process.wait(60) == 1
    assert "it is too large" in server.said.read_text()


def test_the_key_of_the_environment_is_asked_for_at_the_door(serve: Serve) -> None:
    server = serve(VLLM_API_KEY="secret")
    server.wait()
    assert server.ask("tone").status_code == 401
    assert server.ask("tone", "wrong").status_code == 401
    assert server.ask("tone", "secret").status_code == 200


def test_told_to_stop_before_it_is_ready_it_stops_and_leaves_nobody(
    serve: Serve, store: Store
) -> None:
    server = serve("--", "--seed", "2")  # never ready
    assert wait_until(lambda: len(psutil.Process(server.process.pid).children(recursive=True)) > 2)
    assert wait_until(lambda: _status(server) == 503)  # the door is there, and says not yet
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.terminate()
    assert server.process.wait(30) == 130
    assert not [one for one in family if one.is_running()]
    assert store.leases.live() == []


def test_a_version_name_means_its_version_even_where_it_is_served_as_a_name(
    serve: Serve, store: Store
) -> None:
    digest = store.resolve("tone").digest
    version = f"tone@{digest[7:19]}"
    server = serve("tone", "terms", version)
    server.wait()
    done = call("server", "update", version, "--to", "terms")
    assert done.code == 1
    assert "means this version for ever" in done.err
    assert server.text(version) == digest.removeprefix("sha256:")


def test_of_two_that_take_a_name_at_once_one_is_told_that_it_is_taken(
    serve: Serve, store: Store, add: Add
) -> None:
    serve().wait()
    digests = [add(f"late{number}", seed=20 + number) for number in range(2)]
    (server,) = servers(store)

    def take(digest: str) -> bool:
        try:
            server.change("add", name="late", targets=[{"digest": digest}])
        except ExternalToolError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(take, digests)) == [False, True]
    with pytest.raises(ExternalToolError, match="is missing from the store"):
        server.change("add", name="none", targets=[{"digest": f"sha256:{'0' * 64}"}])


def test_a_restart_loads_what_was_loaded_and_keeps_what_is_pinned(serve: Serve) -> None:
    server = serve("terms", "tone", "--pin", "tone")
    server.wait()
    server.engine().kill()
    assert wait_until(lambda: server.ask("tone").status_code == 503)
    assert wait_until(lambda: server.ask("tone").status_code == 200)
    (document,) = call("server", "ls", "--json").json
    assert document["loaded"] == 2
    assert [version["pinned"] for version in document["versions"].values()].count(True) == 1
    (running,) = servers_of_this()
    for digest in document["versions"]:
        running.change("reload", digest=digest)
    (again,) = call("server", "ls", "--json").json
    for digest, before in document["versions"].items():
        now = again["versions"][digest]
        assert now == {**before, "loads": before["loads"] + 1, "evictions": 1}


def servers_of_this() -> list[Running]:
    """What runs on the store of this test."""
    return servers(Store.open())


def test_half_a_head_and_one_without_end_are_given_up(serve: Serve) -> None:
    server = serve()
    server.wait()
    with socket.create_connection(("127.0.0.1", server.port), 30) as endless:
        endless.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(ConnectionError):
            _send_without_end(endless)
    with socket.create_connection(("127.0.0.1", server.port), 30) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        with suppress(ConnectionResetError):
            assert half.recv(1) == b""  # within ten seconds, not never
    assert server.ask("tone").status_code == 200


def test_stop_ends_it_and_waits_until_it_has_ended(serve: Serve) -> None:
    server = serve()
    server.wait()
    assert call("server", "stop", "-q").code == 0
    assert server.process.wait(5) == 130


def test_killed_without_a_chance_it_leaves_no_engine_and_is_not_found(serve: Serve) -> None:
    server = serve()
    server.wait()
    family = psutil.Process(server.process.pid).children(recursive=True)
    server.process.kill()
    server.process.wait()
    assert wait_until(lambda: not any(one.is_running() for one in family))
    assert call("server", "ls", "--json").json == []


def _send_without_end(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"x-more: " + b"a" * 8000 + b"\r\n")
    connection.recv(1)


def told(store: Store, run: str) -> list[dict[str, Any]]:
    """The events of a run, but for how far it had come."""
    text = (store.runs_dir / run / "events.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    return [event for event in events if event["event"] != "progress"]


def _status(server: Served) -> int:
    try:
        return server.ask("tone").status_code
    except httpx.ConnectError:
        return 0
