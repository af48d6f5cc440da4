"""`adapterhub serve` as it is typed: what goes to stdout, what to stderr, and the exit code. (vLLM itself: test_real.)"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from adapterhub.cli.main import build
from adapterhub.store import Store
from tests.cli.calling import first_record

Add = Callable[..., str]
PROGRAM = (sys.executable, "-c", "from adapterhub.cli.main import main; main()", "serve")


def serve(*words: str) -> Result:
    """The command in this process: half a second less than a new one."""
    return CliRunner().invoke(build("serve"), ["serve", *words])


@pytest.fixture(autouse=True)
def adapters(add: Add) -> None:
    add("support/tone")
    add("terms", seed=1)


def test_dry_run_prints_plan_and_command_without_vllm_and_starts_nothing(
    store: Store, tmp_path: Path
) -> None:
    lonely = tmp_path / "bin" / "python"  # beside it there is no vllm, and PATH is empty
    lonely.parent.mkdir()
    lonely.symlink_to(sys.executable)
    program = f"import sys; sys.executable = {str(lonely)!r}; {PROGRAM[2]}"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "support/tone", "terms", "--dry-run", "--", "--seed", "1"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0
    assert "vLLM is not installed" in done.stderr
    table, memory, command = done.stdout.split("\n\n")
    assert memory.splitlines()[0].split("\t") == ["what", "bytes", "where", "how"]
    assert "weights" in memory
    assert [line.split("\t")[0] for line in table.splitlines()] == [
        "name",
        "org/tiny",
        "support/tone",
        "terms",
    ]
    assert "\n  vllm serve " in command
    assert command.rstrip().endswith("--seed 1")
    assert "--max-loras 4" in command  # without our plugin the zeros take one
    assert not store.runs_dir.exists()


def test_dry_run_as_json_is_the_plan_as_data(stand_in: Path) -> None:
    done = serve(
        "support/tone", "terms", "--vllm", str(stand_in), "--dry-run", "--json", "--", "--seed", "1"
    )
    plan = json.loads(done.stdout)
    assert plan["command"][0] == str(stand_in)
    assert plan["command"][-2:] == ["--seed", "1"]
    assert plan["max_loras"] == plan["loaded"] == 3
    assert [adapter["names"][0] for adapter in plan["adapters"]] == ["support/tone", "terms"]
    assert plan["environment"]["HF_HUB_OFFLINE"] == "1"


def test_dry_run_quiet_is_the_names() -> None:
    assert serve("terms", "--dry-run", "-q").stdout == "org/tiny\nterms\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "Name the adapters"),
        (("--", "--seed", "1"), 2, "Name the adapters"),
        (("term",), 4, "Did you mean terms?"),
        (("terms", "--seed", "1"), 2, "No such option"),
        (("terms", "--dtype", "int4"), 2, "Choose one of auto, float32"),
        (("terms", "--port", "0"), 2, "port"),
        (("terms", "--base", "/nowhere"), 4, "no base model at /nowhere"),
        (("terms", "--vllm", "/nowhere/vllm"), 4, "no vLLM at /nowhere/vllm"),
        (("terms", "--", "--max-loras", "1"), 2, "can't be handed on"),
        (("terms", "--pin", "nobody"), 2, "'nobody' is pinned but not served"),
        (("terms", "support/tone", "--loaded", "1", "--pin", "terms"), 2, "--loaded 2"),
        (("terms", "--direct", "--loaded", "2"), 2, "--direct goes without"),
        (("terms", "--engine", "ollama"), 2, "Choose one of vllm, sglang"),
    ],
)
def test_a_wrong_command_line_is_refused(words: tuple[str, ...], code: int, said: str) -> None:
    done = serve(*words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_adapter_that_does_not_fit_is_refused_with_code_5(add: Add) -> None:
    add("elsewhere", base="org/other")
    done = serve("terms", "elsewhere", "--dry-run")
    assert done.exit_code == 5
    assert "org/other" in done.stderr


def test_a_missing_vllm_comes_with_an_install_line(tmp_path: Path) -> None:
    program = f"import sys; sys.executable = {str(tmp_path / 'python')!r}; {PROGRAM[2]}"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", "terms"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "vLLM is not installed" in done.stderr
    assert "pip install" in done.stderr or "Linux" in done.stderr


def test_a_port_in_use_is_refused_before_anything_is_started(
    store: Store, stand_in: Path, port: int
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        done = serve("terms", "--vllm", str(stand_in), "--port", str(port))
    assert done.exit_code == 1
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert not store.runs_dir.exists()


@pytest.mark.parametrize(
    ("number", "direct"), [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGINT, ["--direct"])]
)
def test_it_says_where_it_listens_and_a_signal_stops_it_whole(
    store: Store, stand_in: Path, port: int, number: signal.Signals, direct: list[str]
) -> None:
    words = ["support/tone", "--vllm", str(stand_in), "--port", str(port), "--json", "--no-verify"]
    words += direct
    with subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        record = first_record(process.stdout)
        family = [
            process.pid,
            *(child.pid for child in psutil.Process(process.pid).children(recursive=True)),
        ]
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest == ""
    assert "vLLM was stopped" in errors
    assert record["url"] == f"http://127.0.0.1:{port}"
    assert record["names"][:2] == ["org/tiny", "support/tone"]
    assert len(family) == 4  # adapterhub, guard, server, engine
    assert not any(psutil.pid_exists(pid) for pid in family)
    (run,) = store.runs_dir.iterdir()
    assert record["log"] == str(run / "vllm.log")
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    opened = [] if direct else ["open"]
    telling = [event for event in events if event != "progress"]
    assert telling == ["started", "launched", "ready", *opened, "interrupted"]


def test_a_server_that_dies_is_explained_and_the_code_is_1(
    store: Store, stand_in: Path, port: int
) -> None:
    done = serve("terms", "--vllm", str(stand_in), "--port", str(port), "--", "--seed", "1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "vLLM ended before it was ready: it ended with exit code 3." in done.stderr
    assert "ValueError: LoRA rank 64 is greater than 16." in done.stderr
    (run,) = store.runs_dir.iterdir()
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["event"] == "failed"


def test_a_mismatch_that_was_allowed_is_recorded_with_the_adapter(
    store: Store, add: Add, base: Path, stand_in: Path, port: int
) -> None:
    digest = add("elsewhere", base="org/other", seed=3)
    words = [
        "elsewhere",
        "--base",
        str(base),
        "--allow-mismatch",
        "--vllm",
        str(stand_in),
        "--port",
        str(port),
    ]
    done = serve(*words, "--", "--seed", "1")
    assert "allowed: " in done.stderr
    (note,) = [item for item in store.attestations(digest) if item.type == "note"]
    assert note.body["event"] == "served"
    assert "org/other" in note.body["allowed_mismatch"][0]
