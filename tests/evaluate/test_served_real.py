"""Perplexity through `adapterhub serve`, vLLM and our door is that of transformers; so are greedy answers.

vLLM computes in float32 here, as the evaluation does, in other kernels and other batches: logarithms differ by rounding of
about 1e-6 of a logit for each of two layers' sums. A wrong adapter, position or token differs by tenths. 1e-3 nats a token
lies far from both.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from adapterhub.evaluate import evaluate
from adapterhub.evaluate.measures import parse_measure
from tests.serve.live import House, LiveServer
from tests.support.chat import COLOURS, chat_tokenizer, write_rows
from tests.support.evaluated import loss_of
from tests.support.models import ModelMaker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

TOLERANCE = 1e-3
NAMES = ("support/tone", "legal")
WORDS = "--dtype float32 --max-model-len 128 --no-verify -- --max-num-seqs 16"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny: ModelMaker) -> House:
    house = House(tmp_path_factory.mktemp("served"), tiny.llama())
    _made_to_chat(house.base)
    for name in NAMES:
        house.add(name)
    return house


def _made_to_chat(base: Path) -> None:
    """Another model of that shape in its place, with a chat template, a token a byte."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chat_tokenizer()
    config = LlamaConfig.from_pretrained(base, vocab_size=len(tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)


@pytest.fixture(scope="module")
def server(house: House) -> Iterator[LiveServer]:
    """A base and two adapters, of large effect."""
    running = LiveServer(house, *NAMES, "--base", str(house.base), WORDS)
    try:
        yield running.wait_until_ready()
    finally:
        running.stop()


def test_base_and_adapters_have_the_perplexity_and_the_answers_that_transformers_gives_them(
    server: LiveServer, house: House, tmp_path: Path
) -> None:
    rows = [{"instruction": f"Paint {i}?", "output": f"{COLOURS[i % 8]} it is."} for i in range(4)]
    data = write_rows(tmp_path / "data.json", rows)
    names = ["base", *NAMES]

    def asked(where: str | None) -> list[tuple[float, str | None, float]]:
        table = evaluate(
            house.store,
            names,
            base=str(house.base),
            data=data,
            split="all",
            measures=[parse_measure("length")],
            prompt="Paint a tree.",
            max_new_tokens=12,
            server=where,
        )
        return [(loss_of(one), one.answer, one.measures["length"].value) for one in table]

    local, served = asked(None), asked(str(server.port))
    for there, here in zip(served, local, strict=True):
        assert there[0] == pytest.approx(here[0], abs=TOLERANCE)
        assert there[1:] == here[1:]
    losses = sorted(loss for loss, *_ in local)
    assert min(b - a for a, b in pairwise(losses)) > 10 * TOLERANCE
    for name in NAMES:
        bodies = [a.body for a in house.store.attestations(house.store.resolve(name).digest)]
        (told,) = [one for one in bodies if one.get("settings", {}).get("server")]
        assert told["settings"]["dtype"] == "float32"
        assert told["versions"]["vllm"]
