"""SGLang's command says the plan, and what is uncertain about it is said beside it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.names import parse_name
from adapterhub.serve.plan import Places, make_plan
from adapterhub.serve.sglang import Command, command
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.adapters import llama_modules

Add = Callable[..., str]
CERTAIN = (
    "this was not run",
    "only behind the base's",
    "memory is taken twice",
    "/ and @ in names",
)


def further(shown: Command) -> list[str]:
    """The remarks beside those that every command has."""
    assert all(any(text in remark for remark in shown.remarks) for text in CERTAIN)
    return [r for r in shown.remarks if not any(text in r for text in CERTAIN)]


def test_the_command_says_the_whole_plan(store: Store, add: Add, base: Path) -> None:
    digest = add("support/tone", rank=4)
    other = add("terms", rank=12, seed=1, modules=llama_modules("down_proj"))
    plan = make_plan(
        store,
        ["support/tone", "terms"],
        port=8123,
        dtype="bfloat16",
        max_model_len=64,
        extra=["--tp", "2"],
    )
    shown = command(plan)
    words, remarks = shown
    assert words == (
        "python", "-m", "sglang.launch_server",
        "--model-path", str(base.resolve()),
        "--served-model-name", "org/tiny",
        "--host", "127.0.0.1",
        "--port", "8123",
        "--dtype", "bfloat16",
        "--context-length", "64",
        "--enable-lora",
        "--max-lora-rank", "12",
        "--max-loras-per-batch", "5",
        "--lora-target-modules", "down_proj", "q_proj", "v_proj",
        "--lora-paths",
        f"support/tone={store.view(digest)}", f"support/tone@{digest[7:19]}={store.view(digest)}",
        f"terms={store.view(other)}", f"terms@{other[7:19]}={store.view(other)}",
        "--tp", "2",
    )  # fmt: skip
    assert "org/tiny:support/tone" in " ".join(remarks)
    assert further(shown) == ["what follows -- goes to SGLang as it is"]
    assert tuple(shlex.split(shown.shell.replace("\\\n", ""))) == words


def test_many_adapters_share_eight_places_and_the_base_has_one(store: Store, add: Add) -> None:
    names = [f"a{number}" for number in range(9)]
    for seed, name in enumerate(names):
        add(name, seed=seed)

    def batch(places: Places) -> str:
        words = command(make_plan(store, names, places=places)).words
        return words[words.index("--max-loras-per-batch") + 1]

    assert batch(Places()) == "9"
    assert batch(Places(batch=3)) == "4"


@pytest.mark.parametrize(
    ("fields", "why", "scales", "left"),
    [
        ({"rank": 16, "use_rslora": True}, "rsLoRA", ("alpha/r, 0.5 ", "by 2."), 0),
        ({"alpha_pattern": {"q_proj": 24}}, "single modules", ("alpha/r, 2 ", "by 6."), 0),
        ({"rank_pattern": {"v_proj": 2}}, "single modules", ("alpha/r, 2 ", "by 4."), 1),
    ],
)
def test_a_scale_that_sglang_does_not_know_is_pointed_out_with_a_way_out(
    store: Store, add: Add, fields: dict[str, object], why: str, scales: tuple[str, str], left: int
) -> None:
    add("tone", **fields)
    (said,) = further(command(make_plan(store, ["tone"])))
    assert why in said
    assert all(text in said for text in scales)
    assert "#40835" in said
    typed = said.partition("adapterhub ")[2].replace("NAME", "plain")
    assert call(*shlex.split(typed)).code == 0
    again = further(command(make_plan(store, ["plain"])))
    assert len(again) == left
    assert all("several ranks" in text for text in again)


def test_names_modules_and_hosts_that_are_uncertain_are_said(store: Store, add: Add) -> None:
    add("tone")
    store.tag(store.resolve("tone"), parse_name("tone:v2"))
    add("head", modules={"lm_head": (160, 64)}, target_modules="lm_head|x")
    said = " | ".join(
        further(command(make_plan(store, ["tone:v2", "head"], host="0.0.0.0", dtype="float32")))
    )
    for text in ("tone:v2: a name with a colon", "lm_head", "as a pattern", "0.0.0.0", "float32"):
        assert text in said


def test_the_command_line_prints_it_and_starts_nothing(store: Store, add: Add) -> None:
    add("tone")
    said = call("serve", "tone", "--engine", "sglang")
    assert said.code == 0, said.err
    assert said.out.startswith("python -m sglang.launch_server --model-path")
    assert "this was not run" in said.err
    printed = call("serve", "tone", "--engine", "sglang", "--json").json
    assert printed["engine"] == "sglang"
    assert printed["shell"] + "\n" == said.out
