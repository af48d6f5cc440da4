"""What many adapters and the door cost: tokens a second and time to first token, on SmolLM2-135M: `make bench-serve`. No test.

One server with 32 adapters is asked by 32 streams at once, for the base, and for 1, 8 and 32 different adapters; through the
door, and past it on vLLM's own socket, in turns, so that a busy machine slows both. The base is also asked of a vLLM that
knows no adapters. Told are medians over runs; the door's own CPU time comes from its process. `make demo` prepares the base.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from adapterhub.serve.client import SERVER_FILE
from adapterhub.serve.invocation import ENGINE_SOCKET, invoke
from adapterhub.serve.launch import launched, wait_until_ready
from adapterhub.serve.naming import engine_name
from adapterhub.serve.place import Place
from adapterhub.serve.plan import make_plan
from adapterhub.serve.vllm import find
from adapterhub.store import Store
from tests.cli.calling import first_record
from tests.support.models import peft_adapter

BASE = Path("demo-work/inputs/base")
ADAPTERS = 32
STREAMS = 32
TOKENS = 64
TEXT = "The quick brown fox jumps over the lazy dog near the river bank and then it"
ENGINE = ["--max-num-seqs", str(STREAMS), "--no-enable-prefix-caching"]
SHAPES = {"base": 0, "1 adapter": 1, "8 adapters": 8, "32 adapters": 32}


@dataclass
class Measured:
    """One burst of STREAMS answers. Times in seconds."""

    seconds: float
    first: list[float]
    chunks: int
    cpu: float | None = None

    @property
    def speed(self) -> float:
        """Tokens a second, all streams together."""
        return STREAMS * TOKENS / self.seconds


@dataclass
class Told:
    """All bursts of one way of asking."""

    bursts: list[Measured] = field(default_factory=list)

    def line(self) -> str:
        """Medians: tokens/s, time to first token, and the door's microseconds a chunk."""
        speed = median(one.speed for one in self.bursts)
        first = median(median(one.first) for one in self.bursts)
        cpu = [one.cpu / one.chunks * 1e6 for one in self.bursts if one.cpu is not None]
        return f"{speed:.0f} | {first:.2f} | {f'{median(cpu):.0f}' if cpu else ''}"


async def burst(client: httpx.AsyncClient, models: Sequence[str], pid: int | None) -> Measured:
    """STREAMS answers at once, spread over `models`."""
    first: list[float] = []
    chunks = 0

    async def one(place: int) -> None:
        nonlocal chunks
        body = {
            "model": models[place % len(models)],
            "prompt": f"{place} {TEXT}",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        asked = time.perf_counter()
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200, await answer.aread()
            seen = False
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    if not seen:
                        first.append(time.perf_counter() - asked)
                        seen = True
                    chunks += 1

    before = _cpu(pid)
    began = time.perf_counter()
    await asyncio.gather(*(one(place) for place in range(STREAMS)))
    seconds = time.perf_counter() - began
    after = _cpu(pid)
    return Measured(
        seconds, first, chunks, None if before is None or after is None else after - before
    )


def _cpu(pid: int | None) -> float | None:
    if pid is None:
        return None
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def measure(
    ways: dict[str, tuple[httpx.AsyncClient, dict[str, list[str]], int | None]], runs: int
) -> None:
    """Asks every way in turns and prints a table."""
    told: dict[tuple[str, str], Told] = {}
    for client, shapes, _ in ways.values():  # once for warmth
        await burst(client, next(reversed(shapes.values())), None)
    for _ in range(runs):
        for shape in SHAPES:
            for way, (client, shapes, pid) in ways.items():
                if shape in shapes:
                    measured = await burst(client, shapes[shape], pid)
                    told.setdefault((shape, way), Told()).bursts.append(measured)
    for (shape, way), one in told.items():
        print(f"| {shape} | {way} | {one.line()} |", flush=True)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_adapters(runs: int) -> None:
    """A vLLM that knows no adapters."""
    port = free_port()
    engine = find()
    command = [str(engine.executable), "serve", str(BASE), "--served-model-name", "base"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", *ENGINE]
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "home")
        made = peft_adapter(BASE, Path(folder) / "one", r=8)
        store.add_folder(made, name="one", base=str(BASE))
        plan = make_plan(store, ["one"], base=str(BASE), port=port, direct=True)
        from dataclasses import replace

        invocation = replace(invoke(plan, engine), command=tuple(command))
        with launched(invocation, Path(folder) / "log") as server:
            wait_until_ready(server, Place(plan.url), ["base"], seconds=300, tell=lambda *_: None)

            async def ask() -> None:
                async with httpx.AsyncClient(base_url=plan.url, timeout=600) as client:
                    await measure({"no LoRA": (client, {"base": ["base"]}, None)}, runs)

            asyncio.run(ask())


def with_adapters(runs: int) -> None:
    """Our server, asked through its door and past it."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        store = Store.open(home)
        digests = []
        for number in range(ADAPTERS):
            made = peft_adapter(BASE, Path(folder) / str(number), r=8, seed=number)
            digests.append(store.add_folder(made, name=f"a{number:02}", base=str(BASE)).digest)
        words = ["serve", "a*", "--base", str(BASE), "--port", str(port), "--json", "--no-verify"]
        words += ["--loaded", str(ADAPTERS), "--batch", str(ADAPTERS), "--max-model-len", "512"]
        process = subprocess.Popen(
            [Path(sys.executable).with_name("adapterhub"), *words, "--", *ENGINE],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ADAPTERHUB_HOME": str(home)},
            text=True,
        )
        try:
            assert process.stdout is not None
            record = first_record(process.stdout)
            said = json.loads((home / "runs" / record["run"] / SERVER_FILE).read_text())
            vllm = Path(said["control"]).with_name(ENGINE_SOCKET)
            asyncio.run(_both(record, vllm, digests, process.pid, runs))
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


async def _both(
    record: dict[str, Any], vllm: Path, digests: Sequence[str], pid: int, runs: int
) -> None:
    def shapes(base: str, names: Sequence[str]) -> dict[str, list[str]]:
        return {what: list(names[:count]) or [base] for what, count in SHAPES.items()}

    aliases = [f"a{number:02}" for number in range(ADAPTERS)]
    past = httpx.AsyncHTTPTransport(uds=str(vllm))
    async with (
        httpx.AsyncClient(base_url=record["url"], timeout=600) as door,
        httpx.AsyncClient(base_url="http://vllm", transport=past, timeout=600) as direct,
    ):
        await measure(
            {
                "past the door": (
                    direct,
                    shapes(record["base"], list(map(engine_name, digests))),
                    None,
                ),
                "through the door": (door, shapes(record["base"], aliases), pid),
            },
            runs,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    if not BASE.is_dir():
        raise SystemExit("There is no base model: make demo  prepares one.")
    print(
        "| asked for | how | tokens/s | first token, s | door, CPU us a chunk |\n|---|---|---|---|---|"
    )
    for shape in set(SHAPES) - set(options.only):
        del SHAPES[shape]
    if "base" in options.only:
        without_adapters(options.runs)
    with_adapters(options.runs)


if __name__ == "__main__":
    main()
