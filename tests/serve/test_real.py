"""vLLM itself, on this machine's CPU: what it answers is what transformers and PEFT answer, and it ends when told to.

In float32 greedy answers are equal token for token. Base and adapters are asked at the same time, so that they share
batches: the fault that the spare slot is there for would show in the base's answers.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapterhub.serve.vllm import OLDEST, find
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.models import peft_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PROMPTS = [[1, 40, 77, 12], [1, 5, 6, 7, 8, 9, 10, 11, 120], [1, 99], [1, 33, 33, 33, 60]]
LENGTH = 16
ADAPTERS: dict[str, dict[str, Any]] = {
    "support/tone": {"r": 4, "lora_alpha": 16, "targets": ("q_proj", "v_proj", "down_proj")},
    "terms": {
        "r": 8,
        "lora_alpha": 8,
        "use_rslora": True,
        "targets": ("o_proj", "up_proj", "gate_proj"),
        "rank_pattern": {"o_proj": 12},
        "alpha_pattern": {"up_proj": 24},
    },
}

Answers = list[list[int]]


@pytest.fixture
def base(tmp_path: Path, tiny_llama: Path) -> Path:
    """A Llama whose heads are of a size vLLM's CPU kernels know (32), with the tiny Llama's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(
        tiny_llama, hidden_size=128, head_dim=32, intermediate_size=192, initializer_range=0.2
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    for file in tiny_llama.glob("*token*"):
        shutil.copy(file, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def filled(store: Store, base: Path, tmp_path: Path) -> Store:
    """Two adapters with large effects, checked against the base."""
    for place, (name, fields) in enumerate(ADAPTERS.items()):
        folder = peft_adapter(
            base, tmp_path / "made" / str(place), strength=0.3, seed=place, **fields
        )
        store.add_folder(folder, name=name, base=str(base))
    return store


def start(*words: str) -> subprocess.Popen[str]:
    program = "from adapterhub.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "serve", *ADAPTERS, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def test_vllm_answers_as_transformers_and_peft_do_and_ctrl_c_ends_it(
    filled: Store, base: Path, port: int
) -> None:
    words = [
        "--base",
        str(base),
        "--dtype",
        "float32",
        "--max-model-len",
        "64",
        "--port",
        str(port),
        "--json",
    ]
    with start(*words, "--", "--max-num-seqs", "16") as process:
        try:
            expected = {name: reference(base, filled, name) for name in (None, *ADAPTERS)}
            record = first_json(process)
            versions = [f"{name}@{filled.resolve(name).digest[7:19]}" for name in ADAPTERS]
            assert sorted(record["names"]) == sorted([record["base"], *ADAPTERS, *versions])
            listed = get(f"{record['url']}/v1/models")["data"]
            assert sorted(model["id"] for model in listed) == sorted(record["names"])
            expected |= {record["base"]: expected.pop(None)}
            expected |= {
                version: expected[name] for version, name in zip(versions, ADAPTERS, strict=True)
            }
            answers = ask_all(record["url"], record["names"])
            everything = family(process)
            process.send_signal(signal.SIGINT)
            process.wait(30)
        finally:
            process.kill()
    assert answers == expected
    assert len({json.dumps(expected[name]) for name in (record["base"], *ADAPTERS)}) == 3
    assert process.returncode == 130
    assert len(everything) >= 4  # adapterhub, guard, vLLM and at least its engine
    assert not [one for one in everything if one.is_running()]


def test_vllm_and_transformers_load_an_exported_model_and_it_answers_as_the_attached_one(
    filled: Store, base: Path, port: int, tmp_path: Path
) -> None:
    name, out = "support/tone", tmp_path / "exported"
    said = call("export", name, "--base", base, "-o", out, "--no-verify")
    assert said.code == 0, said.err
    attached = reference(base, filled, name)
    assert reference(out, filled, None) == attached
    assert reference(base, filled, None) != attached
    # As the base of others: to vLLM it is a model like any. They weren't trained on it, which is said and allowed.
    words = ["--base", str(out), "--allow-mismatch", "--dtype", "float32", "--max-model-len", "64"]
    with start(*words, "--port", str(port), "--json", "--", "--max-num-seqs", "16") as process:
        try:
            record = first_json(process)
            answers = ask_all(record["url"], [record["base"]])
            process.send_signal(signal.SIGINT)
            process.wait(30)
        finally:
            process.kill()
    assert answers == {record["base"]: attached}


def test_vllm_killed_from_outside_is_code_1_and_leaves_no_engine_behind(
    filled: Store, base: Path, port: int
) -> None:
    with start("--base", str(base), "--dtype", "float32", "--port", str(port)) as process:
        try:
            everything = wait_for_engine(process)
            server = next(
                one
                for one in everything
                if "serve" in one.cmdline() and one.ppid() != process.pid and one.pid != process.pid
            )
            server.kill()
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, output) == (1, "")
    assert "it was ended by SIGKILL" in errors
    assert "vllm.log" in errors
    assert not [one for one in everything if one.is_running()]


def test_the_vllm_of_this_environment_is_found_with_its_version() -> None:
    engine = find()
    assert engine.cpu
    assert engine.version is not None
    assert tuple(map(int, engine.version.split(".")[:2])) >= OLDEST


def reference(base: Path, store: Store, name: str | None) -> Answers:
    """What transformers says, with PEFT's adapter attached where `name` names one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if name is not None:
        model = PeftModel.from_pretrained(model, str(store.view(store.resolve(name).digest))).eval()
    answers = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(LENGTH):  # greedy, whatever a generation config says
                best = model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, best], dim=1)
        answers.append(tokens[0, len(prompt) :].tolist())
    return answers


def ask_all(url: str, names: Sequence[str]) -> dict[str, Answers]:
    """Every prompt to every name, all in flight together."""

    def ask(name: str, prompt: list[int]) -> list[int]:
        body = {
            "model": name,
            "prompt": prompt,
            "max_tokens": LENGTH,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        choice = get(f"{url}/v1/completions", body)["choices"][0]
        return [int(token) for token in choice["token_ids"]]

    with ThreadPoolExecutor(16) as pool:
        asked = [(name, [pool.submit(ask, name, prompt) for prompt in PROMPTS]) for name in names]
        return {name: [future.result() for future in futures] for name, futures in asked}


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        request, timeout=60
    ) as answer:
        return json.load(answer)


def first_json(process: subprocess.Popen[str]) -> Any:
    """The record on stdout, which stays open."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return json.loads(text)
    assert process.stderr is not None
    raise AssertionError(f"it ended without a record: {text}{process.stderr.read()}")


def wait_for_engine(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes, as soon as vLLM has started its engine."""
    while process.poll() is None:
        found = family(process)
        if any(one.name().startswith("VLLM::") for one in found):
            return found
        time.sleep(0.1)
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())
