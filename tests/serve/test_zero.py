"""Base and adapters in one batch of a real vLLM with every slot taken: the fault, and the two ways out of it.

In float32 the greedy answer to a prompt is what transformers says, token for token. Each server is asked for everything
at once, so that base and adapters share batches.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base import BaseModel, fits, read_base
from adapterhub.errors import UnsupportedError
from adapterhub.formats.peft import read_facts
from adapterhub.formats.safetensors import TensorFile, TensorInfo
from adapterhub.serve.vllm import find
from adapterhub.serve.zero import zero_adapter
from adapterhub.store import Store
from tests.support.adapters import LAYERS, VOCABULARY, AdapterMaker, linears
from tests.support.models import ModelMaker

PROMPTS = [[1, 40, 77, 12], [1, 5, 6, 7, 8, 9, 10, 11, 120], [1, 99], [1, 33, 33, 33, 60]]
LENGTH = 16


@dataclass(frozen=True)
class Answers:
    """Greedy continuations of all prompts, and the log-probability of each of their tokens."""

    tokens: list[list[int]]
    scores: list[float]

    @classmethod
    def of(cls, found: Sequence[tuple[list[int], list[float]]]) -> Answers:
        return cls([tokens for tokens, _ in found], [one for _, row in found for one in row])

    def equal(self, other: Answers) -> bool:
        """Token for token, and in log-probabilities up to what float32 does with batches of another size."""
        return self.tokens == other.tokens and self.scores == pytest.approx(other.scores, abs=1e-3)


def test_a_zero_adapter_is_one_pair_of_zeros_that_fits_its_base(
    tiny: ModelMaker, tmp_path: Path
) -> None:
    for place, folder in enumerate((tiny.llama(), tiny.gpt2())):
        base = read_base(folder, repo="org/tiny")
        made = zero_adapter(base, tmp_path / str(place))
        with TensorFile(made / "adapter_model.safetensors") as weights:
            facts = read_facts(made / "adapter_config.json", weights)
            assert not any(weights.scan(name)[1] for name in weights.infos)
        (module,) = facts.modules.values()
        assert (module.rank, facts.kind, facts.dtype) == (1, "lora", "float32")
        assert fits(facts, base).ok


def test_a_zero_adapter_of_one_base_is_always_the_same_bytes(
    tiny_llama: Path, tmp_path: Path
) -> None:
    base = read_base(tiny_llama)
    first, second = (zero_adapter(base, tmp_path / name) for name in ("first", "second"))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    kept = (first / "adapter_model.safetensors").stat().st_ino
    assert zero_adapter(base, first) == first
    assert (first / "adapter_model.safetensors").stat().st_ino == kept


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.layers.10.self_attn.q_proj", "model.layers.2.self_attn.q_proj"], "model.layers.2.self_attn.q_proj"),
        (["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.qkv_proj"], "model.layers.0.self_attn.qkv_proj"),
        (["vision_tower.blocks.0.q_proj", "model.layers.0.mlp.down_proj"], "model.layers.0.mlp.down_proj"),
        (["model.layers.0.mlp.experts.0.down_proj", "backbone.layers.0.mixer.in_proj"], "backbone.layers.0.mixer.in_proj"),
    ],
)  # fmt: skip
def test_it_goes_on_the_first_layer_of_the_language_model(
    tmp_path: Path, names: list[str], chosen: str
) -> None:
    made = zero_adapter(headers(tmp_path, *names), tmp_path / "zero")
    with TensorFile(made / "adapter_model.safetensors") as weights:
        assert {name.removeprefix("base_model.model.").partition(".lora")[0] for name in weights.infos} == {chosen}  # fmt: skip
        assert weights.infos[f"base_model.model.{chosen}.lora_A.weight"].shape == (1, 5)


def test_a_base_without_a_place_for_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no module that a zero adapter could go on"):
        zero_adapter(headers(tmp_path, "model.layers.0.mlp.router"), tmp_path / "zero")
    assert not (tmp_path / "zero").exists()


def headers(folder: Path, *modules: str) -> BaseModel:
    """A base of which only names and shapes (7, 5) are known."""
    info = {name: TensorInfo(f"{name}.weight", "F32", (7, 5), 0, 140, folder) for name in modules}
    return BaseModel(folder, None, None, {}, {f"{name}.weight": one for name, one in info.items()})


@pytest.fixture(scope="module")
def base(tiny: ModelMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose heads are of a size vLLM's CPU kernels know (32), with the tiny Llama's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("zero") / "base"
    config = LlamaConfig.from_pretrained(
        tiny.llama(), hidden_size=128, head_dim=32, intermediate_size=192, initializer_range=0.2
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    for file in tiny.llama().glob("*token*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path) -> dict[str, Path]:
    """Two with large effects: one on every linear layer, one on the embedding and the head too."""
    make = AdapterMaker(base.parent)
    layers = {
        f"model.layers.{layer}.{module}": shape
        for layer in range(LAYERS)
        for module, shape in linears(128, 64, 192).items()
    }
    ends = {"model.embed_tokens": (128, VOCABULARY), "lm_head": (VOCABULARY, 128)}
    return {
        "tone": make("tone", modules=layers, scale=0.3, seed=1),
        "wide": make("wide", modules={**layers, **ends}, scale=0.3, seed=2, rank=8, alpha=16),
    }


@pytest.fixture(scope="module")
def alone(base: Path) -> Answers:
    """What transformers says with the base alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    found = []
    for prompt in PROMPTS:
        tokens, said = torch.tensor([prompt]), []
        with torch.no_grad():
            for _ in range(LENGTH):
                best = model(input_ids=tokens).logits[:, -1].log_softmax(-1).max(-1)
                said.append(float(best.values))
                tokens = torch.cat([tokens, best.indices[:, None]], dim=1)
        found.append((tokens[0, len(prompt) :].tolist(), said))
    return Answers.of(found)


