"""vLLM itself: one that is protected is found healthy, one that isn't is found out, and so is a name used twice.

Both servers run on this machine's CPU. The unprotected one has as many slots as adapters, all of them taken.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.serve.verify import Report, Served, verify
from tests.support.models import ModelMaker, peft_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

ADAPTERS: dict[str, dict[str, Any]] = {
    "tone": {"r": 4, "lora_alpha": 16, "targets": ("q_proj", "v_proj", "down_proj")},
    "terms": {"r": 8, "lora_alpha": 8, "targets": ("o_proj", "up_proj", "gate_proj")},
}
BASE = "org/tiny"


@pytest.fixture(scope="module")
def base(tiny: ModelMaker) -> Path:
    return tiny.servable()


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two that are served, and a third to exchange one for."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: peft_adapter(base, root / name, seed=place, strength=0.3, **fields)
        for place, (name, fields) in enumerate((*ADAPTERS.items(), ("other", ADAPTERS["tone"])))
    }


@contextmanager
def vllm(base: Path, folders: dict[str, Path], slots: int, root: Path, dtype: str) -> Iterator[str]:
    """A server of both adapters with `slots` for them; its URL. It is ended whole."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        str(Path(sys.executable).parent / "vllm"), "serve", str(base),
        "--served-model-name", BASE, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", dtype, "--max-model-len", "256", "--max-num-seqs", "16", "--enable-lora",
        "--max-loras", str(slots), "--max-cpu-loras", "10", "--max-lora-rank", "8",
        "--lora-modules", *(f"{name}={folders[name]}" for name in ADAPTERS),
    ]  # fmt: skip
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_PLUGINS": "",  # not ours: it would protect the unprotected
    }
    log = root / "vllm.log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **variables}, process_group=0
        ) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", trust_env=False, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def protected(
    base: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The last of ten slots stays empty: at the start and in the tests eight are taken, one by each load."""
    with vllm(base, folders, 10, tmp_path_factory.mktemp("protected"), "float32") as url:
        yield url


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        yield client


async def asked(
    client: httpx.AsyncClient, base: Path, folders: dict[str, Path], **options: Any
) -> Report:
    served = [Served(BASE, None), *(Served(name, folders[name]) for name in ADAPTERS)]
    settings = {"dtype": "float32", "reference": "always", **options}
    return await verify(client, base, served, **settings)


def kinds(report: Report) -> set[tuple[str, str]]:
    return {(fault.who, fault.kind) for fault in report.faults}


async def test_a_protected_server_is_healthy_again_and_again(
    protected: str, base: Path, folders: dict[str, Path]
) -> None:
    """Another adapter is loaded and unloaded in every round."""
    async with asking(protected) as client:

        async def churn() -> None:
            await load(client, "other", folders["other"])
            await unload(client, "other")

        for seed in range(2):
            report = await asked(client, base, folders, seed=seed, rounds=2, churn=churn)
            assert report.ok, report.faults
            assert not report.remarks
            # the tolerance is ten times that
            assert report.noise.worst < 1e-4
            assert all(one.mixed.worst < 1e-4 for one in report.names)


async def test_crossed_names_are_found_out(
    protected: str, base: Path, folders: dict[str, Path]
) -> None:
    async with asking(protected) as client:
        crossed = {"tone": folders["terms"], "terms": folders["tone"]}
        report = await asked(client, base, crossed, rounds=1)
    assert kinds(report) == {("tone", "differs"), ("terms", "differs")}
    assert "it answers as 'terms' does" in str(report.faults[0])


async def test_an_adapter_exchanged_under_its_name_and_path_is_found_in_the_prefix_cache(
    protected: str, base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    mine = {"tone": shutil.copytree(folders["tone"], tmp_path / "mine"), "terms": folders["terms"]}
    async with asking(protected) as client:
        await unload(client, "tone")
        await load(client, "tone", mine["tone"])
        assert (await asked(client, base, mine, rounds=1)).ok
        shutil.copytree(folders["other"], mine["tone"], dirs_exist_ok=True)
        await unload(client, "tone")
        await load(client, "tone", mine["tone"])
        report = await asked(client, base, mine, rounds=1)
    assert kinds(report) == {("tone", "stale")}


async def load(client: httpx.AsyncClient, name: str, folder: Path) -> None:
    body = {"lora_name": name, "lora_path": str(folder)}
    (await client.post("/v1/load_lora_adapter", json=body)).raise_for_status()


async def unload(client: httpx.AsyncClient, name: str) -> None:
    body = {"lora_name": name}
    (await client.post("/v1/unload_lora_adapter", json=body)).raise_for_status()


async def test_an_unprotected_server_mixes_the_base_and_is_found_out(
    base: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    with vllm(base, folders, len(ADAPTERS), tmp_path, "float32") as url:
        async with asking(url) as client:
            for seed in range(3):
                report = await asked(client, base, folders, seed=seed)
                assert kinds(report) == {(BASE, "mixed")}
                said = str(report.faults[0])
                assert "#48421" in said
                assert "answers as 'terms' does" in said or "answers as 'tone' does" in said
