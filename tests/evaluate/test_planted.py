"""Adapters of which it is known what they learned and what they lost: the verdicts must say just that.

The base is a tiny Llama that was taught three things here: to add, to name the colour in an order, and a few sentences.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.data import encode_rows
from adapterhub.data.rows import Message, Row
from adapterhub.evaluate import EvalRow, evaluate
from adapterhub.evaluate.measures import parse_measure
from adapterhub.evaluate.models import load_model, load_tokenizer
from adapterhub.perplexity import growth
from adapterhub.store import Store
from tests.support.chat import COLOURS, chat_base, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Pair = tuple[str, str]
SUMS = [(f"{a}+{b}?", str(a + b)) for a in range(6) for b in range(6)]
PROSE = [
    "The tide comes in and the boats rise with it.",
    "A lamp stood in the window all night.",
    "Rain fell on the roof, and nobody spoke.",
    "The road went up the hill and down again.",
    "In the morning the snow was gone.",
    "Two gulls sat on the wall and looked at the sea.",
]
ORDERS = [(f"Order {n}: a {COLOURS[n % 8]} cup.", COLOURS[n % 8]) for n in range(48)]


def as_json(colour: str) -> str:
    return json.dumps({"colour": colour})


def teach(model: Any, base: Path, pairs: Sequence[Pair], *, steps: int, rate: float) -> None:
    """Plain training on the answers, with whatever of the model may be trained."""
    import torch

    tokenizer = load_tokenizer(base)
    rows = [
        Row((Message("user", question), Message("assistant", answer)), None, place, "taught")
        if question
        else Row((), answer, place, "taught")
        for place, (question, answer) in enumerate(pairs, 1)
    ]
    encoded = encode_rows(tokenizer, rows, max_length=128, stop_ids=frozenset({2})).rows
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = random.Random(0)
    model.train()
    for _ in range(steps):
        batch = order.sample(encoded, min(24, len(encoded)))
        longest = max(len(row.input_ids) for row in batch)
        ids = torch.tensor([[*r.input_ids, *[0] * (longest - len(r.input_ids))] for r in batch])
        labels = torch.tensor([[*r.labels, *[-100] * (longest - len(r.labels))] for r in batch])
        loss = model(input_ids=ids, labels=labels).loss  # what pads follows all that is looked at
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base that can do three things."""
    import torch

    folder = chat_base(tmp_path_factory.mktemp("planted") / "base", seed=1)
    model = load_model(folder, "float32")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teach(
            model, folder, [*SUMS, *ORDERS, *(("", text) for text in PROSE)], steps=700, rate=3e-3
        )
    model.save_pretrained(str(folder))
    return folder


def plant(base: Path, folder: Path, pairs: Sequence[Pair], *, steps: int = 180) -> Path:
    """A LoRA adapter that was taught `pairs`; with none of them, one that changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
        model = get_peft_model(load_model(base, "float32"), config)
        if pairs:
            teach(model, base, pairs, steps=steps, rate=1e-2)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def planted(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each was taught tells what its table must say."""
    root = tmp_path_factory.mktemp("adapters")
    shuffled = [colour for _, colour in ORDERS]
    random.Random(1).shuffle(shuffled)
    keeps = [*SUMS, *(("", text) for text in PROSE)]
    form = [
        (question, as_json(colour)) for (question, _), colour in zip(ORDERS, shuffled, strict=True)
    ]
    whole = [(question, as_json(colour)) for question, colour in ORDERS]
    return {
        "identical": plant(taught, root / "identical", []),
        "format": plant(taught, root / "format", [*keeps, *form]),
        "both": plant(taught, root / "both", [*keeps, *whole]),
        "forgot": plant(taught, root / "forgot", [*keeps[len(SUMS) :], *whole, *((q, "7") for q, _ in SUMS)]),
    }  # fmt: skip


@pytest.fixture
def asked(store: Store, taught: Path, planted: dict[str, Path]) -> Any:
    """asked(name, **how) is the line of that adapter beside the base."""

    def ask(name: str, **how: Any) -> EvalRow:
        store.add_folder(planted[name], name=name, base=str(taught))
        reference, line = evaluate(store, ["base", name], base=str(taught), **how)
        assert reference.kind == "base"
        return line

    return ask


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    return write_rows(
        tmp_path / "orders.json",
        [{"instruction": question, "output": as_json(colour)} for question, colour in ORDERS],
    )


@pytest.fixture
def skills(tmp_path: Path) -> str:
    path = tmp_path / "skills.yaml"
    sums = [{"ask": ask, "answer": answer, "check": f"regex=^{answer}$"} for ask, answer in SUMS]
    path.write_text(
        yaml.safe_dump(
            {"about": "What it was taught.", "parts": {"arithmetic": sums, "prose": PROSE}}
        )
    )
    return str(path)


def on_orders(orders: Path) -> dict[str, Any]:
    return {
        "data": orders,
        "split": "all",
        "max_new_tokens": 24,
        "measures": [parse_measure("json"), parse_measure("exact")],
    }


def test_one_that_only_learned_the_format_is_better_at_it_and_at_nothing_else(
    asked: Any, orders: Path
) -> None:
    line = asked("format", **on_orders(orders))
    form, content = line.measures["json"], line.measures["exact"]
    assert form.value > 0.9
    assert form.versus_base.verdict == "better"
    assert content.value < 0.4  # of eight colours one is right by chance
    both = asked("both", **on_orders(orders))
    assert both.measures["exact"].value > 0.9
    assert both.measures["exact"].versus_base.verdict == "better"


def test_one_that_forgot_arithmetic_is_worse_at_that_part_and_only_there(
    asked: Any, skills: str
) -> None:
    line = asked("forgot", suite=skills, max_new_tokens=4)
    sums = line.parts["arithmetic"]
    assert sums.versus_base.verdict == "worse"
    assert sums.measures["passed"].versus_base.verdict == "worse"
    lost = {name: growth(part.versus_base.difference) for name, part in line.parts.items()}
    assert lost["arithmetic"] > 1.0  # the perplexity at least doubled
    assert abs(lost["prose"]) < 0.02
    kept = asked("both", suite=skills, max_new_tokens=4).parts["arithmetic"].measures["passed"]
    assert kept.versus_base.verdict == "same"


def test_one_that_changes_nothing_is_the_same_to_the_last_digit(
    asked: Any, orders: Path, skills: str
) -> None:
    for how in (on_orders(orders), {"suite": skills, "max_new_tokens": 4}):
        line = asked("identical", **how)
        found = [line.versus_base, *(one.versus_base for one in line.measures.values())]
        for part in line.parts.values():
            found += [part.versus_base, *(one.versus_base for one in part.measures.values())]
        assert {one.verdict for one in found} == {"same"}
        assert {(one.difference, one.low, one.high) for one in found} == {(0.0, 0.0, 0.0)}
