"""The arithmetic beside what the installed vLLM allocates, and the table of architectures beside its source."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base import read_base
from adapterhub.serve.capacity import GIB, Demand, capacity
from adapterhub.serve.lora_layers import BOTH_ENDS, INPUT_END, NO_END, NOT_ADAPTABLE
from adapterhub.serve.memory import find_memory

ALLOCATING = Path(__file__).with_name("allocating.py")


def installed() -> str:
    try:
        return version("vllm")
    except PackageNotFoundError:
        return ""


known_version = pytest.mark.skipif(
    not installed().startswith("0.32"), reason="what is compared is vLLM 0.32"
)


# The table of architectures


@known_version
def test_the_architectures_with_adaptable_ends_are_those_of_the_source() -> None:
    found: dict[str, set[str] | None] = {
        name: ends(*place)
        for name, place in registered().items()
        if name in BOTH_ENDS | INPUT_END | NO_END
    }
    assert {name for name, has in found.items() if has and len(has) == 2} == BOTH_ENDS
    assert {name for name, has in found.items() if has and len(has) == 1} == INPUT_END
    assert {name for name, has in found.items() if not has} == NO_END
    assert not (BOTH_ENDS | INPUT_END | NO_END) & NOT_ADAPTABLE
    for name in NOT_ADAPTABLE:
        assert not takes_adapters(*registered()[name]), name
    assert all(takes_adapters(*registered()[name]) for name in BOTH_ENDS | INPUT_END | NO_END)


def source() -> Path:
    spec = find_spec("vllm")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent


def registered() -> dict[str, tuple[Path, str]]:
    """Architecture -> (file, class) of vLLM's text models."""
    models = source() / "model_executor" / "models"
    for node in parsed(models / "registry.py").body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "_TEXT_GENERATION_MODELS"
        ):
            table: dict[str, tuple[str, str]] = ast.literal_eval(node.value)
            return {name: (models / f"{file}.py", kind) for name, (file, kind) in table.items()}
    raise AssertionError("vLLM keeps its models elsewhere")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def ends(path: Path, name: str) -> set[str] | None:
    """`embedding_modules` of a class, its own or that of the first base that has some."""
    if not path.is_file():
        return None
    tree = parsed(path)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for inside in node.body:
                if (
                    isinstance(inside, ast.Assign)
                    and ast.unparse(inside.targets[0]) == "embedding_modules"
                ):
                    return set(ast.literal_eval(inside.value))
            found = (ends(*where) for base in node.bases if (where := imported(tree, path, base)))
            return next((one for one in found if one is not None), None)
    return None


def takes_adapters(path: Path, name: str) -> bool:
    """Whether a class or one of its bases is a `SupportsLoRA`."""
    if name == "SupportsLoRA":
        return True
    if not path.is_file():
        return False
    tree = parsed(path)
    return any(
        takes_adapters(*where)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == name
        for base in node.bases
        if (where := imported(tree, path, base)) and where != (path, name)
    )


def imported(tree: ast.Module, path: Path, base: ast.expr) -> tuple[Path, str] | None:
    """Where the base class comes from, within vLLM."""
    name = ast.unparse(base)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    inside = node.module.removeprefix("vllm.").replace(".", "/")
                    folder = path.parent if node.level else source()
                    return folder / f"{inside}.py", alias.name
    return path, name


# What is allocated


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with unequal widths everywhere, so that a mistaken one shows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=request.param,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def allocated(base: Path, max_loras: int, rank: int, *targets: str) -> Any:
    done = subprocess.run(
        [sys.executable, ALLOCATING, base, str(max_loras), str(rank), *targets],
        capture_output=True, text=True, check=False, timeout=240,
        env={
            **os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@known_version
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_weights_slots_and_tokens_are_those_that_vllm_allocates(base: Path) -> None:
    tied = read_base(base).tied
    targets = ("q_proj", "down_proj") if tied else ()
    real = allocated(base, 3, 16, *targets)
    demand = Demand(
        max_lora_rank=16,
        max_loras=3,
        max_cpu_loras=3,
        dtype="float32",
        max_model_len=256,
        kv_space=GIB,
        extra=("--lora-target-modules", *targets) if targets else (),
    )
    found = capacity(read_base(base), [], demand, find_memory(cpu=True))
    by_name = {part.what: part.bytes for part in found.parts}
    assert by_name["slots"] == real["slots"]
    assert by_name["weights"] == real["weights"]
    assert found.tokens == real["tokens"]
