"""Output folders as LLaMA-Factory, Unsloth and Axolotl leave them behind: tiny, but with every kind of file they write."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ADAPTER = frozenset({"README.md", "adapter_config.json", "adapter_model.safetensors"})
TOKENIZER = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
)
STATE = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
)


@dataclass(frozen=True)
class Output:
    """A folder, the files of it that are the adapter, and what must be said of the others."""

    folder: Path
    kept: frozenset[str]
    said: tuple[str, ...]


def llama_factory(adapter: Path) -> Output:
    """Supervised training with DeepSpeed, TensorBoard and the board's own files; a value head from PPO."""
    kept = {
        "all_results.json", "train_results.json", "trainer_log.jsonl", "trainer_state.json", "training_loss.png",
        "training_args.yaml", "llamaboard_config.yaml", "value_head.safetensors", "added_tokens.json",
    }  # fmt: skip
    _write(adapter, {*kept, *TOKENIZER, "README.md"})
    _write(
        adapter,
        ["training_args.bin", "running_log.txt", "runs/Jan01_host/events.out.tfevents.1.h.2.0"],
    )
    for step in (500, 1000):
        _checkpoint(adapter, step)
        _write(
            adapter / f"checkpoint-{step}",
            [f"global_step{step}/mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"],
        )
    return Output(
        adapter,
        frozenset({*ADAPTER, *TOKENIZER, *kept}),
        (
            "left out as adapters of their own: checkpoint-500/, checkpoint-1000/",
            "left out as the training's logs: running_log.txt, runs/",
            "left out as the training's state: training_args.bin",
        ),
    )


def unsloth(adapter: Path) -> Output:
    """save_pretrained, save_pretrained_merged and save_pretrained_gguf, all into one folder, as its notebooks do."""
    _write(adapter, {*TOKENIZER, "README.md", "config.json", "Modelfile"})
    _write(
        adapter,
        [
            "unsloth.Q4_K_M.gguf",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ],
    )
    return Output(
        adapter,
        frozenset({*ADAPTER, *TOKENIZER, "config.json", "Modelfile"}),
        (
            "left out as weights of a whole model: "
            + ", ".join(
                [
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "model.safetensors.index.json",
                    "unsloth.Q4_K_M.gguf",
                ]
            ),
        ),
    )


def axolotl(adapter: Path) -> Output:
    """A finished run that was merged afterwards, with its checkpoints, its debug log and an old pickle."""
    _write(adapter, {*TOKENIZER, "README.md", "config.json"})
    _write(adapter, ["debug.log", "adapter_model.bin", "pytorch_model_fsdp_0/__0_0.distcp"])
    _write(
        adapter, ["merged/config.json", "merged/model.safetensors", "runs/x/events.out.tfevents.1"]
    )
    _write(adapter, ["wandb/run-1/files/config.yaml", ".git/config"])
    for step in (9, 10):
        _checkpoint(adapter, step)
    return Output(
        adapter,
        frozenset({*ADAPTER, *TOKENIZER, "config.json"}),
        (
            "left out as adapters of their own: checkpoint-9/, checkpoint-10/",
            "left out as pickled weights: adapter_model.bin",
            "left out as the training's logs: debug.log, runs/, wandb/",
            "left out as the training's state: pytorch_model_fsdp_0/",
            "left out as version control or a cache: .git/",
            "left out as weights of a whole model: merged/",
        ),
    )


def checkpoint(adapter: Path) -> Output:
    """A checkpoint of the transformers Trainer, by itself."""
    _write(adapter, [*STATE, "scaler.pt", "README.md", "trainer_state.json"])
    return Output(
        adapter,
        frozenset({*ADAPTER, "trainer_state.json"}),
        (
            "left out as the training's state: optimizer.pt, rng_state.pth, scaler.pt, scheduler.pt, training_args.bin",
        ),
    )


OUTPUTS = {made.__name__: made for made in (llama_factory, unsloth, axolotl, checkpoint)}


def _checkpoint(adapter: Path, step: int) -> None:
    folder = adapter / f"checkpoint-{step}"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder / name)
    _write(folder, [*STATE, "trainer_state.json"])


def _write(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
