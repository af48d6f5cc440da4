"""The server's life is tied to ours: it starts once, ends whole, and says why when it dies. (vLLM itself: test_real.)"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from adapterhub.errors import ConflictError, ExternalToolError, UsageError
from adapterhub.serve import guard, launch
from adapterhub.serve.invocation import Invocation, invoke
from adapterhub.serve.launch import Server, launched, require_free, wait_until_ready
from adapterhub.serve.place import Place
from adapterhub.serve.plan import Plan, make_plan
from adapterhub.serve.vllm import Engine
from adapterhub.store import Store

Add = Callable[..., str]


class Life:
    """A plan on the stand-in, and what it takes to run it."""

    def __init__(self, store: Store, stand_in: Path, port: int, log: Path) -> None:
        self.store, self.port, self.log = store, port, log
        self.engine = Engine(stand_in, "0.32.0", cpu=True)

    def plan(self, seed: int = 0) -> tuple[Plan, Invocation]:
        plan = make_plan(
            self.store, ["tone"], port=self.port, extra=["--seed", str(seed)], direct=True
        )
        return plan, invoke(plan, self.engine)

    @contextmanager
    def running(self, seed: int = 0) -> Iterator[Server]:
        plan, invocation = self.plan(seed)
        with launched(invocation, self.log) as server:
            wait_until_ready(server, Place(plan.url), plan.names, seconds=30, tell=lambda *_: None)
            yield server

    @property
    def engine_process(self) -> int:
        """The child of the stand-in."""
        return int(self.log.read_text().split()[1])


@pytest.fixture
def life(store: Store, add: Add, stand_in: Path, port: int, tmp_path: Path) -> Life:
    add("tone")
    return Life(store, stand_in, port, tmp_path / "vllm.log")


def gone(*pids: int, within: float = 10) -> bool:
    """Whether these processes end in time."""
    deadline = time.monotonic() + within
    while any(
        psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        for pid in pids
    ):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_it_is_ready_when_every_name_is_listed_and_gone_when_the_block_ends(life: Life) -> None:
    with life.running() as server:
        assert server.pid is not None
        pids = (server.pid, life.engine_process)
        assert all(psutil.pid_exists(pid) for pid in pids)
        assert os.getpgid(server.pid) == os.getpgid(life.engine_process) != os.getpgid(0)
    assert gone(*pids, within=0.5)


def test_a_server_that_will_not_end_is_killed(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)
    with life.running(seed=3) as server:
        assert server.pid is not None
        pids = (server.pid, life.engine_process)
    assert gone(*pids, within=0.5)


def test_one_that_ends_before_it_is_ready_is_explained_from_its_log(life: Life) -> None:
    when = "before it was ready: it ended with exit code 3"
    with pytest.raises(ExternalToolError, match=when) as caught, life.running(seed=1):
        pass
    assert "ValueError: LoRA rank 64 is greater than 16." in caught.value.why
    assert str(life.log) in caught.value.why
    assert gone(life.engine_process)


def test_one_that_is_never_ready_is_given_up_with_its_last_word(life: Life) -> None:
    plan, invocation = life.plan(seed=2)
    said: list[str] = []

    def tell(_: float, line: str) -> None:
        said.append(line)

    with launched(invocation, life.log) as server, pytest.raises(ExternalToolError) as caught:
        wait_until_ready(server, Place(plan.url), plan.names, seconds=1.5, tell=tell)
    assert caught.value.what == "vLLM was not ready within 1.5 seconds."
    assert "Loading the model" in caught.value.why
    assert "Loading the model" in said
    assert "--ready-timeout 3" in caught.value.hint
    assert gone(life.engine_process)


def test_a_program_that_cannot_be_run_is_an_error_and_no_hang(life: Life, tmp_path: Path) -> None:
    plan, invocation = life.plan()
    broken = Invocation(invocation.engine, (str(tmp_path / "none"), *invocation.command[1:]), {})
    with pytest.raises(ExternalToolError) as caught, launched(broken, life.log) as server:
        wait_until_ready(server, Place(plan.url), plan.names, seconds=10, tell=lambda *_: None)
    assert "FileNotFoundError" in caught.value.why


def test_a_server_killed_while_it_serves_takes_its_engine_along(life: Life) -> None:
    with life.running() as server:
        assert server.pid is not None
        engine = life.engine_process
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(
            ExternalToolError, match="while it served: it was ended by SIGKILL"
        ) as caught:
            server.wait()
        assert "memory" in caught.value.hint
        assert gone(engine)


def test_nothing_is_left_when_the_guard_itself_is_killed(life: Life) -> None:
    with life.running() as server:
        assert server.pid is not None
        pids = (server.pid, life.engine_process)
        guardian = psutil.Process(server.pid).parent()
        assert guardian is not None
        guardian.kill()
        with pytest.raises(ExternalToolError, match="its guard was ended by SIGKILL"):
            server.wait()
    assert gone(*pids)


def test_nothing_is_left_when_we_die_without_a_chance_to_clean_up(tmp_path: Path) -> None:
    """SIGKILL to the parent: the guard sees the end of its pipe, in a process group and session of its own."""
    program = (
        "import subprocess, sys, time\n"
        "server = subprocess.Popen([sys.executable, '-I', sys.argv[1], '5', '', 'sh', '-c', 'sleep 300 & sleep 301'],\n"
        "    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)\n"
        "print(server.pid, server.stdout.readline().decode(), flush=True)\n"
        "time.sleep(300)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, guard.__file__], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        shell = psutil.Process(pids[1])
        deadline = (
            time.monotonic() + 20
        )  # the shell has yet to start what it runs in the background
        while not (children := shell.children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.01)
        pids += [child.pid for child in children]
        parent.kill()
    assert len(pids) >= 3
    assert gone(*pids)


def test_a_process_that_left_the_group_is_ended_too() -> None:
    command = [
        sys.executable,
        "-I",
        guard.__file__,
        "0.2",
        "",
        "sh",
        "-c",
        "setsid sleep 300 & echo $! >&2; wait",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        runaway = int(process.stderr.readline())
        time.sleep(0.1)
        process.stdin.close()
        process.wait(10)
    assert gone(runaway, within=0.5)


def test_a_port_in_use_is_refused_with_one_that_is_free(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConflictError) as caught:
        require_free("127.0.0.1", port)
    assert caught.value.what == f"Port {port} on 127.0.0.1 is in use."
    other = int(caught.value.hint.rpartition(" ")[2])
    require_free("127.0.0.1", other)
    require_free("127.0.0.1", port)


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(UsageError, match="Can't listen"):
        require_free("192.0.2.77", 8000)
    with pytest.raises(UsageError, match="no address"):
        require_free("no.such.host.invalid", 8000)


def test_a_server_with_a_key_is_asked_with_it(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with life.running() as server:
        assert server.pid is not None
    plan, invocation = life.plan()
    with launched(invocation, life.log) as server, monkeypatch.context() as without:
        without.delenv("VLLM_API_KEY")
        with pytest.raises(ExternalToolError, match="asks for a key"):
            wait_until_ready(server, Place(plan.url), plan.names, seconds=30, tell=lambda *_: None)
