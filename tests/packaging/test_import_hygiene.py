"""Commands that need no tensors load none of the heavy libraries: each runs in a process of its own, and sys.modules is read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "peft",
    "textual",
    "torch",
    "transformers",
    "trl",
    "vllm",
}

# Runs the command as the console script does; the last line of stderr says what it loaded.
PROBE = """
import sys
from adapterhub.cli.main import main
code = 0
try:
    code = main()
except SystemExit as exit:
    code = exit.code
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(code)
"""


def loaded_by(home: Path, *arguments: str) -> set[str]:
    """The top-level modules in memory after `adapterhub ARGUMENTS`, which has to succeed."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env={
            "ADAPTERHUB_HOME": str(home),
            "ADAPTERHUB_CACHE": str(home / "cache"),
            "HOME": str(home),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one adapter under two names."""
    place = tmp_path_factory.mktemp("hygiene")
    folder = place / "adapter"
    folder.mkdir()
    weights = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.ones(
            shape, np.float32
        )
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = loaded_by(place, "add", str(folder), "--name", "tone")
    assert not loaded & HEAVY
    return place


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls",),
        ("ls", "--json"),
        ("lineage", "tone"),
        ("duplicates",),
        ("affected-by", "org/base"),
        ("show", "tone"),
        ("tag", "tone", "tone:kept"),
        ("log",),
        ("rm", "tone:kept", "--yes"),
        ("base", "ls"),
        ("methods",),
        ("methods", "ties"),
    ],
    ids=" ".join,
)
def test_a_command_about_the_store_loads_nothing_heavy(
    home: Path, arguments: tuple[str, ...]
) -> None:
    assert not loaded_by(home, *arguments) & HEAVY


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls",),
        ("ls", "tone", "--rank", "2"),
        ("tag", "tone", "tone:v2"),
        ("log",),
        ("lineage", "tone"),
    ],
    ids=" ".join,
)
def test_a_command_that_reads_no_weights_loads_no_numpy(
    home: Path, arguments: tuple[str, ...]
) -> None:
    assert "numpy" not in loaded_by(home, *arguments)


def test_listing_loads_nothing_that_it_does_not_need(home: Path) -> None:
    """With a catalogue that is up to date, start-up is all there is; each of these would be a good part of it."""
    loaded_by(home, "ls")
    spared = {
        "msgspec",
        "numpy",
        "pydantic",
        "pydantic_core",
        "platformdirs",
        "regex",
        "rich",
        "yaml",
    }
    assert not loaded_by(home, "ls") & spared


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("add",),
        ("convert",),
        ("ls",),
        ("show",),
        ("tag",),
        ("rm",),
        ("log",),
        ("checkout",),
        ("lineage",),
        ("duplicates",),
        ("affected-by",),
        ("base",),
        ("base", "add"),
        ("merge",),
        ("methods",),
        ("diff",),
        ("export",),
        ("eval",),
        ("chat",),
        ("data", "report"),
        ("train",),
        ("serve",),
        ("tui",),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(tmp_path: Path, command: tuple[str, ...]) -> None:
    assert not loaded_by(tmp_path, *command, "--help") & HEAVY
