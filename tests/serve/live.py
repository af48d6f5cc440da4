"""A real server for a module of tests: a store of its own, `adapterhub serve` as a program, and people who ask it things."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from adapterhub.store import Store
from tests.cli.calling import PROGRAM, Said, first_record, run
from tests.support.models import peft_adapter

PROMPTS = [[1, 40, 77, 12], [1, 5, 6, 7, 8, 9, 10, 11, 120], [1, 99], [1, 33, 33, 33, 60]]
LENGTH = 16
KINDS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 16, "targets": ("q_proj", "v_proj", "down_proj")},
    {
        "r": 8,
        "lora_alpha": 8,
        "use_rslora": True,
        "targets": ("o_proj", "up_proj", "gate_proj"),
        "rank_pattern": {"o_proj": 12},
        "alpha_pattern": {"up_proj": 24},
    },
    {"r": 2, "lora_alpha": 8, "targets": ("q_proj", "k_proj", "v_proj", "o_proj")},
]

Answers = list[list[int]]


def make_base(folder: Path, tiny: Path) -> Path:
    """A Llama whose heads are of a size vLLM's CPU kernels know (32), with the tiny Llama's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(
        tiny, hidden_size=128, head_dim=32, intermediate_size=192, initializer_range=0.2
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    for file in tiny.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def expected(base: Path, adapter: Path | None) -> Answers:
    """What transformers says, with PEFT's adapter attached: greedy, whatever a generation config says."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    answers = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(LENGTH):
                best = model(input_ids=tokens).logits[:, -1].argmax(-1, keepdim=True)
                tokens = torch.cat([tokens, best], dim=1)
        answers.append(tokens[0, len(prompt) :].tolist())
    return answers


class House:
    """A store, a base and adapters of large effect on it."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.folder = folder
        self.base = make_base(folder / "base", tiny)
        self.store = Store.open(folder / "home")
        self._made = 0

    def add(self, name: str, *, move: bool = False) -> str:
        """One more adapter, unlike the others; returns its digest."""
        place = self._made
        self._made += 1
        fields = KINDS[place % len(KINDS)]
        made = peft_adapter(
            self.base, self.folder / "made" / str(place), strength=0.3, seed=place, **fields
        )
        return self.store.add_folder(made, name=name, base=str(self.base), move=move).digest

    def expected(self, name: str | None) -> Answers:
        """What must be answered to PROMPTS under this name, as the store means it now."""
        view = None if name is None else self.store.view(self.store.resolve(name).digest)
        return expected(self.base, view)

    def run(self, *words: str | Path, timeout: float = 120) -> Said:
        """A command of the program on this store."""
        return run(
            *words,
            timeout=timeout,
            ADAPTERHUB_HOME=str(self.folder / "home"),
            ADAPTERHUB_CACHE=str(self.folder / "cache"),
        )


class LiveServer:
    """`adapterhub serve WORDS` until `stop`, with `variables` set; `record` is what it printed when it was ready."""

    def __init__(self, house: House, *words: str, **variables: str) -> None:
        import os

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.house = house
        self.stderr = house.folder / f"stderr-{self.port}"
        environment = {
            **os.environ,
            "ADAPTERHUB_HOME": str(house.folder / "home"),
            "ADAPTERHUB_CACHE": str(house.folder / "cache"),
            **variables,
        }
        before, separator, after = " ".join(words).partition(" -- ")
        tail = ["--", *after.split()] if separator else []
        with self.stderr.open("wb") as said:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", *before.split(), "--port", str(self.port), "--json", *tail],
                stdout=subprocess.PIPE,
                stderr=said,
                stdin=subprocess.DEVNULL,
                env=environment,
                text=True,
            )
        self.record: dict[str, Any] = {}

    def wait_until_ready(self) -> LiveServer:
        """Reads the record; fails with what the server said where there is none."""
        assert self.process.stdout is not None
        try:
            self.record = first_record(self.process.stdout)
        except EOFError as error:
            raise AssertionError(f"it ended: {error} {self.stderr.read_text()}") from error
        return self

    def family(self) -> list[psutil.Process]:
        """Its process and all it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def client(self, key: str | None = None) -> httpx.Client:
        """For one person, who has this key or none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(
            base_url=self.record["url"], headers=headers, timeout=120, trust_env=False
        )

    def ask(self, model: str, prompt: Sequence[int], key: str | None = None) -> list[int]:
        """The tokens of one greedy answer."""
        with self.client(key) as client:
            answer = client.post("/v1/completions", json=question(model, prompt))
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == model
        return [int(token) for token in answer.json()["choices"][0]["token_ids"]]

    def ask_all(self, models: Sequence[str]) -> dict[str, Answers]:
        """Every prompt to every model, all in flight together."""
        with ThreadPoolExecutor(16) as pool:
            asked = {
                model: [pool.submit(self.ask, model, prompt) for prompt in PROMPTS]
                for model in models
            }
            return {
                model: [future.result() for future in futures] for model, futures in asked.items()
            }

    def status(self) -> dict[str, Any]:
        """What `server ls` knows."""
        said = self.house.run("server", "ls", "--server", str(self.port), "--json")
        assert said.code == 0, said.err
        found: dict[str, Any] = said.json[0]
        return found


class Crowd:
    """People who ask one name the same question over and over while the block runs; `answers` in the order they came."""

    def __init__(self, server: LiveServer, model: str, people: int = 4) -> None:
        self.answers: list[list[int]] = []
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(server, model, PROMPTS[person % len(PROMPTS)]))
            for person in range(people)
        ]

    def _ask(self, server: LiveServer, model: str, prompt: list[int]) -> None:
        place = PROMPTS.index(prompt)
        with server.client() as client:
            while not self._over.is_set():
                answer = client.post("/v1/completions", json=question(model, prompt))
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                else:
                    tokens = answer.json()["choices"][0]["token_ids"]
                    self.answers.append([place, *tokens])

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)


def question(model: str, prompt: Sequence[int], length: int = LENGTH) -> dict[str, Any]:
    """A completion, greedy and of a known length."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": length,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
