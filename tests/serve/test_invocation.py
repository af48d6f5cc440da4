"""A plan becomes exactly the command and the environment that vLLM 0.32 understands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.errors import UsageError
from adapterhub.serve.invocation import cautions, invoke, split_extra
from adapterhub.serve.plan import make_plan
from adapterhub.serve.vllm import Engine
from adapterhub.store import Store
from tests.support.models import ModelMaker

Add = Callable[..., str]
ENGINE = Engine(Path("/opt/with space/vllm"), "0.32.0", cpu=False)


def test_the_command_says_the_whole_plan(store: Store, add: Add, base: Path) -> None:
    digest = add("tone", rank=4)
    plan = make_plan(
        store,
        ["tone"],
        port=8123,
        dtype="float32",
        max_model_len=64,
        extra=["--seed", "1"],
        direct=True,
    )
    view = store.view(digest)
    assert invoke(plan, ENGINE, {}).command == (
        "/opt/with space/vllm", "serve", str(base.resolve()),
        "--served-model-name", "org/tiny",
        "--host", "127.0.0.1",
        "--port", "8123",
        "--dtype", "float32",
        "--max-model-len", "64",
        "--enable-lora",
        "--max-lora-rank", "8",
        "--max-loras", "3",
        "--max-cpu-loras", "3",
        "--lora-modules", f"tone={view}", f"tone@{digest[7:19]}={view}",
        "--seed", "1",
    )  # fmt: skip


def test_behind_the_door_vllm_listens_on_a_socket_and_starts_with_the_base_alone(
    store: Store, add: Add, base: Path
) -> None:
    add("tone", rank=4)
    engine = Engine(Path("vllm"), "0.32.0", cpu=False, has_plugin=True)
    inherited = {"VLLM_API_KEY": "k", "VLLM_PLUGINS": "others"}
    found = invoke(make_plan(store, ["tone"]), engine, inherited, socket=Path("/run/v.sock"))
    assert found.command == (
        "vllm", "serve", str(base.resolve()),
        "--served-model-name", "org/tiny",
        "--uds", "/run/v.sock",
        "--dtype", "auto",
        "--enable-lora",
        "--max-lora-rank", "8",
        "--max-loras", "2",
        "--max-cpu-loras", "4",
    )  # fmt: skip
    assert found.variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert found.variables["VLLM_API_KEY"] == ""  # the door asks for it, and keeps it
    assert found.variables["VLLM_PLUGINS"] == "others,adapterhub"


def test_a_comma_in_the_path_takes_the_json_form(
    tmp_path: Path, tiny_llama: Path, make_adapter: Callable[..., Path]
) -> None:
    store = Store.open(tmp_path / "a, b = c")
    store.add_folder(make_adapter("tone"), name="tone", base=str(tiny_llama))
    plan = make_plan(store, ["tone"], base=str(tiny_llama), direct=True)
    command = invoke(plan, ENGINE, {}).command
    first = json.loads(command[command.index("--lora-modules") + 1])
    assert first == {"name": "tone", "path": str(plan.modules["tone"])}


def test_the_shell_line_is_the_same_command_and_environment(store: Store, add: Add) -> None:
    add("tone")
    invocation = invoke(make_plan(store, ["tone"], direct=True), ENGINE, {})
    words = shlex.split(invocation.shell.replace("\\\n", ""))
    count = len(invocation.variables)
    assert dict(word.split("=", 1) for word in words[:count]) == invocation.variables
    assert tuple(words[count:]) == invocation.command
    assert max(line.count("=") for line in invocation.shell.splitlines()[1:]) == 1  # a name a line


def test_the_environment_keeps_vllm_offline_silent_and_closed(store: Store, add: Add) -> None:
    add("tone")
    variables = invoke(
        make_plan(store, ["tone"], direct=True), ENGINE, {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    ).variables
    assert variables == {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "ADAPTERHUB_VLLM_RESOLVER": "0",
    }


def test_on_a_cpu_the_cache_has_a_bound_that_the_user_may_set(store: Store, add: Add) -> None:
    add("tone")
    plan, engine = make_plan(store, ["tone"]), Engine(Path("vllm"), None, cpu=True)
    assert invoke(plan, engine, {}).variables["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert (
        invoke(plan, engine, {"VLLM_CPU_KVCACHE_SPACE": "8"}).variables["VLLM_CPU_KVCACHE_SPACE"]
        == "8"
    )


def test_adapters_and_vllms_own_arguments_are_told_apart() -> None:
    assert split_extra(["a", "b", "--seed", "1", "-q"]) == (["a", "b"], ["--seed", "1", "-q"])
    assert split_extra(["a"]) == (["a"], [])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--port=9", "before the --"),
        ("--max-loras", "--batch"),
        ("--max_loras", "--batch"),
        ("--max-lora-r", "--max-rank"),
        ("--enable-lora", "plan"),
        ("--api-key", "VLLM_API_KEY"),
        ("--hf-token=x", "HF_TOKEN"),
        ("--uds", "listens"),
    ],
)
def test_an_argument_that_would_undo_the_plan_is_refused(argument: str, said: str) -> None:
    with pytest.raises(UsageError, match="can't be handed on") as caught:
        split_extra(["a", argument, "1"])
    assert said in caught.value.why


def test_a_float32_base_an_open_port_and_a_missing_tokenizer_are_pointed_out(
    store: Store, add: Add, base: Path, tiny: ModelMaker, tmp_path: Path
) -> None:
    add("tone")
    assert "float32" in " ".join(cautions(make_plan(store, ["tone"])))
    assert cautions(make_plan(store, ["tone"], dtype="float32")) == []
    (found,) = cautions(make_plan(store, ["tone"], dtype="float32", host="0.0.0.0"))
    assert "other machines" in found
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(base / name)
    (found,) = cautions(make_plan(store, ["tone"], base=str(bare), dtype="float32"))
    assert "tokenizer" in found
    given = make_plan(
        store, ["tone"], base=str(bare), dtype="float32", extra=["--tokenizer", str(base)]
    )
    assert cautions(given) == []