@contextmanager
def vllm(base: Path, log: Path, *words: str, **variables: str) -> Iterator[str]:
    """vLLM itself, as people start it, on this package's plugin; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(find().executable), "serve", str(base), "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--max-model-len", "64", "--max-num-seqs", "16", "--enable-lora", "--max-lora-rank", "8", *words,
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **variables}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, process_group=0
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 200
            while True:
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                try:
                    post(f"{url}/v1/models")
                    break
                except OSError:
                    time.sleep(0.5)
            yield url
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)


def post(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


def ask_together(url: str, names: Sequence[str]) -> dict[str, Answers]:
    """Every prompt to every name, all in flight at once."""

    def ask(name: str, prompt: list[int]) -> tuple[list[int], list[float]]:
        body = {
            "model": name, "prompt": prompt, "max_tokens": LENGTH, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, "logprobs": 1,
        }  # fmt: skip
        choice = post(f"{url}/v1/completions", body)["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    with ThreadPoolExecutor(16) as threads:
        asked = {name: [threads.submit(ask, name, prompt) for prompt in PROMPTS] for name in names}
        return {name: Answers.of([one.result() for one in found]) for name, found in asked.items()}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_without_the_mask_the_base_is_answered_by_an_adapter_and_through_the_zero_adapter_by_itself(
    base: Path, adapters: dict[str, Path], alone: Answers, tmp_path: Path
) -> None:
    zero = zero_adapter(read_base(base), tmp_path / "zero")
    # zero takes the first of the three slots, so that the last one does something
    modules = [f"{name}={path}" for name, path in {"zero": zero, **adapters}.items()]
    words = ["--max-loras", "3", "--max-cpu-loras", "3", "--lora-modules", *modules]
    with vllm(base, tmp_path / "log", *words, ADAPTERHUB_VLLM_MASK="0") as url:
        mixed = ask_together(url, ["base", "zero", *adapters])  # every slot is taken
        solo = {name: ask_together(url, [name])[name] for name in ("base", "zero")}
    assert mixed["base"].tokens != alone.tokens, "this vLLM keeps base rows apart by itself"
    assert solo["base"].tokens != alone.tokens  # the last slot's head reaches the base even alone
    assert mixed["zero"].equal(alone)
    assert solo["zero"].equal(alone)
    assert all(mixed[name].tokens != alone.tokens for name in adapters)
    assert "ADAPTERHUB_VLLM_MASK=0" in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_with_the_plugin_the_base_stays_itself_and_the_store_answers_for_its_names(
    base: Path,
    adapters: dict[str, Path],
    alone: Answers,
    store: Store,
    make_adapter: AdapterMaker,
    tmp_path: Path,
) -> None:
    digests = {
        name: store.add_folder(path, name=f"support/{name}", base=str(base)).digest
        for name, path in adapters.items()
    }
    store.add_folder(make_adapter("foreign"), name="foreign")  # of a narrower base
    version = f"support/wide@{digests['wide'][7:19]}"
    variables = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "ADAPTERHUB_HOME": str(store.home),
        "ADAPTERHUB_VLLM_MASK": "require",
    }
    words = ["--max-loras", "2", "--max-cpu-loras", "2"]
    with vllm(base, tmp_path / "log", *words, **variables) as url:
        ask_together(url, ["support/tone", version])  # loaded on first use; every slot is taken
        mixed = ask_together(url, ["base", "support/tone", version])
        solo = ask_together(url, ["base"])
        listed = {model["id"]: model["root"] for model in post(f"{url}/v1/models")["data"]}
        leased = {digest for lease in store.leases.live() for digest in lease.digests}
        unknown = post(f"{url}/v1/completions", {"model": "../../etc", "prompt": [1]})["error"]
        unfit = post(f"{url}/v1/completions", {"model": "foreign", "prompt": [1]})["error"]
    assert mixed["base"].equal(alone)
    assert solo["base"].equal(alone)
    assert mixed["support/tone"].tokens != alone.tokens != mixed[version].tokens
    assert {name: listed[name] for name in listed if name != "base"} == {
        "support/tone": str(store.view(digests["tone"])),
        version: str(store.view(digests["wide"])),
    }
    assert leased == set(digests.values())
    assert unknown["code"] == 404
    assert (unfit["code"], unfit["param"]) == (400, "model")
    assert "modules have other shapes" in unfit["message"]
    assert store.leases.live() == []
